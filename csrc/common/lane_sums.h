// Sums out[r, c] += sum_t a[r, t] f[c, t] of a few rows r. The sums stay in vector lanes over all
// tiles of an image. The coefficients are transposed, not the features, which are many more. Rows
// form groups of at most W, and each channel of a group has one vector of sums. In a group of W / n
// rows each row has n lanes, for n neighbouring positions:
//   a[r, t] .. a[r, t + n - 1], a[r + 1, t] .. a[r + 1, t + n - 1], ..
// Such a vector is multiplied by n neighbouring features, repeated.
#pragma once

#include "common/feature_tile.h"

namespace infoseg {
namespace INFOSEG_ISA {

// The kN numbers at p, repeated to fill a vector.
template <int kN, class A>
INFOSEG_INLINE Vec<A> repeated(const A* p) {
  constexpr int W = Lanes<A>::W;
  if constexpr (kN == W) return load<A>(p);
  if constexpr (kN == 1) return broadcast<A>(*p);
#if defined(__AVX512F__)
  if constexpr (kN * sizeof(A) == 8) return (Vec<A>)_mm512_set1_pd(*reinterpret_cast<const double*>(p));
  if constexpr (kN * sizeof(A) == 16)
    return (Vec<A>)_mm512_broadcast_f32x4(_mm_loadu_ps(reinterpret_cast<const float*>(p)));
  if constexpr (kN * sizeof(A) == 32)
    return (Vec<A>)_mm512_broadcast_f64x4(_mm256_loadu_pd(reinterpret_cast<const double*>(p)));
#elif defined(__AVX2__)
  if constexpr (kN * sizeof(A) == 8) return (Vec<A>)_mm256_set1_pd(*reinterpret_cast<const double*>(p));
  if constexpr (kN * sizeof(A) == 16) return (Vec<A>)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#endif
  Vec<A> v;
  for (int i = 0; i < W; ++i) v[i] = p[i % kN];
  return v;
}

template <class A>
class LaneSums {
  static constexpr int W = Lanes<A>::W;
  static constexpr int kStrip = kVectorRegisters == 32 ? 24 : 12;  // channels whose sums stay in registers

 public:
  // Numbers of scratch that add() needs.
  static constexpr int64_t scratch_size(int64_t rows) { return kTile * (kStrip + rows + W); }

  // Sums of `rows` rows for each of B images.
  LaneSums(int64_t B, int64_t C, int64_t rows, int threads, bool used)
      : used(used),
        B_(B),
        C_(C),
        rows_(rows),
        groups_(used ? rows / W + 4 : 0),
        count_(used ? split(rows, groups_) : 0),
        sums_(used ? threads * B * count_ * C * W : 0),
        met_(used ? threads * B : 0) {
    for (int64_t i = 0; used && i < threads * B; ++i) met_[i] = 0;
  }

  const bool used;

  // Adds a tile's share, of features [C, stride] and coefficients [rows, kTile].
  template <int kStride = kTile>
  void add(int thread, int64_t b, TileRows<A> f, int64_t positions, const A* coefficients, A* scratch, NextTile& next) {
    A* const sums = sums_of(thread, b);
    if (!met_[thread * B_ + b])
      for (int64_t i = 0; i < count_ * C_ * W; ++i) sums[i] = 0;
    met_[thread * B_ + b] = 1;
    A* const lanes = scratch + kStrip * kTile;
    put_in_lanes(positions, coefficients, lanes);
    for (int64_t c = 0; c < C_; c += kStrip) {
      const int64_t n = C_ - c < kStrip ? C_ - c : kStrip;
      const A* from = f.data + c * f.stride;
      if (f.stride == kStride) {
        add_strip<kStride>(from, n, positions, lanes, sums + c * W, next);
        continue;
      }
      // Rows a power of two apart would evict one another from L1.
      for (int64_t i = 0; i < n; ++i)
        for (int64_t t = 0; t < positions; t += W) store<A>(scratch + i * kTile + t, load<A>(from + i * f.stride + t));
      add_strip<kTile>(scratch, n, positions, lanes, sums + c * W, next);
    }
  }

  // Adds the sums of an image, if it has any, to `to` [rows, to_stride], and clears them.
  template <class To>
  void move_to(int thread, int64_t b, To* to, int64_t to_stride) {
    if (!met_[thread * B_ + b]) return;
    met_[thread * B_ + b] = 0;
    alignas(64) A on_side[W * W];
    for_each_group([&](int64_t i, auto rows, int64_t first) {
      constexpr int kN = W / decltype(rows)::value;
      const A* from = sums_of(thread, b) + i * C_ * W;
      for (int64_t c = 0; c < C_; c += W) {
        const int64_t n = C_ - c < W ? C_ - c : W;
        transpose<A>(on_side, W, from + c * W, W, W, n);
        for (int64_t r = first; r < rows_ && r < first + decltype(rows)::value; ++r)
          for (int p = 0; p < kN; ++p) {
            const A* part = on_side + ((r - first) * kN + p) * W;
            To* row = to + r * to_stride + c;
            for (int64_t j = 0; j < n; ++j) row[j] += part[j];
          }
      }
    });
  }

 private:
  A* sums_of(int thread, int64_t b) const { return sums_ + (thread * B_ + b) * count_ * C_ * W; }

  template <int n>
  struct Rows {
    static constexpr int value = n;
  };

  struct Group {
    int64_t rows, first;
  };

  // Whole vectors first, then one or two groups of a power of two. Every group costs a pass over
  // the features, and empty lanes cost as much as full ones.
  static int64_t split(int64_t rows, Group* groups) {
    int64_t count = 0, first = 0;
    for (; first + W <= rows; first += W) groups[count++] = {W, first};
    for (int64_t left = rows - first; left > 0; left = rows - first) {
      int64_t size = 1;
      while (size < left) size *= 2;
      if (4 * left < 3 * size) size /= 2;
      groups[count++] = {size, first};
      first += size;
    }
    return count;
  }

  // Calls f(number of the group, number of its rows as a type, its first row).
  template <class F>
  void for_each_group(const F& f) const {
    for (int64_t i = 0; i < count_; ++i) switch (groups_[i].rows) {
        case 16:
          if constexpr (W >= 16) f(i, Rows<16>{}, groups_[i].first);
          break;
        case 8:
          if constexpr (W >= 8) f(i, Rows<8>{}, groups_[i].first);
          break;
        case 4:
          if constexpr (W >= 4) f(i, Rows<4>{}, groups_[i].first);
          break;
        case 2:
          f(i, Rows<2>{}, groups_[i].first);
          break;
        default:
          f(i, Rows<1>{}, groups_[i].first);
      }
  }

  // The coefficients of each group, [positions / kN][W], one group after the other.
  void put_in_lanes(int64_t positions, const A* coefficients, A* to) const {
    for_each_group([&](int64_t, auto rows, int64_t first) {
      constexpr int kRows = decltype(rows)::value, kN = W / kRows;
      const int64_t n = rows_ - first < kRows ? rows_ - first : kRows;
      const A* from = coefficients + first * kTile;
      if constexpr (kN == 1) {
        put_rows_in_lanes(positions, from, n, to);
      } else {
        for (int64_t t = 0; t < positions; t += kN)
          for (int r = 0; r < kRows; ++r)
            for (int p = 0; p < kN; ++p) to[(t * kRows) + r * kN + p] = r < n ? from[r * kTile + t + p] : A(0);
      }
      to += kRows * kTile;
    });
  }

  static void put_rows_in_lanes(int64_t positions, const A* from, int64_t n, A* to) {
    if (n == W) return transpose<A>(to, W, from, kTile, positions, W);
    alignas(64) A whole[W * kTile];
    for (int64_t r = 0; r < W; ++r)
      for (int64_t t = 0; t < kTile; t += W)
        store<A>(whole + r * kTile + t, r < n ? load<A>(from + r * kTile + t) : Vec<A>{});
    transpose<A>(to, W, whole, kTile, positions, W);
  }

  template <int kStride>
  void add_strip(const A* f, int64_t n, int64_t positions, const A* lanes, A* sums, NextTile& next) const {
    for_each_group([&](int64_t, auto rows, int64_t) {
      constexpr int kRows = decltype(rows)::value, kN = W / kRows;
      const int64_t steps = (positions + kN - 1) / kN;
      if (n == kStrip) {
        add_channels<kStrip, kN, kStride>(f, steps, lanes, sums, next.take(steps));
      } else {
        int64_t c = 0;
        for (; c + 8 <= n; c += 8)
          add_channels<8, kN, kStride>(f + c * kStride, steps, lanes, sums + c * W, next.take(steps));
        for (; c + 4 <= n; c += 4)
          add_channels<4, kN, kStride>(f + c * kStride, steps, lanes, sums + c * W, next.take(steps));
        for (; c < n; ++c)
          add_channels<1, kN, kStride>(f + c * kStride, steps, lanes, sums + c * W, nothing_ahead(lanes));
      }
      lanes += kRows * kTile;
      sums += C_ * W;
    });
  }

  template <int kChannels, int kN, int kStride>
  static void add_channels(const A* __restrict f, int64_t steps, const A* __restrict lanes, A* __restrict sums,
                           Ahead ahead) {
    Vec<A> sum[kChannels];
#pragma GCC unroll 24
    for (int c = 0; c < kChannels; ++c) sum[c] = load<A>(sums + c * W);
    for (int64_t s = 0; s < steps; ++s) {
      const Vec<A> a = load<A>(lanes + s * W);
#pragma GCC unroll 24
      for (int c = 0; c < kChannels; ++c) sum[c] += repeated<kN>(f + c * kStride) * a;
      f += kN;
      __builtin_prefetch(ahead.line, 0, 2);
      __builtin_prefetch(ahead.line + 64, 0, 2);
      ahead.line += ahead.stride;
    }
#pragma GCC unroll 24
    for (int c = 0; c < kChannels; ++c) store<A>(sums + c * W, sum[c]);
  }

  const int64_t B_, C_, rows_;
  const Buffer<Group> groups_;
  const int64_t count_;
  const Buffer<A> sums_;
  const Buffer<uint8_t> met_;
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
