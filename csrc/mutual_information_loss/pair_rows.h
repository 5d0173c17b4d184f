// Inner products of a few tiles with one more tile, position by position, and weighted sums of
// tiles. These load more than they multiply, so a tile that is used twice is read in columns of one
// cache line, which stay in the first-level cache.
#pragma once

#include "common/products.h"

namespace infoseg {
namespace INFOSEG_ISA {

// The distance of the rows of such tiles: a cache line more than kTile numbers, so that a column
// uses many cache sets.
template <class A>
constexpr int kApart = kTile + 64 / static_cast<int>(sizeof(A));

constexpr int kLineVectors = 64 / kVectorBytes;
constexpr int kTogether = kVectorRegisters == 32 ? 4 : 2;  // tiles whose sums stay in registers
constexpr int kParts = kVectorRegisters == 32 ? 4 : 1;     // independent sums of each tile, to hide the latency

// Calls block(vectors, v) for groups of kBlockVectors vectors and then for single ones; `vectors`
// is a Constant.
template <class F>
static inline void by_vectors(int vectors, const F& block) {
  int v = 0;
  for (; v + kBlockVectors <= vectors; v += kBlockVectors) block(Constant<kBlockVectors>{}, v);
  for (; v < vectors; ++v) block(Constant<1>{}, v);
}

// Calls block(count, first) for groups of kTogether tiles and then for the rest.
template <class F>
static inline void by_tiles(int64_t tiles, const F& block) {
  int64_t i = 0;
  for (; i + kTogether <= tiles; i += kTogether) block(Constant<kTogether>{}, i);
  if constexpr (kTogether > 2) {
    if (tiles - i == 3) return block(Constant<3>{}, i);
    if (tiles - i == 2) return block(Constant<2>{}, i);
  }
  if (tiles - i == 1) block(Constant<1>{}, i);
}

template <class A, int kTiles>
static inline void inner_products_block(int64_t rows, const A* y, const A* const* x, int64_t column, A* const* out) {
  Vec<A> sum[kTiles][kParts];
  const A* from[kTiles];
  for (int j = 0; j < kTiles; ++j) {
    from[j] = x[j] + column;
    for (int part = 0; part < kParts; ++part) sum[j][part] = Vec<A>{};
  }
  int64_t i = 0;
  for (; i + kParts <= rows; i += kParts)
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const Vec<A> y_i = load<A>(y + (i + part) * kApart<A>);
#pragma GCC unroll 4
      for (int j = 0; j < kTiles; ++j) sum[j][part] += load<A>(from[j] + (i + part) * kApart<A>) * y_i;
    }
  for (; i < rows; ++i)
    for (int j = 0; j < kTiles; ++j) sum[j][0] += load<A>(from[j] + i * kApart<A>) * load<A>(y + i * kApart<A>);
  for (int j = 0; j < kTiles; ++j) {
    for (int part = 1; part < kParts; ++part) sum[j][0] += sum[j][part];
    store<A>(out[j] + column, sum[j][0]);
  }
}

// out[j][t] = sum_r x[j][r, t] y[r, t] for each of `tiles` tiles [rows, kApart], at W positions
// from `column` on; y begins at that column.
template <class A>
static inline void inner_products(int64_t tiles, int64_t rows, const A* y, const A* const* x, int64_t column,
                                  A* const* out) {
  by_tiles(tiles, [&](auto count, int64_t first) {
    inner_products_block<A, decltype(count)::kValue>(rows, y, x + first, column, out + first);
  });
}

template <class A, int kTiles, int kVectors, bool kAdd, bool kMasked>
static inline void weighted_sum_block(int64_t rows, const A* const* x, const A* const* weights, int64_t column,
                                      A* out) {
  constexpr int W = Lanes<A>::W;
  Vec<A> weight[kTiles][kVectors];
  const A* from[kTiles];
  for (int j = 0; j < kTiles; ++j) {
    from[j] = x[j] + column;
    for (int v = 0; v < kVectors; ++v) weight[j][v] = load<A>(weights[j] + column + v * W);
  }
  for (int64_t i = 0; i < rows * kApart<A>; i += kApart<A>)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      A* to = out + column + i + v * W;
      Vec<A> sum = kAdd ? load<A>(to) : Vec<A>{};
#pragma GCC unroll 4
      for (int j = 0; j < kTiles; ++j) {
        const Vec<A> x_v = load<A>(from[j] + i + v * W);
        sum += kMasked ? select<A>(weight[j][v] != Vec<A>{}, weight[j][v] * x_v, Vec<A>{}) : weight[j][v] * x_v;
      }
      store<A>(to, sum);
    }
}

// out[r, t] = sum_j weights[j][t] x[j][r, t] for `tiles` tiles [rows, kApart] and `vectors` vectors
// of positions from `column` on. With `masked`, a tile does not count where its weight is 0, even
// if it is NaN.
template <class A>
static inline void weighted_sum(int64_t tiles, int64_t rows, int vectors, const A* const* x, const A* const* weights,
                                int64_t column, bool masked, A* out) {
  constexpr int W = Lanes<A>::W;
  by_tiles(tiles, [&](auto count, int64_t first) {
    by_vectors(vectors, [&](auto wide, int v) {
      constexpr int kTiles = decltype(count)::kValue, kVectors = decltype(wide)::kValue;
      const auto stored = masked ? weighted_sum_block<A, kTiles, kVectors, false, true>
                                 : weighted_sum_block<A, kTiles, kVectors, false, false>;
      const auto added = masked ? weighted_sum_block<A, kTiles, kVectors, true, true>
                                : weighted_sum_block<A, kTiles, kVectors, true, false>;
      (first ? added : stored)(rows, x + first, weights + first, column + v * W, out);
    });
  });
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
