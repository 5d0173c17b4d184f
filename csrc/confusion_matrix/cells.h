// What the confusion count and its kernels, one for each instruction set, share.
#pragma once

#include "common/cpu.h"
#include "confusion_matrix/confusion_matrix.h"

namespace infoseg {

// The cells of a count: a row for each cluster and one for predictions out of range, a column for
// each class, one for ignored targets and one for targets out of range. Every pixel has a cell, so
// no pixel needs a branch.
struct ConfusionCells {
  std::int64_t num_clusters, num_classes;
  bool has_ignore;
  std::int64_t ignore_index;

  std::int64_t stride() const { return num_classes + 2; }
  std::int64_t size() const { return (num_clusters + 1) * stride(); }
  std::int64_t ignored() const { return num_classes; }
  std::int64_t bad_target() const { return num_classes + 1; }
};

// A label map is mostly runs. A run adds to one cell again and again, and each addition waits for
// the one before, so neighbouring pixels count into different tables.
constexpr int kConfusionTables = 4;
// With more cells than this the tables would not stay in a core's cache, and one table is used.
constexpr std::int64_t kConfusionFewCells = 8192;

// Pixels begin .. begin + size - 1, at most 2^32 - 1 of them, and the tables that their counts are
// added to: kConfusionTables * cells.size() counters where there are few cells, else cells.size().
struct PixelRange {
  Labels pred, target;
  std::int64_t begin, size;
  const ConfusionCells& cells;
  std::uint32_t* tables;
};

INFOSEG_KERNEL(void, count_cells, PixelRange)

}  // namespace infoseg
