// A tile of up to kTile positions of one image as [C, kTile] rows in the accumulation type, read in place where the
// layout allows. Channels-last tiles are transposed, half types widened and other strides gathered, a tile at a time:
// no copy of the whole map is ever made.
#pragma once

#include "feature_map.h"
#include "global_features.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Vectors that hold n positions.
template <class A>
INFOSEG_INLINE int vectors_of(int64_t n) {
  return static_cast<int>((n + Lanes<A>::W - 1) / Lanes<A>::W);
}

template <class E, class A>
struct FeatureTiles {
  FeatureMap map;
  int64_t P, tiles;
  bool flat;

  explicit FeatureTiles(const FeatureMap& f) : map(f), P(f.h * f.w), tiles((P + kTile - 1) / kTile), flat(is_flat(f)) {}

  int64_t size(int64_t tile) const { return tile + 1 < tiles ? int64_t{kTile} : P - tile * kTile; }

  const E* at(int64_t b, int64_t p) const {
    const int64_t offset = flat ? p * map.stride_w : (p / map.w) * map.stride_h + (p % map.w) * map.stride_w;
    return static_cast<const E*>(map.data) + b * map.stride_b + offset;
  }

  bool in_place(int64_t tile) const {
    return sizeof(E) == sizeof(A) && flat && map.stride_w == 1 && size(tile) % Lanes<A>::W == 0;
  }

  // A position's channels lie in whole vectors: products along the channels need no transposed tile.
  bool channel_rows() const {
    return sizeof(E) == sizeof(A) && flat && map.stride_c == 1 && map.C % Lanes<A>::W == 0;
  }

  // Where they lie, stride_w apart; for channel_rows().
  A* channels_at(int64_t b, int64_t tile) const { return reinterpret_cast<A*>(const_cast<E*>(at(b, tile * kTile))); }

  // The memory that read() will touch, where it lies in rows.
  NextTile lines(int64_t b, int64_t tile) const {
    if (b >= map.B || tile >= tiles || !flat || map.stride_w != 1) return none();
    const int64_t bytes = size(tile) * static_cast<int64_t>(sizeof(E));
    return {reinterpret_cast<const char*>(at(b, tile * kTile)), map.stride_c * static_cast<int64_t>(sizeof(E)), map.C,
            (bytes + 63) / 64};
  }

  NextTile none() const { return {static_cast<const char*>(map.data), 0, 0, 0}; }

  // The tile as rows: where it lies, or in `copy`, `stride` apart.
  TileRows<A> read(int64_t b, int64_t tile, A* copy, int64_t stride = kTile) const {
    const int64_t n = size(tile), padded = vectors_of<A>(n) * Lanes<A>::W;
    if constexpr (sizeof(E) == sizeof(A))
      if (in_place(tile)) return {reinterpret_cast<const A*>(at(b, tile * kTile)), map.stride_c};
    if (flat && map.stride_w == 1) {
      const E* from = at(b, tile * kTile);
      for (int64_t c = 0; c < map.C; ++c) {
        widen_row<A, E>(copy + c * stride, from + c * map.stride_c, n);
        for (int64_t t = n; t < padded; ++t) copy[c * stride + t] = 0;
      }
    } else if (sizeof(E) == sizeof(A) && flat && map.stride_c == 1) {
      if constexpr (sizeof(E) == sizeof(A))
        transpose<A>(copy, stride, reinterpret_cast<const A*>(at(b, tile * kTile)), map.stride_w, map.C, n);
      for (int64_t c = 0; c < map.C; ++c)
        for (int64_t t = n; t < padded; ++t) copy[c * stride + t] = 0;
    } else {
      for (int64_t t = 0; t < padded; ++t) {
        if (t >= n) {
          for (int64_t c = 0; c < map.C; ++c) copy[c * stride + t] = 0;
          continue;
        }
        const E* from = at(b, tile * kTile + t);
        for (int64_t c = 0; c < map.C; ++c) copy[c * stride + t] = widen<A>(from[c * map.stride_c]);
      }
    }
    return {copy, stride};
  }

  // Where rows of df may be written as they come; null where they must go through write().
  A* place(int64_t b, int64_t tile) const {
    if constexpr (sizeof(E) == sizeof(A))
      if (in_place(tile)) return reinterpret_cast<A*>(const_cast<E*>(at(b, tile * kTile)));
    return nullptr;
  }

  // A map too large for a core's own cache is written past it: that spares reading every line before it is overwritten.
  bool streams(const A* place) const {
    constexpr int64_t kLargeBytes = 2 << 20;
    return map.B * map.C * P * static_cast<int64_t>(sizeof(A)) >= kLargeBytes && map.stride_c % Lanes<A>::W == 0 &&
           reinterpret_cast<uintptr_t>(place) % kVectorBytes == 0;
  }

  // Rows c0 .. c0+n_c of df from [n_c, kTile] numbers.
  void write(int64_t b, int64_t tile, int64_t c0, int64_t n_c, const A* from) const {
    const int64_t n = size(tile);
    if (flat && map.stride_w == 1) {
      E* to = const_cast<E*>(at(b, tile * kTile)) + c0 * map.stride_c;
      for (int64_t c = 0; c < n_c; ++c) narrow_row<E, A>(to + c * map.stride_c, from + c * kTile, n);
    } else if (sizeof(E) == sizeof(A) && flat && map.stride_c == 1) {
      if constexpr (sizeof(E) == sizeof(A))
        transpose<A>(reinterpret_cast<A*>(const_cast<E*>(at(b, tile * kTile))) + c0, map.stride_w, from, kTile, n, n_c);
    } else {
      for (int64_t t = 0; t < n; ++t) {
        E* to = const_cast<E*>(at(b, tile * kTile + t)) + c0 * map.stride_c;
        for (int64_t c = 0; c < n_c; ++c) to[c * map.stride_c] = narrow<E>(from[c * kTile + t]);
      }
    }
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
