// csrc/common/cuda_library.cu as a CPU library with the same C interface.
#include "../../csrc/common/cuda_library.cu"
