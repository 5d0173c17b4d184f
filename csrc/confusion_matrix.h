// Joint counts of predicted clusters and target classes.
#pragma once

#include <cstdint>

namespace infoseg {

// Where a value was found that has no row or column; `place` is -1 when there was none.
struct OutOfRange {
  std::int64_t place = -1;
  std::int64_t value = 0;
  bool in_target = false;
};

// Adds to counts[cluster * num_classes + class] the number of positions i with pred[i] == cluster and
// target[i] == class. Positions with target[i] == ignore_index are left out, whatever pred[i] is, unless has_ignore is
// false. On a value out of range nothing is added, and the first such place is returned.
OutOfRange count_confusion(const std::uint8_t* pred, const std::uint8_t* target, std::int64_t size,
                           std::int64_t num_clusters, std::int64_t num_classes, bool has_ignore,
                           std::int64_t ignore_index, std::int64_t* counts);

}  // namespace infoseg
