// The assignment solver compiled for every CPU, and for integers of 128 bits.
#include <cstdint>
#include <type_traits>

#include "linear_sum_assignment_problem.h"

#define INFOSEG_LANES_BYTES 16

namespace infoseg {
namespace assignment_portable {
#include "linear_sum_assignment_kernel.h"
}  // namespace assignment_portable

const AssignmentKernels kAssignmentPortable = {
    "portable",
    assignment_portable::solve<float, double>,
    assignment_portable::solve<double, double>,
    assignment_portable::solve<std::int64_t, std::int64_t>,
    assignment_portable::int64_range,
};

const AssignmentSolver kAssignmentInt128 = assignment_portable::solve<std::int64_t, __int128>;

}  // namespace infoseg
