// Of a few tiles [rows, kTile] and one more, position by position: inner products down the rows, and weighted sums.
#pragma once

#include "products.h"

namespace infoseg {
namespace INFOSEG_ISA {

constexpr int kTogether = 4;  // tiles whose sums stay in registers

template <class A, int kTiles, int kVectors>
static inline void inner_products_block(int64_t rows, const A* y, const A* const* x, A* const* out) {
  constexpr int W = Lanes<A>::W;
  Vec<A> sum[kTiles][kVectors];
  for (int j = 0; j < kTiles; ++j)
    for (int v = 0; v < kVectors; ++v) sum[j][v] = Vec<A>{};
  for (int64_t i = 0; i < rows * kTile; i += kTile)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vec<A> y_v = load<A>(y + i + v * W);
#pragma GCC unroll 4
      for (int j = 0; j < kTiles; ++j) sum[j][v] += load<A>(x[j] + i + v * W) * y_v;
    }
  for (int j = 0; j < kTiles; ++j)
    for (int v = 0; v < kVectors; ++v) store<A>(out[j] + v * W, sum[j][v]);
}

template <class A, int kTiles, int kVectors, bool kAdd, bool kMasked>
static inline void weighted_sum_block(int64_t rows, const A* const* x, const A* const* weights, A* out) {
  constexpr int W = Lanes<A>::W;
  Vec<A> weight[kTiles][kVectors];
  for (int j = 0; j < kTiles; ++j)
    for (int v = 0; v < kVectors; ++v) weight[j][v] = load<A>(weights[j] + v * W);
  for (int64_t i = 0; i < rows * kTile; i += kTile)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec<A> sum = kAdd ? load<A>(out + i + v * W) : Vec<A>{};
#pragma GCC unroll 4
      for (int j = 0; j < kTiles; ++j) {
        const Vec<A> x_v = load<A>(x[j] + i + v * W);
        sum += kMasked ? select<A>(weight[j][v] != Vec<A>{}, weight[j][v] * x_v, Vec<A>{}) : weight[j][v] * x_v;
      }
      store<A>(out + i + v * W, sum);
    }
}

template <int kNumber>
struct Constant {
  static constexpr int kValue = kNumber;
};

// Calls block(vectors, v) for runs of kBlockVectors vectors and then single ones; `vectors` is a Constant.
template <class F>
static inline void by_vectors(int vectors, const F& block) {
  int v = 0;
  for (; v + kBlockVectors <= vectors; v += kBlockVectors) block(Constant<kBlockVectors>{}, v);
  for (; v < vectors; ++v) block(Constant<1>{}, v);
}

// Calls block(count, first) for runs of kTogether tiles and then what is left.
template <class F>
static inline void by_tiles(int64_t tiles, const F& block) {
  int64_t i = 0;
  for (; i + kTogether <= tiles; i += kTogether) block(Constant<kTogether>{}, i);
  switch (tiles - i) {
    case 3:
      return block(Constant<3>{}, i);
    case 2:
      return block(Constant<2>{}, i);
    case 1:
      return block(Constant<1>{}, i);
  }
}

// out(i)[t] = sum_r x(i)[r, t] y[r, t] for each of so many tiles.
template <class A, class X, class O>
static inline void inner_products(int64_t tiles, int64_t rows, int vectors, const A* y, const X& x, const O& out) {
  constexpr int W = Lanes<A>::W;
  by_tiles(tiles, [&](auto count, int64_t first) {
    constexpr int kTiles = decltype(count)::kValue;
    by_vectors(vectors, [&](auto wide, int v) {
      const A* from[kTiles];
      A* to[kTiles];
      for (int j = 0; j < kTiles; ++j) from[j] = x(first + j) + v * W, to[j] = out(first + j) + v * W;
      inner_products_block<A, kTiles, decltype(wide)::kValue>(rows, y + v * W, from, to);
    });
  });
}

// out[r, t] = sum_i weight(i)[t] x(i)[r, t]. With `masked`, where a weight is 0 its tile does not count, even if it is NaN.
template <class A, class X, class Y>
static inline void weighted_sum(int64_t tiles, int64_t rows, int vectors, const X& x, const Y& weight, bool masked,
                                A* out) {
  constexpr int W = Lanes<A>::W;
  by_tiles(tiles, [&](auto count, int64_t first) {
    constexpr int kTiles = decltype(count)::kValue;
    by_vectors(vectors, [&](auto wide, int v) {
      constexpr int kVectors = decltype(wide)::kValue;
      const A *from[kTiles], *weights[kTiles];
      for (int j = 0; j < kTiles; ++j) from[j] = x(first + j) + v * W, weights[j] = weight(first + j) + v * W;
      A* to = out + v * W;
      if (first == 0)
        masked ? weighted_sum_block<A, kTiles, kVectors, false, true>(rows, from, weights, to)
               : weighted_sum_block<A, kTiles, kVectors, false, false>(rows, from, weights, to);
      else
        masked ? weighted_sum_block<A, kTiles, kVectors, true, true>(rows, from, weights, to)
               : weighted_sum_block<A, kTiles, kVectors, true, false>(rows, from, weights, to);
    });
  });
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
