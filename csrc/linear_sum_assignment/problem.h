// What the assignment solver and its kernels, one for each instruction set, share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu.h"
#include "linear_sum_assignment/linear_sum_assignment.h"

namespace infoseg {

// One matrix, turned so that rows <= cols.
struct AssignmentProblem {
  const void* data;
  CostType type;
  bool wide;  // integers whose sums would overflow 64 bits: 128 bits are taken
  std::int64_t row_stride, col_stride;
  std::int32_t rows, cols;
  bool maximize;
  bool in_place;       // rows are read where they are: contiguous, of the type of the sums, to be minimised
  std::int64_t shift;  // integers: costs are taken as x - shift, or as shift - x when maximising
  double factor;       // floating point: costs are taken as x * factor, a power of two, negative when maximising
  void* workspace;     // assignment_workspace() bytes
};

struct AssignmentResult {
  AssignmentStatus status;
  std::int32_t place;           // the row without a path, if kInfeasibleRow
  const std::int32_t* columns;  // [rows], inside the workspace
};

struct IntegerRange {
  std::int64_t least, greatest;
};

// With costs below kLargeCost no sum of a problem overflows, whatever its number of rows (< 2^31).
// For other costs the kernel gives kTooLarge. Multiplied by kLargeFactor, which is exact, they are
// below it.
constexpr double kLargeCost = 0x1p984;
constexpr double kLargeFactor = 0x1p-40;

// Workspaces are aligned to this, the size of the widest vector, so rows padded to it suit every
// kernel.
constexpr std::size_t kAssignmentAlign = 64;

static inline std::int32_t assignment_width(std::int32_t cols) { return (cols + 7) / 8 * 8; }

INFOSEG_KERNEL(AssignmentResult, solve_problem, AssignmentProblem)
INFOSEG_KERNEL(IntegerRange, range_of_costs, AssignmentProblem)

}  // namespace infoseg
