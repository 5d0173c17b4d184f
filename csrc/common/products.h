// The three matrix products of a tile of positions, on register tiles:
//   scores  z[r, t]  = sum_c G[r, c] f[c, t] + g0[r]
//   df[c, t]         = sum_r G[r, c] a[r, t]
//   dG[r, c]        += sum_t a[r, t] f[c, t]
// In each, one operand is broadcast number by number and the other is read in vectors, so all three
// are one kernel:
//   out[m, n] = sum_k left[k, m] right[k, n].
#pragma once

#include "common/simd.h"

namespace infoseg {
namespace INFOSEG_ISA {

constexpr int kTile = 64;  // positions in a tile: two [.., kTile] operands and a block of the third stay in L1

// The accumulators leave registers for a row of the vector operand and one broadcast.
constexpr int kBlockVectors = kVectorRegisters == 32 ? 4 : 2;
constexpr int kBlockRows = kVectorRegisters == 32 ? 6 : 5;

template <int kNumber>
struct Constant {
  static constexpr int kValue = kNumber;
};

// Cache lines to prefetch while a product runs: two neighbours in each step of its inner loop,
// `stride` bytes apart.
struct Ahead {
  const char* line;
  int64_t stride;
};

// The cache lines of the tile that is read next. They are prefetched in pairs, down the rows, while
// other products run. The rows lie too far apart for the hardware to prefetch them.
struct NextTile {
  const char* first = nullptr;
  int64_t stride = 0, rows = 0, lines_a_row = 0;  // stride in bytes
  int64_t asked = 0;                              // pairs of lines that were prefetched
  // The lines to prefetch in a product of `steps` steps.
  Ahead take(int64_t steps) {
    const int64_t pair = rows ? asked / rows : 0, row = asked - pair * rows;
    if (2 * pair >= lines_a_row) return {first, 0};
    asked += steps < rows - row ? steps : rows - row;
    return {first + 128 * pair + row * stride, stride};
  }
};

INFOSEG_INLINE Ahead nothing_ahead(const void* here) { return {static_cast<const char*>(here), 0}; }

// sum + x y. With kPairs, the 32 bits of each float hold a pair of bfloat16, and both products are
// added.
template <bool kPairs, class T>
INFOSEG_INLINE Vec<T> multiply_add(Vec<T> sum, Vec<T> x, Vec<T> y) {
#if defined(__AVX512BF16__)
  if constexpr (kPairs && sizeof(T) == 4) return (Vec<T>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#endif
  return sum + x * y;
}

// Rows of numbers, `stride` apart: a tile, or a factor of a product.
template <class A>
struct TileRows {
  const A* data;
  int64_t stride;
};

// The first value of the sums of a product: zero without data, else rows, or with stride 0 a number
// for each row.
template <class T>
struct Start {
  const T* data = nullptr;
  int64_t stride = 0;
  Start at(int64_t row, int64_t column) const {
    if (!data) return {};
    return {data + (stride ? row * stride + column : row), stride};
  }
};

// Where a product writes: rows `stride` apart, past the caches if wanted.
template <class T>
struct Out {
  T* data;
  int64_t stride;
  bool past_caches = false;
};

// The left factor is left[k, m] = left[m * stride + k] with Left::rows, or left[k * stride + m] with
// Left::columns. With kPack, the rows of right are also copied to `pack`, for the products that
// follow.
enum class Left { rows, columns };

template <class T, int kRows, int kVectors, Left kLeft, bool kPack, bool kPairs>
static inline void product_block(int64_t n_k, TileRows<T> left, TileRows<T> right, Start<T> start, Out<T> out,
                                 Ahead ahead, Out<T> pack) {
  constexpr int W = Lanes<T>::W;
  Vec<T> sum[kRows][kVectors];
#define INFOSEG_EACH_SUM(statement)                                                                                    \
  _Pragma("GCC unroll 16") for (int m = 0; m < kRows; ++m) _Pragma("GCC unroll 16") for (int v = 0; v < kVectors; ++v) \
      statement
  if (!start.data)
    INFOSEG_EACH_SUM(sum[m][v] = Vec<T>{};)
  else if (start.stride)
    INFOSEG_EACH_SUM(sum[m][v] = load<T>(start.data + m * start.stride + v * W);)
  else
    INFOSEG_EACH_SUM(sum[m][v] = broadcast<T>(start.data[m]);)
  for (int64_t k = 0; k < n_k; ++k) {
    Vec<T> row[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) row[v] = load<T>(right.data + v * W);
    if (kPack) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) store<T>(pack.data + v * W, row[v]);
      pack.data += pack.stride;
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const Vec<T> x = broadcast<T>(left.data[kLeft == Left::rows ? m * left.stride : m]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[m][v] = multiply_add<kPairs, T>(sum[m][v], x, row[v]);
    }
    // Into the second-level cache: in the first level the rows of a tile would evict one another.
    __builtin_prefetch(ahead.line, 0, 2);
    __builtin_prefetch(ahead.line + 64, 0, 2);
    ahead.line += ahead.stride;
    left.data += kLeft == Left::rows ? 1 : left.stride;
    right.data += right.stride;
  }
  if (out.past_caches)
    INFOSEG_EACH_SUM(stream<T>(out.data + m * out.stride + v * W, sum[m][v]);)
  else
    INFOSEG_EACH_SUM(store<T>(out.data + m * out.stride + v * W, sum[m][v]);)
#undef INFOSEG_EACH_SUM
}

template <class T, int kVectors, Left kLeft, bool kPack, bool kPairs>
static inline void product_rows(int64_t rows, int64_t n_k, TileRows<T> left, TileRows<T> right, Start<T> start,
                                Out<T> out, Ahead ahead, Out<T> pack) {
#define INFOSEG_ROWS(n) \
  case n:               \
    return product_block<T, n, kVectors, kLeft, kPack, kPairs>(n_k, left, right, start, out, ahead, pack)
  switch (rows) {
    INFOSEG_ROWS(1);
    INFOSEG_ROWS(2);
    INFOSEG_ROWS(3);
    INFOSEG_ROWS(4);
    INFOSEG_ROWS(5);
#if defined(__AVX512F__)
    INFOSEG_ROWS(6);
#endif
  }
#undef INFOSEG_ROWS
}

// out[m, 0..vectors*W) for one block of rows; the vectors are taken kBlockVectors at a time.
template <class T, Left kLeft, bool kPack, bool kPairs>
static inline void product_strip(int64_t rows, int vectors, int64_t n_k, TileRows<T> left, TileRows<T> right,
                                 Start<T> start, Out<T> out, Ahead ahead, Out<T> pack) {
  constexpr int W = Lanes<T>::W;
  const auto block = [&](auto wide) {
    product_rows<T, decltype(wide)::kValue, kLeft, kPack, kPairs>(rows, n_k, left, right, start, out, ahead, pack);
  };
  for (; vectors >= kBlockVectors; vectors -= kBlockVectors) {
    constexpr int kColumns = kBlockVectors * W;
    block(Constant<kBlockVectors>{});
    ahead = nothing_ahead(right.data);
    right.data += kColumns;
    out.data += kColumns;
    if (start.stride) start.data += kColumns;
    if (kPack) pack.data += kColumns;
  }
  if constexpr (kBlockVectors > 2) {
    if (vectors == 3) return block(Constant<3>{});
    if (vectors == 2) return block(Constant<2>{});
  }
  if (vectors == 1) block(Constant<1>{});
}

// Rows divided evenly into blocks of at most kBlockRows: block i is [begin(i), begin(i + 1)).
struct RowBlocks {
  int64_t rows, count;
  static RowBlocks of(int64_t rows) { return {rows, (rows + kBlockRows - 1) / kBlockRows}; }
  int64_t begin(int64_t i) const { return rows * i / count; }
};

// out[m, 0..vectors*W) for all rows m. With `pack`, right is also copied there.
template <class T, Left kLeft, bool kPairs = false>
INFOSEG_CALLED static void product(int64_t rows, int vectors, int64_t n_k, TileRows<T> left, TileRows<T> right,
                                   Start<T> start, Out<T> out, NextTile& next, Out<T> pack = {}) {
  const RowBlocks blocks = RowBlocks::of(rows);
  for (int64_t i = 0; i < blocks.count; ++i) {
    const int64_t r = blocks.begin(i), n = blocks.begin(i + 1) - r;
    const TileRows<T> left_r{left.data + (kLeft == Left::rows ? r * left.stride : r), left.stride};
    const Out<T> out_r{out.data + r * out.stride, out.stride, out.past_caches};
    const Ahead ahead = next.take(n_k);
    if constexpr (kLeft == Left::rows && !kPairs)
      if (pack.data) {
        product_strip<T, kLeft, true, kPairs>(n, vectors, n_k, left_r, right, start.at(r, 0), out_r, ahead, pack);
        right = {pack.data, pack.stride};
        pack.data = nullptr;
        continue;
      }
    product_strip<T, kLeft, false, kPairs>(n, vectors, n_k, left_r, right, start.at(r, 0), out_r, ahead, {});
  }
}

// ---------------------------------------------------------------- transposes

// to[i, j] = from[j, i] for i < rows, j < columns.
template <class T>
static inline void transpose_plain(T* __restrict to, int64_t to_stride, const T* __restrict from, int64_t from_stride,
                                   int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[i * to_stride + j] = from[j * from_stride + i];
}

#if defined(__AVX512F__)
// 16 x 16 numbers. Each source row is one cache line and is loaded once: rows a power of two apart
// fall into the same cache set, so a second load of a line would miss.
INFOSEG_INLINE void transpose_16(float* __restrict to, int64_t to_stride, const float* __restrict from,
                                 int64_t from_stride) {
  __m512 pair[16], quad[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    const __m512 a = _mm512_loadu_ps(from + i * from_stride), b = _mm512_loadu_ps(from + (i + 1) * from_stride);
    pair[i] = _mm512_unpacklo_ps(a, b);
    pair[i + 1] = _mm512_unpackhi_ps(a, b);
  }
  // Column e of the 4 x 4 blocks of rows i .. i + 3 goes to quad[i + e].
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(pair[i]), b = _mm512_castps_pd(pair[i + 1]);
    const __m512d c = _mm512_castps_pd(pair[i + 2]), d = _mm512_castps_pd(pair[i + 3]);
    quad[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    quad[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    quad[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    quad[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  // Quarter q of quad[e], quad[4 + e], quad[8 + e], quad[12 + e] is column 4 q + e.
#pragma GCC unroll 4
  for (int e = 0; e < 4; ++e) {
    const __m512 low = _mm512_shuffle_f32x4(quad[e], quad[4 + e], 0x88),
                 high = _mm512_shuffle_f32x4(quad[8 + e], quad[12 + e], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(quad[e], quad[4 + e], 0xdd),
                 odd_high = _mm512_shuffle_f32x4(quad[8 + e], quad[12 + e], 0xdd);
    _mm512_storeu_ps(to + e * to_stride, _mm512_shuffle_f32x4(low, high, 0x88));
    _mm512_storeu_ps(to + (4 + e) * to_stride, _mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_ps(to + (8 + e) * to_stride, _mm512_shuffle_f32x4(low, high, 0xdd));
    _mm512_storeu_ps(to + (12 + e) * to_stride, _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
  }
}
#elif defined(__AVX2__)
// 8 x 8 numbers, as above with halves.
INFOSEG_INLINE void transpose_8(float* __restrict to, int64_t to_stride, const float* __restrict from,
                                int64_t from_stride) {
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
    __m256 row[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float* p = from + i * from_stride + 4 * q;
      row[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * from_stride), 1);
    }
    const __m256 a = _mm256_unpacklo_ps(row[0], row[1]), b = _mm256_unpackhi_ps(row[0], row[1]);
    const __m256 c = _mm256_unpacklo_ps(row[2], row[3]), d = _mm256_unpackhi_ps(row[2], row[3]);
    float* out = to + 4 * q * to_stride;
    _mm256_storeu_ps(out, _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(c))));
    _mm256_storeu_ps(out + to_stride, _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(c))));
    _mm256_storeu_ps(out + 2 * to_stride,
                     _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(b), _mm256_castps_pd(d))));
    _mm256_storeu_ps(out + 3 * to_stride,
                     _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(b), _mm256_castps_pd(d))));
  }
}
#endif

template <class T>
static inline void transpose(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows,
                             int64_t columns) {
  int64_t i = 0;
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    constexpr int64_t n = kVectorBytes / 4;
    const int64_t whole = columns / n * n;
    for (; i + n <= rows; i += n) {
      for (int64_t j = 0; j < whole; j += n) {
#if defined(__AVX512F__)
        transpose_16((float*)(to + i * to_stride + j), to_stride, (const float*)(from + j * from_stride + i),
                     from_stride);
#else
        transpose_8((float*)(to + i * to_stride + j), to_stride, (const float*)(from + j * from_stride + i),
                    from_stride);
#endif
      }
      if (whole < columns)
        transpose_plain(to + i * to_stride + whole, to_stride, from + whole * from_stride + i, from_stride, n,
                        columns - whole);
    }
  }
#endif
  if (i < rows) transpose_plain(to + i * to_stride, to_stride, from + i, from_stride, rows - i, columns);
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
