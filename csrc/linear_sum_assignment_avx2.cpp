// The assignment solver compiled for AVX2.
#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#include "linear_sum_assignment_problem.h"

#define INFOSEG_LANES_BYTES 32

namespace infoseg {
namespace assignment_avx2 {
#include "linear_sum_assignment_kernel.h"
}  // namespace assignment_avx2

const AssignmentKernels kAssignmentAvx2 = {
    "avx2",
    assignment_avx2::solve<float, double>,
    assignment_avx2::solve<double, double>,
    assignment_avx2::solve<std::int64_t, std::int64_t>,
    assignment_avx2::int64_range,
};

}  // namespace infoseg
