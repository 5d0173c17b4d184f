#include "linear_sum_assignment/linear_sum_assignment.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "common/threads.h"
#include "linear_sum_assignment/problem.h"

namespace infoseg {

namespace {

// Memory that grows as needed. A thread keeps a small one between calls: allocating takes longer
// than a small problem.
class Workspace {
 public:
  void* of(std::size_t bytes) {
    if (bytes > size_) {
      size_ = 0;
      memory_.reset(static_cast<char*>(::operator new(bytes, std::align_val_t{kAssignmentAlign})));
      size_ = bytes;
    }
    return memory_.get();
  }
  void shrink() {
    constexpr std::size_t kKept = 1 << 18;
    if (size_ > kKept) {
      memory_.reset();
      size_ = 0;
    }
  }

 private:
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{kAssignmentAlign}); }
  };
  std::unique_ptr<char, Free> memory_;
  std::size_t size_ = 0;
};

const char* matrix(const CostBatch& costs, std::int64_t index) {
  const std::int64_t element = costs.type == CostType::kFloat32 ? 4 : 8;
  return static_cast<const char*>(costs.data) + index * costs.batch_stride * element;
}

// Sums along a path and prices stay below this many times the spread of the costs.
bool sums_fit(std::uint64_t spread, std::int64_t rows) {
  return static_cast<unsigned __int128>(spread) * static_cast<std::uint64_t>(2 * rows + 4) < (std::uint64_t{1} << 60);
}

// Bytes for one problem whose costs are computed with in elements of `element` bytes.
std::size_t assignment_workspace(std::int32_t rows, std::int32_t cols, std::size_t element, bool in_place) {
  const std::size_t n = rows, width = assignment_width(cols);
  const std::size_t costs = (in_place ? 1 : n) * width * element;
  const std::size_t per_column = width * (2 * element + 2 * sizeof(std::int64_t) + sizeof(std::int32_t));
  const std::size_t per_row = n * (sizeof(void*) + 3 * sizeof(std::int32_t) + 2 * element);
  return costs + per_column + per_row + 16 * kAssignmentAlign;
}

AssignmentResult solve_one(const CostBatch& costs, std::int64_t index, Workspace& workspace) {
  const bool turned = costs.rows > costs.cols;
  AssignmentProblem p;
  p.data = matrix(costs, index);
  p.type = costs.type;
  p.wide = false;
  p.row_stride = turned ? costs.col_stride : costs.row_stride;
  p.col_stride = turned ? costs.row_stride : costs.col_stride;
  p.rows = static_cast<std::int32_t>(turned ? costs.cols : costs.rows);
  p.cols = static_cast<std::int32_t>(turned ? costs.rows : costs.cols);
  p.maximize = costs.maximize;
  p.shift = 0;
  p.factor = p.maximize ? -1 : 1;
  // Small matrices are copied all the same: padded and aligned rows save more time than the copy
  // takes.
  p.in_place = !turned && !p.maximize && p.col_stride == 1 && p.row_stride == p.cols && p.cols > 128;

  if (costs.type == CostType::kFloat32) {
    p.in_place = false;
  } else if (costs.type == CostType::kInt64) {
    const auto [least, greatest] = range_of_costs(p);
    const std::uint64_t spread = static_cast<std::uint64_t>(greatest) - static_cast<std::uint64_t>(least);
    p.shift = p.maximize ? greatest : least;
    p.wide = !sums_fit(spread, p.rows);
    if (p.wide) {
      p.in_place = false;
    } else if (p.in_place) {
      const auto magnitude = [](std::int64_t x) {
        return x < 0 ? -static_cast<std::uint64_t>(x) : static_cast<std::uint64_t>(x);
      };
      p.in_place = sums_fit(std::max(magnitude(least), magnitude(greatest)), p.rows);
    }
  }
  p.workspace = workspace.of(assignment_workspace(p.rows, p.cols, p.wide ? 16 : 8, p.in_place));
  const AssignmentResult result = solve_problem(p);
  if (result.status != AssignmentStatus::kTooLarge) return result;
  p.in_place = false;
  p.factor *= kLargeFactor;
  p.workspace = workspace.of(assignment_workspace(p.rows, p.cols, sizeof(double), p.in_place));
  return solve_problem(p);
}

void write_indices(const CostBatch& costs, const std::int32_t* columns, std::int64_t* row_indices,
                   std::int64_t* col_indices, std::int32_t* scratch) {
  if (costs.rows <= costs.cols) {
    for (std::int64_t i = 0; i < costs.rows; ++i) {
      row_indices[i] = i;
      col_indices[i] = columns[i];
    }
    return;
  }
  std::fill(scratch, scratch + costs.rows, -1);
  for (std::int64_t j = 0; j < costs.cols; ++j) scratch[columns[j]] = static_cast<std::int32_t>(j);
  for (std::int64_t i = 0; i < costs.rows; ++i) {
    if (scratch[i] < 0) continue;
    *row_indices++ = i;
    *col_indices++ = scratch[i];
  }
}

AssignmentOutcome describe(const CostBatch& costs, std::int64_t index, const AssignmentResult& result) {
  AssignmentOutcome outcome{result.status, index, 0, 0, 0};
  if (result.status == AssignmentStatus::kInfeasibleRow) {
    outcome.row = outcome.col = result.place;
    if (costs.rows > costs.cols) outcome.status = AssignmentStatus::kInfeasibleColumn;
    return outcome;
  }
  const auto* wide = reinterpret_cast<const double*>(matrix(costs, index));
  const auto* narrow = reinterpret_cast<const float*>(matrix(costs, index));
  for (outcome.row = 0; outcome.row < costs.rows; ++outcome.row) {
    for (outcome.col = 0; outcome.col < costs.cols; ++outcome.col) {
      const std::int64_t at = outcome.row * costs.row_stride + outcome.col * costs.col_stride;
      outcome.value = costs.type == CostType::kFloat32 ? narrow[at] : wide[at];
      const double cost = costs.maximize ? -outcome.value : outcome.value;
      if (!(cost > -std::numeric_limits<double>::infinity())) return outcome;
    }
  }
  return outcome;
}

}  // namespace

AssignmentOutcome solve_assignment(const CostBatch& costs, int threads, std::int64_t* row_indices,
                                   std::int64_t* col_indices) {
  const std::int64_t matched = std::min(costs.rows, costs.cols);
  if (costs.batch == 0 || matched == 0) return {};
  if (std::max(costs.rows, costs.cols) > std::numeric_limits<std::int32_t>::max() - 64) {
    throw std::invalid_argument("a cost matrix has more than 2**31 rows or columns");
  }

  std::atomic<std::int64_t> next{0};
  std::atomic<std::int64_t> first_failed{costs.batch};
  std::vector<AssignmentOutcome> outcomes(std::max(1, threads));
  std::atomic<bool> out_of_memory{false};
  const std::int64_t chunk = std::max<std::int64_t>(1, costs.batch / (8 * std::max(1, threads)));

  const auto work = [&](int thread) {
    static thread_local Workspace workspace;
    static thread_local Workspace scratch;
    try {
      for (;;) {
        const std::int64_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
        const std::int64_t end = std::min(costs.batch, begin + chunk);
        if (begin >= end) break;
        for (std::int64_t b = begin; b < end && b < first_failed.load(std::memory_order_relaxed); ++b) {
          const AssignmentResult result = solve_one(costs, b, workspace);
          if (result.status == AssignmentStatus::kSolved) {
            auto* by_row = static_cast<std::int32_t*>(scratch.of(costs.rows > costs.cols ? costs.rows * 4 : 4));
            write_indices(costs, result.columns, row_indices + b * matched, col_indices + b * matched, by_row);
            continue;
          }
          outcomes[thread] = describe(costs, b, result);
          std::int64_t known = first_failed.load();
          while (b < known && !first_failed.compare_exchange_weak(known, b)) {
          }
        }
      }
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
    workspace.shrink();
    scratch.shrink();
  };
  const std::int64_t chunks = (costs.batch + chunk - 1) / chunk;
  parallel_for(static_cast<int>(std::min<std::int64_t>(std::max(1, threads), chunks)), work);

  if (out_of_memory) throw std::bad_alloc();
  for (const AssignmentOutcome& outcome : outcomes) {
    if (outcome.status != AssignmentStatus::kSolved && outcome.problem == first_failed.load()) return outcome;
  }
  return {};
}

}  // namespace infoseg
