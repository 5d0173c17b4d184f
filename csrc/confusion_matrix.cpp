#include "confusion_matrix.h"

#include <vector>

namespace infoseg {

namespace {

constexpr int kValues = 256;                // of a byte
constexpr int kCells = kValues * kValues;   // every (pred, target) pair has a cell, so the loop has no branch
constexpr int kLanes = 2;                   // neighbours often fall into one cell: two tables halve the dependency

}  // namespace

OutOfRange count_confusion(const std::uint8_t* pred, const std::uint8_t* target, std::int64_t size,
                           std::int64_t num_clusters, std::int64_t num_classes, bool has_ignore,
                           std::int64_t ignore_index, std::int64_t* counts) {
  std::vector<std::int64_t> cells(static_cast<std::size_t>(kLanes) * kCells, 0);
  std::int64_t* even = cells.data();
  std::int64_t* odd = even + kCells;
  std::int64_t i = 0;
  for (; i + 1 < size; i += 2) {
    ++even[pred[i] * kValues + target[i]];
    ++odd[pred[i + 1] * kValues + target[i + 1]];
  }
  if (i < size) ++even[pred[i] * kValues + target[i]];

  const auto ignored = [&](int cls) { return has_ignore && cls == ignore_index; };
  bool legal = true;
  for (int cluster = 0; cluster < kValues; ++cluster) {
    for (int cls = 0; cls < kValues; ++cls) {
      const std::int64_t n = even[cluster * kValues + cls] + odd[cluster * kValues + cls];
      if (n && !ignored(cls) && (cluster >= num_clusters || cls >= num_classes)) legal = false;
    }
  }
  if (!legal) {
    for (i = 0; i < size; ++i) {
      if (ignored(target[i])) continue;
      if (target[i] >= num_classes) return {i, target[i], true};
      if (pred[i] >= num_clusters) return {i, pred[i], false};
    }
  }
  for (std::int64_t cluster = 0; cluster < num_clusters && cluster < kValues; ++cluster) {
    for (std::int64_t cls = 0; cls < num_classes && cls < kValues; ++cls) {
      if (ignored(static_cast<int>(cls))) continue;
      const std::int64_t cell = cluster * kValues + cls;
      counts[cluster * num_classes + cls] += even[cell] + odd[cell];
    }
  }
  return {};
}

}  // namespace infoseg
