// Joint counts of predicted clusters and target classes.
#pragma once

#include <cstdint>

namespace infoseg {

enum class LabelType { kUint8, kInt16, kInt32, kInt64 };

struct Labels {
  const void* data;  // contiguous
  LabelType type;
};

// The first value without a row or column. `place` is its flat index, or -1 when there is none.
struct OutOfRange {
  std::int64_t place = -1;
  std::int64_t value = 0;
  bool in_target = false;
};

// Adds to counts[cluster * num_classes + class] the number of positions i with pred[i] == cluster
// and target[i] == class. With has_ignore, positions with target[i] == ignore_index are left out,
// whatever pred[i] is. A value out of range: nothing is added, and the first such place is returned
// (at one place, the target comes before the prediction). Throws std::bad_alloc, and
// std::invalid_argument for more than 2^31 cells.
OutOfRange count_confusion(Labels pred, Labels target, std::int64_t size, std::int64_t num_clusters,
                           std::int64_t num_classes, bool has_ignore, std::int64_t ignore_index, int threads,
                           std::int64_t* counts);

}  // namespace infoseg
