// The state of the CUDA library.
#include <cuda_runtime.h>

extern "C" {

// The cudaError_t of any call: no driver, a driver older than the library's runtime, no device; 0
// for no error.
__attribute__((visibility("default"))) int infoseg_cuda_ready() {
  int devices = 0;
  return cudaGetDeviceCount(&devices);
}

// The text of a cudaError_t.
__attribute__((visibility("default"))) const char* infoseg_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
}
