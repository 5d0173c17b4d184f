// The gradient of a function of the inner products of features and global features has rank K. With
// the gradient a[r, t] by each score of a tile:
//   df[:, t] = sum_r a[r, t] G[r],   dG[r] += sum_t a[r, t] f[:, t],   dg0[r] += sum_t a[r, t].
#pragma once

#include "common/denormals.h"
#include "common/lane_sums.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Channels in a transposed block of features: kTile x kChannels numbers and the coefficients fit in
// L1.
constexpr int kChannels = 64;

// Adds the share of one tile to the sums [count, padded C]. Its features are [positions, stride],
// with channels in whole vectors.
template <class A>
static inline void add_channel_rows(const A* f, int64_t stride, int64_t positions, int64_t n, int64_t padded,
                                    const A* coefficients, int64_t count, A* sums, NextTile& next) {
  product<A, Left::rows>(count, vectors_of<A>(n), positions, {coefficients, kTile}, {f, stride}, {sums, padded},
                         {sums, padded}, next);
}

// The same for features [C, stride]. `transposed` is scratch of [kTile, kChannels].
template <class A>
static inline void add_transposed(TileRows<A> f, int64_t positions, int64_t C, int64_t padded, const A* coefficients,
                                  int64_t count, A* sums, A* transposed, NextTile& next) {
  for (int64_t c = 0; c < C; c += kChannels) {
    const int64_t n = C - c < kChannels ? C - c : kChannels;
    const int vectors = vectors_of<A>(n);
    transpose<A>(transposed, kChannels, f.data + c * f.stride, f.stride, positions, n);
    if (n % Lanes<A>::W)
      for (int64_t t = 0; t < positions; ++t)
        for (int64_t i = n; i < vectors * Lanes<A>::W; ++i) transposed[t * kChannels + i] = 0;
    add_channel_rows(transposed, kChannels, positions, n, padded, coefficients, count, sums + c, next);
  }
}

// The largest number of coefficient rows whose sums by lane stay in the caches.
constexpr int64_t kFewRows = 32;

// Numbers of scratch for the share of a tile.
template <class A>
constexpr int64_t kLaneScratch = LaneSums<A>::scratch_size(kFewRows);
constexpr int64_t kTransposedSize = int64_t{kTile} * kChannels;
template <class A>
constexpr int64_t kGradientScratch = kLaneScratch<A> > kTransposedSize ? kLaneScratch<A> : kTransposedSize;

template <class A>
struct GlobalGradient {
  static constexpr int W = Lanes<A>::W;
  // Each thread has a set of sums, [B + n][K][padded C] and [B + n][K][W]. It clears those of an
  // image when it first meets the image. At the end the sets are added in the order of the threads.
  int64_t B, K, C, partners, padded;
  int threads;
  bool with_offset;
  Buffer<A> sums, offset_sums;
  LaneSums<A> lanes;    // used for few classes, added to the sums at the end
  Buffer<uint8_t> met;  // [threads][B + n]

  GlobalGradient(int64_t B, int64_t K, int64_t C, int64_t partners, int threads, bool wanted, bool with_offset,
                 bool by_lane)
      : B(B),
        K(K),
        C(C),
        partners(partners),
        padded((C + Lanes<A>::W - 1) / Lanes<A>::W * Lanes<A>::W),
        threads(threads),
        with_offset(with_offset),
        sums(wanted ? threads * (B + partners) * K * padded : 0),
        offset_sums(with_offset ? threads * (B + partners) * K * W : 0),
        lanes(B, C, (1 + partners) * K, threads, wanted && by_lane && (1 + partners) * K <= kFewRows),
        met(threads * (B + partners)) {
    for (int64_t i = 0; i < threads * (B + partners); ++i) met[i] = 0;
  }

  int64_t images() const { return B + partners; }

  // The sums of the candidates of image b, cleared at first use.
  A* of(int thread, int64_t b, int64_t candidates) {
    for (int64_t c = b; c < b + candidates; ++c) {
      uint8_t& seen = met[thread * images() + c];
      if (seen) continue;
      seen = 1;
      if (sums) zero(sums + (thread * images() + c) * K * padded, K * padded);
      if (with_offset) zero(offset_sums + (thread * images() + c) * K * W, K * W);
    }
    return sums ? sums + (thread * images() + b) * K * padded : nullptr;
  }

  // Adds the share of a tile of image b, with features [C, stride] and coefficients [candidates' K,
  // kTile], to the sums that of() returned. `scratch` has kGradientScratch numbers.
  template <int kStride = kTile>
  void add(int thread, int64_t b, TileRows<A> f, int64_t positions, const A* coefficients, A* scratch, NextTile& next) {
    if (lanes.used)
      lanes.template add<kStride>(thread, b, f, positions, coefficients, scratch, next);
    else
      add_transposed(f, positions, C, padded, coefficients, (1 + partners) * K,
                     sums + (thread * images() + b) * K * padded, scratch, next);
  }

  // The sums by lane of dg0, [candidates' K][W].
  A* offsets_of(int thread, int64_t b) { return with_offset ? offset_sums + (thread * images() + b) * K * W : nullptr; }

  // Writes dG [B, K, C] and dg0 [B, K]; either may be null.
  void finish(A* dG, A* dg0) {
    if (lanes.used)
      parallel_for_floats(threads, [&](int t) {
        for (int64_t b = 0; b < B; ++b) lanes.move_to(t, b, sums + (t * images() + b) * K * padded, padded);
      });
    auto body = [&](int t) {
      const Range part = share(B * K, threads, t);
      Buffer<A>& s = sums;
      for (int64_t r = part.begin; r < part.end; ++r) {
        const int64_t b = r / K, k = r % K;
        double total = 0;
        bool first = true;
        A* to = nullptr;  // the first set that has sums collects the others
        for (int u = 0; u < threads; ++u)
          for (int64_t c = b; c < images(); c += B) {
            if (!met[u * images() + c]) continue;
            if (with_offset) total += sum_lanes<A>(load<A>(offset_sums + ((u * images() + c) * K + k) * W));
            if (!dG) continue;
            A* from = s + ((u * images() + c) * K + k) * padded;
            if (first)
              to = from;
            else
              for (int64_t i = 0; i < C; ++i) to[i] += from[i];
            first = false;
          }
        if (dG)
          for (int64_t i = 0; i < C; ++i) dG[r * C + i] = to ? to[i] : A(0);
        if (dg0) dg0[r] = static_cast<A>(total);
      }
    };
    parallel_for_floats(threads, body);
  }

 private:
  static void zero(A* p, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = 0;
  }
};

// Rows of df that are computed before they are written in another type or layout.
constexpr int kScratchRows = 4 * kBlockRows;

// Writes df of one tile: `start` plus the product of the coefficients [count, kTile] and as many
// rows of G. `block` is scratch of [kScratchRows, kTile].
template <class A>
static inline void write_df(const FeatureTiles<A>& df, int64_t b, int64_t tile, const A* coefficients, const A* G,
                            int64_t count, A* block, NextTile& next, Start<A> start = {}) {
  const int vectors = vectors_of<A>(df.size(tile));
  const int64_t C = df.map.C;
  if (df.channel_rows()) {
    const Out<A> out{df.at(b, tile), df.map.stride_w};
    if (start.data) {
      transpose<A>(out.data, out.stride, start.data, start.stride, df.size(tile), C);
      start = {out.data, out.stride};
    }
    product<A, Left::columns>(df.size(tile), vectors_of<A>(C), count, {coefficients, kTile}, {G, C}, start, out, next);
    return;
  }
  if (A* place = df.place(b, tile)) {
    const bool past_caches = df.streams(place);
    product<A, Left::columns>(C, vectors, count, {G, C}, {coefficients, kTile}, start,
                              {place, df.map.stride_c, past_caches}, next);
    if (past_caches) finish_streams();
    return;
  }
  for (int64_t c = 0; c < C; c += kScratchRows) {
    const int64_t n = C - c < kScratchRows ? C - c : kScratchRows;
    product<A, Left::columns>(n, vectors, count, {G + c, C}, {coefficients, kTile}, start.at(c, 0), {block, kTile},
                              next);
    df.write(b, tile, c, n, block);
  }
}

// Adds the share of one tile to the sums of dg0, [count, W].
template <class A>
static inline void add_dg0(const A* coefficients, int64_t count, int vectors, A* sums) {
  constexpr int W = Lanes<A>::W;
  for (int64_t r = 0; r < count; ++r) {
    Vec<A> sum = load<A>(sums + r * W);
    for (int v = 0; v < vectors; ++v) sum += load<A>(coefficients + r * kTile + v * W);
    store<A>(sums + r * W, sum);
  }
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
