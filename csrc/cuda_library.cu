// What the CUDA library says about itself.
#include <cuda_runtime.h>

extern "C" {

// The cudaError_t that any call would meet: no driver, one older than the library's runtime, no device; 0 for none.
__attribute__((visibility("default"))) int infoseg_cuda_ready() {
  int devices = 0;
  return cudaGetDeviceCount(&devices);
}

// What a cudaError_t means.
__attribute__((visibility("default"))) const char* infoseg_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
}
