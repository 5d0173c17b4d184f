// A tile of up to kTile positions of one image as [C, kTile] rows in the accumulation type. It is
// read in place where the layout allows. Channels-last tiles are transposed, half types widened and
// other strides gathered, one tile at a time: no copy of the whole map is made.
#pragma once

#include "common/feature_map.h"
#include "common/global_features.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Vectors that hold n positions.
template <class A>
INFOSEG_INLINE int vectors_of(int64_t n) {
  return static_cast<int>((n + Lanes<A>::W - 1) / Lanes<A>::W);
}

template <class A>
struct FeatureTiles {
  FeatureMap map;
  int64_t P, tiles;
  bool flat;         // position p lies at p * stride_w
  bool accumulated;  // elements are of type A

  explicit FeatureTiles(const FeatureMap& f)
      : map(f),
        P(f.h * f.w),
        tiles((P + kTile - 1) / kTile),
        flat(f.h == 1 || f.stride_h == f.w * f.stride_w),
        accumulated(item_size(f.dtype) == sizeof(A)) {}

  int64_t size(int64_t tile) const { return tile + 1 < tiles ? int64_t{kTile} : P - tile * kTile; }

  // Where position p of image b begins, in elements.
  int64_t offset(int64_t b, int64_t p) const {
    return b * map.stride_b + (flat ? p * map.stride_w : (p / map.w) * map.stride_h + (p % map.w) * map.stride_w);
  }

  bool in_place(int64_t tile) const {
    return accumulated && flat && map.stride_w == 1 && size(tile) % Lanes<A>::W == 0;
  }

  // The channels of a position lie in whole vectors: products along the channels need no transposed
  // tile.
  bool channel_rows() const { return accumulated && flat && map.stride_c == 1 && map.C % Lanes<A>::W == 0; }

  // The tile where it lies; the elements are of type A.
  A* at(int64_t b, int64_t tile) const { return static_cast<A*>(map.data) + offset(b, tile * kTile); }

  // The memory that read() will touch, where it lies in rows.
  NextTile lines(int64_t b, int64_t tile) const {
    if (b >= map.B || tile >= tiles || !flat || map.stride_w != 1) return none();
    const int64_t item = item_size(map.dtype);
    return {static_cast<const char*>(map.data) + offset(b, tile * kTile) * item, map.stride_c * item, map.C,
            (size(tile) * item + 63) / 64};
  }

  NextTile none() const { return {static_cast<const char*>(map.data), 0, 0, 0}; }

  // The tile as rows: where it lies, or in `copy`, `stride` apart.
  TileRows<A> read(int64_t b, int64_t tile, A* copy, int64_t stride = kTile) const {
    if (in_place(tile)) return {at(b, tile), map.stride_c};
    const int64_t n = size(tile), padded = vectors_of<A>(n) * Lanes<A>::W;
    by_element<A>(map.dtype, map.data, [&](const auto* data) { copy_tile(data, b, tile, n, copy, stride); });
    for (int64_t c = 0; c < map.C; ++c)
      for (int64_t t = n; t < padded; ++t) copy[c * stride + t] = 0;
    return {copy, stride};
  }

  // Where rows of df may be written as they come; null where they must go through write().
  A* place(int64_t b, int64_t tile) const { return in_place(tile) ? at(b, tile) : nullptr; }

  // A map that is too large for a core's own cache is written past it. That spares reading every
  // line before it is overwritten.
  bool streams(const A* place) const {
    constexpr int64_t kLargeBytes = 2 << 20;
    return map.B * map.C * P * static_cast<int64_t>(sizeof(A)) >= kLargeBytes && map.stride_c % Lanes<A>::W == 0 &&
           reinterpret_cast<uintptr_t>(place) % kVectorBytes == 0;
  }

  // Writes rows c0 .. c0+n_c of df from [n_c, kTile] numbers.
  void write(int64_t b, int64_t tile, int64_t c0, int64_t n_c, const A* from) const {
    by_element<A>(map.dtype, map.data, [&](auto* data) { write_tile(data + c0 * map.stride_c, b, tile, n_c, from); });
  }

 private:
  // Positions of half types are rows of pairs of channels.
  bool channel_pairs() const { return flat && map.stride_c == 1 && map.stride_w % 2 == 0 && map.C % 2 == 0; }

  template <class E>
  void copy_tile(const E* data, int64_t b, int64_t tile, int64_t n, A* copy, int64_t stride) const {
    const E* from = data + offset(b, tile * kTile);
    if (flat && map.stride_w == 1) {
      for (int64_t c = 0; c < map.C; ++c) widen_row<A, E>(copy + c * stride, from + c * map.stride_c, n);
      return;
    }
    if constexpr (sizeof(E) == sizeof(A))
      if (flat && map.stride_c == 1) return transpose<A>(copy, stride, from, map.stride_w, map.C, n);
    if constexpr (sizeof(E) == 2)
      if (channel_pairs()) {
        // Pairs of channels move as one number. They are divided from the last pair on, where they lie.
        transpose<float>(copy, stride, reinterpret_cast<const float*>(from), map.stride_w / 2, map.C / 2, n);
        for (int64_t i = map.C / 2 - 1; i >= 0; --i)
          for (int64_t t = 0; t < n; ++t) {
            const uint32_t pair = bits_of(copy[i * stride + t]);
            copy[2 * i * stride + t] = widen<A>(E{static_cast<uint16_t>(pair)});
            copy[(2 * i + 1) * stride + t] = widen<A>(E{static_cast<uint16_t>(pair >> 16)});
          }
        return;
      }
    for (int64_t t = 0; t < n; ++t) {
      from = data + offset(b, tile * kTile + t);
      for (int64_t c = 0; c < map.C; ++c) copy[c * stride + t] = widen<A>(from[c * map.stride_c]);
    }
  }

  template <class E>
  void write_tile(E* data, int64_t b, int64_t tile, int64_t n_c, const A* from) const {
    const int64_t n = size(tile);
    E* to = data + offset(b, tile * kTile);
    if (flat && map.stride_w == 1) {
      for (int64_t c = 0; c < n_c; ++c) narrow_row<E, A>(to + c * map.stride_c, from + c * kTile, n);
      return;
    }
    if constexpr (sizeof(E) == sizeof(A))
      if (flat && map.stride_c == 1) return transpose<A>(to, map.stride_w, from, kTile, n, n_c);
    if constexpr (sizeof(E) == 2)
      if (channel_pairs() && n_c % 2 == 0) {
        constexpr int64_t kPairs = 16;
        float pairs[kPairs * kTile];
        for (int64_t first = 0; first < n_c / 2; first += kPairs) {
          const int64_t count = n_c / 2 - first < kPairs ? n_c / 2 - first : kPairs;
          for (int64_t i = 0; i < count; ++i) {
            const A *low = from + 2 * (first + i) * kTile, *high = low + kTile;
            for (int64_t t = 0; t < n; ++t)
              pairs[i * kTile + t] =
                  float_of(narrow<E>(low[t]).bits | static_cast<uint32_t>(narrow<E>(high[t]).bits) << 16);
          }
          transpose<float>(reinterpret_cast<float*>(to) + first, map.stride_w / 2, pairs, kTile, n, count);
        }
        return;
      }
    for (int64_t t = 0; t < n; ++t) {
      to = data + offset(b, tile * kTile + t);
      for (int64_t c = 0; c < n_c; ++c) to[c * map.stride_c] = narrow<E>(from[c * kTile + t]);
    }
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
