// The confusion count of a range of pixels for one instruction set, block by block: cell numbers,
// which the compiler vectorises, then counters.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "confusion_matrix/cells.h"

namespace infoseg {
namespace INFOSEG_ISA {

namespace {

using std::int16_t;
using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

constexpr int64_t kBlock = 2048;

template <class T>
struct Unsigned;
template <>
struct Unsigned<uint8_t> {
  using Type = uint8_t;
};
template <>
struct Unsigned<int16_t> {
  using Type = uint16_t;
};
template <>
struct Unsigned<int32_t> {
  using Type = uint32_t;
};
template <>
struct Unsigned<int64_t> {
  using Type = uint64_t;
};

// Whether every label of type U is below `limit`. A negative label is large as an unsigned number.
template <class U>
bool all_below(int64_t limit) {
  return static_cast<uint64_t>(limit) > static_cast<U>(-1);
}

template <class Cell, class T>
void rows_of_cells(const T* __restrict pred, int64_t size, const ConfusionCells& cells, Cell* __restrict out) {
  using U = typename Unsigned<T>::Type;
  const auto stride = static_cast<Cell>(cells.stride());
  if (all_below<U>(cells.num_clusters)) {
    for (int64_t i = 0; i < size; ++i) out[i] = static_cast<Cell>(static_cast<Cell>(pred[i]) * stride);
    return;
  }
  const auto limit = static_cast<U>(cells.num_clusters);
  for (int64_t i = 0; i < size; ++i) {
    const auto label = static_cast<U>(pred[i]);
    out[i] = static_cast<Cell>(static_cast<Cell>(label < limit ? label : limit) * stride);
  }
}

template <class Cell, class T>
void add_columns_of_cells(const T* __restrict target, int64_t size, const ConfusionCells& cells, Cell* __restrict out) {
  using U = typename Unsigned<T>::Type;
  const auto bad = static_cast<Cell>(cells.bad_target());
  const auto ignored = static_cast<Cell>(cells.ignored());
  const bool can_ignore = cells.has_ignore && static_cast<T>(cells.ignore_index) == cells.ignore_index;
  const auto ignore = static_cast<U>(cells.ignore_index);
  const bool unbounded = all_below<U>(cells.num_classes);
  // The largest legal label: the comparison stays in the label's own type.
  const auto last = unbounded ? static_cast<U>(-1) : static_cast<U>(cells.num_classes - 1);
  const bool none_legal = cells.num_classes == 0;
  if (none_legal) {
    for (int64_t i = 0; i < size; ++i) {
      out[i] = static_cast<Cell>(out[i] + (can_ignore && static_cast<U>(target[i]) == ignore ? ignored : bad));
    }
  } else if (can_ignore) {
    for (int64_t i = 0; i < size; ++i) {
      const auto label = static_cast<U>(target[i]);
      Cell column = label <= last ? static_cast<Cell>(label) : bad;
      column = label == ignore ? ignored : column;
      out[i] = static_cast<Cell>(out[i] + column);
    }
  } else {
    for (int64_t i = 0; i < size; ++i) {
      const auto label = static_cast<U>(target[i]);
      out[i] = static_cast<Cell>(out[i] + (label <= last ? static_cast<Cell>(label) : bad));
    }
  }
}

// Calls f with the labels from `begin` on, of their own type.
template <class F>
void by_label_type(const Labels& labels, int64_t begin, const F& f) {
  switch (labels.type) {
    case LabelType::kUint8:
      return f(static_cast<const uint8_t*>(labels.data) + begin);
    case LabelType::kInt16:
      return f(static_cast<const int16_t*>(labels.data) + begin);
    case LabelType::kInt32:
      return f(static_cast<const int32_t*>(labels.data) + begin);
    case LabelType::kInt64:
      return f(static_cast<const int64_t*>(labels.data) + begin);
  }
}

// The cells of the pixels done .. done + size - 1 of a range.
template <class Cell>
void cells_of_block(const PixelRange& a, int64_t done, int64_t size, Cell* out) {
  by_label_type(a.pred, a.begin + done, [&](const auto* labels) { rows_of_cells(labels, size, a.cells, out); });
  by_label_type(a.target, a.begin + done,
                [&](const auto* labels) { add_columns_of_cells(labels, size, a.cells, out); });
}

constexpr int64_t kGroup = 32;

// Bit i is set where group[i] differs from group[i - 1]; bit 0 is always set. group[-1] must be
// readable.
uint32_t starts_of_runs(const uint16_t* group) {
  uint32_t starts = 0;
#if defined(__AVX512BW__)
  starts = _mm512_cmpneq_epu16_mask(_mm512_loadu_si512(group), _mm512_loadu_si512(group - 1));
#elif defined(__AVX2__)
  const auto same = [&](int at) {
    return _mm256_cmpeq_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + at)),
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + at - 1)));
  };
  // Packing works within halves; the permutation restores the order of the quarters.
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(same(0), same(16)), 0xd8);
  starts = ~static_cast<uint32_t>(_mm256_movemask_epi8(packed));
#elif defined(__SSE2__)
  const auto same = [&](int at) {
    return _mm_cmpeq_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group + at)),
                           _mm_loadu_si128(reinterpret_cast<const __m128i*>(group + at - 1)));
  };
  const uint32_t low = _mm_movemask_epi8(_mm_packs_epi16(same(0), same(8)));
  const uint32_t high = _mm_movemask_epi8(_mm_packs_epi16(same(16), same(24)));
  starts = ~(low | high << 16);
#else
  for (int i = 1; i < kGroup; ++i) starts |= static_cast<uint32_t>(group[i] != group[i - 1]) << i;
#endif
  return starts | 1;
}

void count_few(const PixelRange& a) {
  static_assert(kConfusionTables == 4);
  constexpr int kManyRuns = 8;  // with more runs, counting pixel by pixel is faster
  const int64_t length = a.cells.size();
  uint32_t* __restrict t0 = a.tables;
  uint32_t* __restrict t1 = t0 + length;
  uint32_t* __restrict t2 = t1 + length;
  uint32_t* __restrict t3 = t2 + length;
  alignas(64) uint16_t padded[kGroup + kBlock];
  uint16_t* block = padded + kGroup;
  block[-1] = 0;
  for (int64_t done = 0; done < a.size; done += kBlock) {
    const int64_t count = a.size - done < kBlock ? a.size - done : kBlock;
    cells_of_block(a, done, count, block);
    int64_t i = 0;
    for (; i + kGroup <= count; i += kGroup) {
      const uint16_t* group = block + i;
      uint32_t starts = starts_of_runs(group);
      const int runs = __builtin_popcount(starts);
      if (runs <= 2) {
        // The usual case, without a branch between one run and two. The bit after the group ends a
        // single run.
        const int end = __builtin_ctzll((starts & ~uint64_t{1}) | uint64_t{1} << kGroup);
        t0[group[0]] += end;
        t1[group[kGroup - 1]] += kGroup - end;
        continue;
      }
      if (runs <= kManyRuns) {
        int start = 0;
        while (starts &= starts - 1) {
          const int next = __builtin_ctz(starts);
          t0[group[start]] += next - start;
          start = next;
        }
        t0[group[start]] += kGroup - start;
        continue;
      }
      for (int at = 0; at < kGroup; at += 4) {
        uint64_t word;
        __builtin_memcpy(&word, group + at, sizeof(word));
        ++t0[word & 0xffff];
        ++t1[(word >> 16) & 0xffff];
        ++t2[(word >> 32) & 0xffff];
        ++t3[word >> 48];
      }
    }
    for (; i < count; ++i) ++t0[block[i]];
  }
}

void count_many(const PixelRange& a) {
  uint32_t block[kBlock];
  for (int64_t done = 0; done < a.size; done += kBlock) {
    const int64_t count = a.size - done < kBlock ? a.size - done : kBlock;
    cells_of_block(a, done, count, block);
    for (int64_t i = 0; i < count; ++i) ++a.tables[block[i]];
  }
}

}  // namespace

void count_cells(const PixelRange& a) {
  if (a.cells.size() <= kConfusionFewCells)
    count_few(a);
  else
    count_many(a);
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
