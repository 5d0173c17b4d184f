// The assignment solver compiled for AVX-512.
#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#include "linear_sum_assignment_problem.h"

#define INFOSEG_LANES_BYTES 64

namespace infoseg {
namespace assignment_avx512 {
#include "linear_sum_assignment_kernel.h"
}  // namespace assignment_avx512

const AssignmentKernels kAssignmentAvx512 = {
    "avx512",
    assignment_avx512::solve<float, double>,
    assignment_avx512::solve<double, double>,
    assignment_avx512::solve<std::int64_t, std::int64_t>,
    assignment_avx512::int64_range,
};

}  // namespace infoseg
