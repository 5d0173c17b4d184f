// Minimum-cost one-to-one assignment of rows to columns, exact, for one matrix or a batch.
#pragma once

#include <cstdint>

namespace infoseg {

enum class CostType { kFloat32, kFloat64, kInt64 };

// A batch of cost matrices; strides count elements and may be anything, zero and negative included.
struct CostBatch {
  const void* data;
  CostType type;
  std::int64_t batch, rows, cols;
  std::int64_t batch_stride, row_stride, col_stride;
  bool maximize;
};

// Why a problem has no answer. `kInvalid`: an entry is NaN, or infinite with the sign that would
// always be preferred. `kInfeasibleRow`, or `kInfeasibleColumn` with more rows than columns:
// forbidden entries (infinite of the other sign) leave no place for one row or column beside those
// that are matched. `kTooLarge`, from a kernel only: sums of the costs may overflow.
enum class AssignmentStatus { kSolved, kInvalid, kInfeasibleRow, kInfeasibleColumn, kTooLarge };

struct AssignmentOutcome {
  AssignmentStatus status = AssignmentStatus::kSolved;
  std::int64_t problem = 0;  // which matrix of the batch
  std::int64_t row = 0;      // of the first invalid entry, or the row that cannot be matched
  std::int64_t col = 0;      // of the first invalid entry, or the column that cannot be matched
  double value = 0;          // the invalid entry
};

// Writes min(rows, cols) row indices, ascending, and their columns for each problem. Costs are
// summed in float64, or in integers wide enough never to overflow for kInt64, so integer answers
// are exact. Returns the first problem that failed, which does not depend on the threads; the
// written indices then mean nothing. Throws std::bad_alloc, and std::invalid_argument for more than
// about 2^31 rows or columns.
AssignmentOutcome solve_assignment(const CostBatch& costs, int threads, std::int64_t* row_indices,
                                   std::int64_t* col_indices);

}  // namespace infoseg
