// The gradient of anything that depends on features and global features only through their inner products is of rank
// K: given the coefficients a[r, t] by each score of a tile,
//   df[:, t] = sum_r a[r, t] G[r],   dG[r] += sum_t a[r, t] f[:, t],   dg0[r] += sum_t a[r, t].
#pragma once

#include "feature_tile.h"
#include "denormals.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Channels of a transposed block of features: kTile x kChannels numbers beside the coefficients in L1.
constexpr int kChannels = 64;

// Adds one tile's share to the sums [count, padded C], from its features [positions, stride], in whole vectors of channels.
template <class A>
static inline void add_channel_rows(const A* f, int64_t stride, int64_t positions, int64_t n, int64_t padded,
                                    const A* coefficients, int64_t count, A* sums, NextTile& next) {
  const RowBlocks blocks = RowBlocks::of(count);
  for (int64_t i = 0; i < blocks.count; ++i) {
    const int64_t r = blocks.begin(i), rows = blocks.begin(i + 1) - r;
    product_strip<A, kTile, Out::add>(static_cast<int>(rows), vectors_of<A>(n), positions, coefficients + r * kTile, 1, f,
                                      stride, nullptr, sums + r * padded, padded, next.take(positions));
  }
}

// The same from [C, stride] numbers. `transposed` is scratch of [kTile, kChannels].
template <class A>
static inline void add_rows(TileRows<A> f, int64_t positions, int64_t C, int64_t padded, const A* coefficients,
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

// kRows channels of the sums of kVectors vectors of classes, of which one lies `apart` from the next; `coefficients` are
// [positions, lanes].
template <class A, int kRows, int kVectors>
static inline void class_lanes_block(TileRows<A> f, int64_t positions, const A* __restrict coefficients, int64_t lanes,
                                     A* __restrict sums, int64_t sums_stride, int64_t apart) {
  constexpr int W = Lanes<A>::W;
  Vec<A> sum[kRows][kVectors];
  const A* from[kRows];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    from[m] = f.data + m * f.stride;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[m][v] = load<A>(sums + m * sums_stride + v * apart);
  }
  for (int64_t t = 0; t < positions; ++t) {
    Vec<A> row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = load<A>(coefficients + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const Vec<A> x = broadcast<A>(from[m][t]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[m][v] += x * row[v];
    }
    coefficients += lanes;
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store<A>(sums + m * sums_stride + v * apart, sum[m][v]);
}

// The same for all channels.
template <class A, int kVectors>
static inline void class_lanes_strip(TileRows<A> f, int64_t positions, int64_t C, const A* coefficients, int64_t lanes,
                                     A* sums, int64_t sums_stride, int64_t apart) {
  constexpr int kRows = kVectorRegisters == 32 ? 8 : 4;
  const auto from = [&](int64_t c) { return TileRows<A>{f.data + c * f.stride, f.stride}; };
  int64_t c = 0;
  for (; c + kRows <= C; c += kRows)
    class_lanes_block<A, kRows, kVectors>(from(c), positions, coefficients, lanes, sums + c * sums_stride, sums_stride,
                                          apart);
  for (; c < C; ++c)
    class_lanes_block<A, 1, kVectors>(from(c), positions, coefficients, lanes, sums + c * sums_stride, sums_stride,
                                      apart);
}

// [positions, lanes] from coefficients [K, kTile], a class a lane; lanes are whole vectors, and what comes into those behind
// the classes is finite. `padded` is scratch of [W, kTile].
template <class A>
static inline void put_classes_in_lanes(const A* coefficients, int64_t K, int64_t positions, int64_t lanes, A* to,
                                        A* padded) {
  constexpr int W = Lanes<A>::W;
  const int64_t whole = K / W * W;
  if (whole) transpose<A>(to, lanes, coefficients, kTile, positions, whole);
  if (whole == K) return;
  for (int64_t r = 0; r < W; ++r)
    for (int64_t t = 0; t < kTile; t += W)
      store<A>(padded + r * kTile + t, whole + r < K ? load<A>(coefficients + (whole + r) * kTile + t) : Vec<A>{});
  transpose<A>(to + whole, lanes, padded, kTile, positions, W);
}

// Adds one tile's share to the sums [count, W].
template <class A>
static inline void add_dg0(const A* coefficients, int64_t count, int vectors, A* sums) {
  constexpr int W = Lanes<A>::W;
  for (int64_t r = 0; r < count; ++r) {
    Vec<A> sum = load<A>(sums + r * W);
    for (int v = 0; v < vectors; ++v) sum += load<A>(coefficients + r * kTile + v * W);
    store<A>(sums + r * W, sum);
  }
}

// Sums of dG and dg0 over tiles: one set a thread, zeroed when the thread first meets an image; the sets are added in the
// order of the threads.
template <class A>
class GlobalGradient {
 public:
  static constexpr int W = Lanes<A>::W;

  const int64_t B, K, C, candidates;  // an image and its partners, to whose classes its coefficients belong
  const int64_t padded;               // channels in whole vectors
  // If not 0, an image's dG is summed as [C][lanes], a class a lane: the coefficients are put on their sides and not the
  // features, but each number of the features is loaded for a vector of classes alone. That pays where these fill the lanes
  // and are few. Else it is summed as [K][padded C].
  const int64_t lanes;

  // With rows_only the second way.
  GlobalGradient(int64_t B, int64_t K, int64_t C, int64_t partners, int threads, bool wanted, bool with_offset,
                 bool rows_only)
      : B(B),
        K(K),
        C(C),
        candidates(1 + partners),
        padded(in_vectors(C)),
        lanes(rows_only || candidates * in_vectors(K) > kMostLanes || 8 * K < 7 * in_vectors(K) ? 0 : in_vectors(K)),
        threads_(threads),
        images_(B + partners),
        size_(lanes ? C * lanes : K * padded),
        sums_(wanted ? threads * images_ * size_ : 0),
        offsets_(with_offset ? threads * images_ * K * W : 0),
        met_(threads * images_) {
    for (int64_t i = 0; i < threads * images_; ++i) met_[i] = 0;
  }

  // Before anything of image b is added.
  void begin(int thread, int64_t b) {
    for (int64_t c = b; c < b + candidates; ++c) {
      uint8_t& met = met_[thread * images_ + c];
      if (met) continue;
      met = 1;
      if (sums_) zero(sums_of(thread, c), size_);
      if (offsets_) zero(offsets_of(thread, c), K * W);
    }
  }

  // Adds a tile's share of dG, from coefficients [candidates' K, kTile]. `scratch` is of [kTile, kChannels].
  void add(int thread, int64_t b, TileRows<A> f, int64_t positions, const A* coefficients, A* scratch,
           NextTile& next) const {
    A* sums = sums_of(thread, b);
    if (!lanes) return add_rows(f, positions, C, padded, coefficients, candidates * K, sums, scratch, next);
    const int64_t all = candidates * lanes;
    for (int64_t j = 0; j < candidates; ++j)
      put_classes_in_lanes(coefficients + j * K * kTile, K, positions, all, scratch + j * lanes,
                           scratch + kMostLanes * kTile);
    const auto sums_at = [&](int64_t lane) { return sums + lane / lanes * size_ + lane % lanes; };
    int64_t lane = 0;
    for (; lane + 2 * W <= all; lane += 2 * W)
      class_lanes_strip<A, 2>(f, positions, C, scratch + lane, all, sums_at(lane), lanes,
                              sums_at(lane + W) - sums_at(lane));
    if (lane < all) class_lanes_strip<A, 1>(f, positions, C, scratch + lane, all, sums_at(lane), lanes, 0);
  }

  // The sums that image b's coefficients add to: without lanes [candidates' K, padded C], and [candidates' K, W] by lane;
  // null where they are not wanted.
  A* sums_of(int thread, int64_t b) const { return sums_ ? sums_ + (thread * images_ + b) * size_ : nullptr; }
  A* offsets_of(int thread, int64_t b) const {
    return offsets_ ? offsets_ + (thread * images_ + b) * K * W : nullptr;
  }

  // dG [B, K, C] and dg0 [B, K]; either may be null.
  void finish(A* dG, A* dg0) const {
    const Buffer<A> scratch(threads_ * lanes * padded);
    auto body = [&](int t) {
      const Range part = share(B, threads_, t);
      for (int64_t b = part.begin; b < part.end; ++b) {
        if (dG) sum_dG(b, dG + b * K * C, scratch + t * lanes * padded);
        for (int64_t k = 0; dg0 && k < K; ++k) {
          double total = 0;
          for (int u = 0; u < threads_; ++u)
            for (int64_t c = b; c < images_; c += B)
              if (met_[u * images_ + c]) total += sum_lanes<A>(load<A>(offsets_of(u, c) + k * W));
          dg0[b * K + k] = static_cast<A>(total);
        }
      }
    };
    parallel_for_floats(threads_, body);
  }

 private:
  static constexpr int64_t kMostLanes = 32;
  static int64_t in_vectors(int64_t n) { return (n + W - 1) / W * W; }

  static void zero(A* p, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = 0;
  }

  void sum_dG(int64_t b, A* dG, A* scratch) const {
    zero(dG, K * C);
    for (int u = 0; u < threads_; ++u)
      for (int64_t c = b; c < images_; c += B) {
        if (!met_[u * images_ + c]) continue;
        const A* rows = sums_of(u, c);
        if (lanes) {
          transpose<A>(scratch, padded, rows, lanes, lanes, C);
          rows = scratch;
        }
        for (int64_t k = 0; k < K; ++k)
          for (int64_t i = 0; i < C; ++i) dG[k * C + i] += rows[k * padded + i];
      }
  }

  const int threads_;
  const int64_t images_, size_;  // B + n, and numbers of dG an image
  const Buffer<A> sums_, offsets_;
  const Buffer<uint8_t> met_;  // [threads][B + n]
};

// df of one tile from `count` coefficient rows [count, kTile] and as many rows of G, added to `start`: TileRows, or nullptr
// for nothing. `block` is scratch of [kBlockRows, kTile].
template <class E, class A, class Start = std::nullptr_t>
static inline void write_df(const FeatureTiles<E, A>& df, int64_t b, int64_t tile, const A* coefficients, const A* G,
                            int64_t count, A* block, NextTile& next, Start start = nullptr) {
  const int vectors = vectors_of<A>(df.size(tile));
  const int64_t C = df.map.C;
  if (df.channel_rows()) {
    const int64_t stride = df.map.stride_w;
    A* place = df.channels_at(b, tile);
    constexpr Out out = kIsRows<Start> ? Out::add : Out::store;
    if constexpr (kIsRows<Start>) transpose<A>(place, stride, start.data, start.stride, df.size(tile), C);
    const RowBlocks positions = RowBlocks::of(df.size(tile));
    for (int64_t i = 0; i < positions.count; ++i) {
      const int64_t t = positions.begin(i), n = positions.begin(i + 1) - t;
      product_strip<A, 1, out>(static_cast<int>(n), vectors_of<A>(C), count, coefficients + t, kTile, G, C, nullptr,
                               place + t * stride, stride, next.take(count));
    }
    return;
  }
  const RowBlocks blocks = RowBlocks::of(C);
  A* place = df.place(b, tile);
  const bool past_caches = place && df.streams(place);
  for (int64_t i = 0; i < blocks.count; ++i) {
    const int64_t c = blocks.begin(i), n = blocks.begin(i + 1) - c;
    if (past_caches) {
      product_strip<A, 1, Out::stream>(static_cast<int>(n), vectors, count, G + c, C, coefficients, kTile,
                                       rows_on(start, c), place + c * df.map.stride_c, df.map.stride_c, next.take(count));
      continue;
    }
    A* out = place ? place + c * df.map.stride_c : block;
    product_strip<A, 1, Out::store>(static_cast<int>(n), vectors, count, G + c, C, coefficients, kTile, rows_on(start, c),
                                    out, place ? df.map.stride_c : kTile, next.take(count));
    if (!place) df.write(b, tile, c, n, out);
  }
  if (past_caches) finish_streams();
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
