// What the confusion count's portable part and its kernels, one per instruction set, say to each other.
#pragma once

#include <cstdint>

#include "confusion_matrix.h"

namespace infoseg {

// The cells of a count: a row for each cluster and one for predictions out of range, a column for each class, one for
// ignored targets and one for targets out of range. No pixel needs a branch, and none is lost.
struct ConfusionCells {
  std::int64_t num_clusters, num_classes;
  bool has_ignore;
  std::int64_t ignore_index;

  std::int64_t stride() const { return num_classes + 2; }
  std::int64_t size() const { return (num_clusters + 1) * stride(); }
  std::int64_t ignored() const { return num_classes; }
  std::int64_t bad_target() const { return num_classes + 1; }
};

// A label map is mostly runs, and a run adds to one cell again and again, each addition waiting for the one before.
// Neighbouring pixels therefore count into different tables.
constexpr int kConfusionTables = 4;
// With more cells than this the tables would not stay in a core's cache, and one is used.
constexpr std::int64_t kConfusionFewCells = 8192;

// Adds `size` pixels, at most 2^32 - 1, to the tables: kConfusionTables * cells.size() counters where there are few
// cells, else cells.size().
using ConfusionCounter = void (*)(Labels pred, Labels target, std::int64_t begin, std::int64_t size,
                                  const ConfusionCells& cells, std::uint32_t* tables);

void count_cells_portable(Labels, Labels, std::int64_t, std::int64_t, const ConfusionCells&, std::uint32_t*);
#if defined(__x86_64__)
void count_cells_avx2(Labels, Labels, std::int64_t, std::int64_t, const ConfusionCells&, std::uint32_t*);
void count_cells_avx512(Labels, Labels, std::int64_t, std::int64_t, const ConfusionCells&, std::uint32_t*);
#endif

}  // namespace infoseg
