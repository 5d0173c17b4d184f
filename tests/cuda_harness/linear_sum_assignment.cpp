// csrc/linear_sum_assignment/linear_sum_assignment.cu as a CPU library with the same C interface:
// "device" pointers are the host's.
#include "../../csrc/linear_sum_assignment/linear_sum_assignment.cu"

namespace {
// The most dynamic shared memory that a block may ask for on every target (sm_86, 89 and 120 have
// 99 KB).
__shared__ __align__(16) unsigned char dynamic_shared[99 * 1024];
}  // namespace

extern "C" __attribute__((visibility("default"))) void cuda_harness_set_schedule(uint64_t seed) {
  cuda_harness::set_schedule(seed);
}
