// What the assignment solver's portable part and its kernels, one per instruction set, say to each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear_sum_assignment.h"

namespace infoseg {

// One matrix, turned so that rows <= cols.
struct AssignmentProblem {
  const void* data;
  std::int64_t row_stride, col_stride;
  std::int32_t rows, cols;
  bool maximize;
  bool in_place;       // rows are read where they are: contiguous in memory, of the kernel's type, to be minimised
  std::int64_t shift;  // integers only: costs are taken as x - shift, or as shift - x when maximising
};

struct AssignmentResult {
  AssignmentStatus status;
  std::int32_t place;           // the row without a path, if kInfeasibleRow
  const std::int32_t* columns;  // [rows], inside the workspace
};

using AssignmentSolver = AssignmentResult (*)(const AssignmentProblem&, void* workspace);

struct AssignmentKernels {
  const char* name;
  AssignmentSolver float32, float64, int64;
  void (*int64_range)(const AssignmentProblem&, std::int64_t* least, std::int64_t* greatest);
};

// Workspaces are aligned to this; it is also the widest vector, so rows padded to it suit every kernel.
constexpr std::size_t kAssignmentAlign = 64;

inline std::int32_t assignment_width(std::int32_t cols) { return (cols + 7) / 8 * 8; }

// Bytes for one problem whose costs are computed with in elements of `element` bytes.
std::size_t assignment_workspace(std::int32_t rows, std::int32_t cols, std::size_t element, bool in_place);

extern const AssignmentKernels kAssignmentPortable;
extern const AssignmentSolver kAssignmentInt128;  // integers whose sums would overflow 64 bits
#if defined(__x86_64__)
extern const AssignmentKernels kAssignmentAvx2;
extern const AssignmentKernels kAssignmentAvx512;
#endif

}  // namespace infoseg
