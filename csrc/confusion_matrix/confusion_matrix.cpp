#include "confusion_matrix/confusion_matrix.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <vector>

#include "common/threads.h"
#include "confusion_matrix/cells.h"

namespace infoseg {

namespace {

std::int64_t label_at(Labels labels, std::int64_t i) {
  switch (labels.type) {
    case LabelType::kUint8:
      return static_cast<const std::uint8_t*>(labels.data)[i];
    case LabelType::kInt16:
      return static_cast<const std::int16_t*>(labels.data)[i];
    case LabelType::kInt32:
      return static_cast<const std::int32_t*>(labels.data)[i];
    default:
      return static_cast<const std::int64_t*>(labels.data)[i];
  }
}

OutOfRange find_out_of_range(Labels pred, Labels target, std::int64_t size, const ConfusionCells& cells) {
  for (std::int64_t i = 0; i < size; ++i) {
    const std::int64_t t = label_at(target, i), p = label_at(pred, i);
    if (cells.has_ignore && t == cells.ignore_index) continue;
    if (t < 0 || t >= cells.num_classes) return {i, t, true};
    if (p < 0 || p >= cells.num_clusters) return {i, p, false};
  }
  return {};
}

bool any_out_of_range(const std::vector<std::int64_t>& sums, const ConfusionCells& cells) {
  for (std::int64_t row = 0; row <= cells.num_clusters; ++row) {
    const std::int64_t* line = sums.data() + row * cells.stride();
    if (line[cells.bad_target()]) return true;
    const auto used = [](std::int64_t n) { return n != 0; };
    if (row == cells.num_clusters && std::any_of(line, line + cells.num_classes, used)) return true;
  }
  return false;
}

}  // namespace

OutOfRange count_confusion(Labels pred, Labels target, std::int64_t size, std::int64_t num_clusters,
                           std::int64_t num_classes, bool has_ignore, std::int64_t ignore_index, int threads,
                           std::int64_t* counts) {
  const ConfusionCells cells{num_clusters, num_classes, has_ignore, ignore_index};
  constexpr std::int64_t kMostCells = std::int64_t{1} << 31;
  if (num_clusters >= kMostCells || num_classes >= kMostCells || cells.size() > kMostCells) {
    throw std::invalid_argument("num_clusters times num_classes is too large");
  }
  // Starting a thread takes about as long as counting so many pixels.
  constexpr std::int64_t kPixelsPerThread = 1 << 17;
  const auto parts = static_cast<int>(std::clamp<std::int64_t>(size / kPixelsPerThread, 1, std::max(1, threads)));
  const std::int64_t length = cells.size() * (cells.size() <= kConfusionFewCells ? kConfusionTables : 1);

  // Allocated here, so that the threads do not throw.
  std::vector<std::vector<std::uint32_t>> tables(parts, std::vector<std::uint32_t>(length));
  std::vector<std::vector<std::int64_t>> sums(parts, std::vector<std::int64_t>(cells.size()));

  const auto count_part = [&](int part) {
    constexpr std::int64_t kMostAtOnce = std::int64_t{1} << 31;  // the tables count up to 2^32 - 1
    const std::int64_t end = size / parts * (part + 1) + (part + 1 == parts ? size % parts : 0);
    for (std::int64_t begin = size / parts * part; begin < end; begin += kMostAtOnce) {
      std::vector<std::uint32_t>& table = tables[part];
      if (begin != size / parts * part) std::fill(table.begin(), table.end(), 0);
      count_cells({pred, target, begin, std::min(kMostAtOnce, end - begin), cells, table.data()});
      for (std::int64_t at = 0; at < length; at += cells.size()) {
        for (std::int64_t cell = 0; cell < cells.size(); ++cell) sums[part][cell] += table[at + cell];
      }
    }
  };
  parallel_for(parts, count_part);

  for (int part = 1; part < parts; ++part) {
    for (std::int64_t cell = 0; cell < cells.size(); ++cell) sums[0][cell] += sums[part][cell];
  }
  if (any_out_of_range(sums[0], cells)) return find_out_of_range(pred, target, size, cells);
  for (std::int64_t cluster = 0; cluster < num_clusters; ++cluster) {
    for (std::int64_t cls = 0; cls < num_classes; ++cls) {
      counts[cluster * num_classes + cls] += sums[0][cluster * cells.stride() + cls];
    }
  }
  return {};
}

}  // namespace infoseg
