// The confusion count of a range of pixels, block by block: cell numbers (vectorised by the compiler), then counters.
//
// Included by one source per instruction set, inside a namespace of its own; no inline function of the standard library
// may be called here (see linear_sum_assignment_kernel.h).

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

// Whether every label of type U is below `limit`, and the limit in that type otherwise. A negative label, taken as
// unsigned, is large.
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
  // Largest legal label, so that the comparison stays in the label's own type.
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

template <class Cell>
void cells_of_block(Labels pred, Labels target, int64_t begin, int64_t size, const ConfusionCells& cells, Cell* out) {
  switch (pred.type) {
    case LabelType::kUint8:
      rows_of_cells(static_cast<const uint8_t*>(pred.data) + begin, size, cells, out);
      break;
    case LabelType::kInt16:
      rows_of_cells(static_cast<const int16_t*>(pred.data) + begin, size, cells, out);
      break;
    case LabelType::kInt32:
      rows_of_cells(static_cast<const int32_t*>(pred.data) + begin, size, cells, out);
      break;
    case LabelType::kInt64:
      rows_of_cells(static_cast<const int64_t*>(pred.data) + begin, size, cells, out);
      break;
  }
  const void* labels = target.data;
  switch (target.type) {
    case LabelType::kUint8:
      add_columns_of_cells(static_cast<const uint8_t*>(labels) + begin, size, cells, out);
      break;
    case LabelType::kInt16:
      add_columns_of_cells(static_cast<const int16_t*>(labels) + begin, size, cells, out);
      break;
    case LabelType::kInt32:
      add_columns_of_cells(static_cast<const int32_t*>(labels) + begin, size, cells, out);
      break;
    case LabelType::kInt64:
      add_columns_of_cells(static_cast<const int64_t*>(labels) + begin, size, cells, out);
      break;
  }
}

constexpr int64_t kGroup = 32;

// Bit i says that group[i] differs from group[i - 1]; bit 0 is always set. group[-1] must be readable.
uint32_t starts_of_runs(const uint16_t* group) {
  uint32_t starts = 0;
#if defined(__AVX512BW__)
  starts = _mm512_cmpneq_epu16_mask(_mm512_loadu_si512(group), _mm512_loadu_si512(group - 1));
#elif defined(__AVX2__)
  const auto same = [&](int at) {
    return _mm256_cmpeq_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + at)),
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + at - 1)));
  };
  // Packing works within halves: the permutation puts the quarters back in order.
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

void count_few(Labels pred, Labels target, int64_t begin, int64_t size, const ConfusionCells& cells, uint32_t* tables) {
  static_assert(kConfusionTables == 4);
  constexpr int kManyRuns = 8;  // from here on counting pixel by pixel is faster
  const int64_t length = cells.size();
  uint32_t* __restrict t0 = tables;
  uint32_t* __restrict t1 = t0 + length;
  uint32_t* __restrict t2 = t1 + length;
  uint32_t* __restrict t3 = t2 + length;
  alignas(64) uint16_t padded[kGroup + kBlock];
  uint16_t* block = padded + kGroup;
  block[-1] = 0;
  for (int64_t done = 0; done < size; done += kBlock) {
    const int64_t count = size - done < kBlock ? size - done : kBlock;
    cells_of_block(pred, target, begin + done, count, cells, block);
    int64_t i = 0;
    for (; i + kGroup <= count; i += kGroup) {
      const uint16_t* group = block + i;
      uint32_t starts = starts_of_runs(group);
      const int runs = __builtin_popcount(starts);
      if (runs <= 2) {
        // The usual case, without a branch between one run and two. The bit above the group ends a single run.
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

void count_many(Labels pred, Labels target, int64_t begin, int64_t size, const ConfusionCells& cells, uint32_t* table) {
  uint32_t block[kBlock];
  for (int64_t done = 0; done < size; done += kBlock) {
    const int64_t count = size - done < kBlock ? size - done : kBlock;
    cells_of_block(pred, target, begin + done, count, cells, block);
    for (int64_t i = 0; i < count; ++i) ++table[block[i]];
  }
}

void count_cells(Labels pred, Labels target, int64_t begin, int64_t size, const ConfusionCells& cells,
                 uint32_t* tables) {
  if (cells.size() <= kConfusionFewCells)
    count_few(pred, target, begin, size, cells, tables);
  else
    count_many(pred, target, begin, size, cells, tables);
}

}  // namespace
