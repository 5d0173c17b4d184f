// The parts that all ways to compute the loss share: valid positions, the positive term, the
// balance term, and the value from the sums. The gradient by the scores takes their place.
#pragma once

#include "common/softmax.h"
#include "common/tile_products.h"
#include "mutual_information_loss/mutual_information_loss.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class A>
struct Loss {
  static constexpr int W = Lanes<A>::W;
  using V_ = Vec<A>;

  const LossArguments& a;
  const FeatureTiles<A> f;
  const int64_t B, C, K, P, n, R, tiles;
  const int threads;
  const bool grad, balance;
  const A tau;
  int64_t M = 0;             // valid positions
  A share_pos, share_neg;    // the upstream gradient / M and / (n M); 0 when nothing is valid
  Buffer<A> usage_gradient;  // [K], of the balance term by V

  // The sums of one thread, on cache lines of their own.
  struct alignas(64) Sums {
    double positive, negative, apart[14];
  };
  Buffer<Sums> sums;
  Buffer<double> usage;  // [threads, K] sums of V over valid positions

  explicit Loss(const LossArguments& a)
      : a(a),
        f(a.features),
        B(a.features.B),
        C(a.features.C),
        K(a.K),
        P(f.P),
        n(a.partners),
        R((1 + n) * K),
        tiles(f.tiles),
        threads(a.threads),
        grad(a.df.data || a.dG || a.dg0),
        balance(a.balance != 0),
        tau(static_cast<A>(a.temperature)),
        usage_gradient(K),
        sums(threads),
        usage(threads * K) {
    for (int t = 0; t < threads; ++t) sums[t] = {};
    for (int64_t i = 0; i < threads * K; ++i) usage[i] = 0;
    for (int64_t k = 0; k < K; ++k) usage_gradient[k] = 0;
    if (a.valid)
      for (int64_t i = 0; i < B * P; ++i) M += a.valid[i] != 0;
    else
      M = B * P;
    share_pos = M ? static_cast<A>(a.upstream / static_cast<double>(M)) : A(0);
    share_neg = M ? static_cast<A>(a.upstream / (static_cast<double>(M) * static_cast<double>(n))) : A(0);
  }

  // The products of this loss with a number of partners.
  TileProducts<A> products(int64_t partners) const {
    WantedProducts<A> wanted;
    wanted.df = a.df;
    wanted.dG = static_cast<A*>(a.dG);
    wanted.dg0 = static_cast<A*>(a.dg0);
    return {a.features, a.G, a.g0, K, partners, threads, wanted};
  }

  // 1 at valid positions, else 0: [kTile].
  void mark_valid(int64_t b, int64_t tile, A* ok) const {
    const int64_t size = f.size(tile);
    const uint8_t* valid = a.valid ? a.valid + b * P + tile * kTile : nullptr;
    for (int64_t t = 0; t < kTile; ++t) ok[t] = t < size && (!valid || valid[t]) ? A(1) : A(0);
  }

  // ---------------------------------------------------------------- terms of a position's own scores

  // Replaces the scores z of W positions by the gradient of the terms that depend on z only:
  // V_k g (1 + tau (z_k - T)), where g is the gradient by T, and the gradient of the balance term.
  void own_gradient(A* z, V_ T, V_ g, const A* V, V_ valid, int64_t V_stride = W) const {
    const V_ mean = balance ? usage_mean(V, V_stride) : V_{};
    for (int64_t k = 0; k < K; ++k) {
      V_ x = g * (A(1) + (load<A>(z + k * kTile) - T) * tau);
      if (balance) x += (usage_gradient[k] - mean) * tau;
      store<A>(z + k * kTile, select<A>(valid > V_{}, x * load<A>(V + k * V_stride), V_{}));
    }
  }

  // The positive term of jsd at W positions: adds softplus(-T) to `total`, writes V (K rows of W)
  // and replaces z by the gradient.
  void positive_term(A* z, A* V, V_ valid, V_& total, int64_t V_stride = W) const {
    const V_ T = softmax_and_mean<A>(z, kTile, K, tau, V, V_stride);
    const Softplus<A> sp = softplus<A>(T);
    total += select<A>(valid > V_{}, sp.of_minus_x, V_{});
    if (grad) own_gradient(z, T, -sp.sigmoid_minus_x * share_pos, V, valid, V_stride);
  }

  // ---------------------------------------------------------------- the balance term

  // Adds V at valid positions to the sums `to` [K, W].
  void add_usage(const A* V, V_ valid, A* to) const {
    for (int64_t k = 0; k < K; ++k)
      store<A>(to + k * W, load<A>(to + k * W) + select<A>(valid > V_{}, load<A>(V + k * W), V_{}));
  }

  // Sums V over all valid positions. The gradient needs their mean, so this is a pass over the
  // features of its own.
  void sum_usage(const TileProducts<A>& products) {
    sum_usage_by(
        [&](int64_t b, int64_t tile, A* copy, A* z, NextTile& next) { products.score(b, tile, 0, 0, copy, z, next); });
  }
  void sum_usage(const GlobalFeatures<A>& G) {
    sum_usage_by([&](int64_t b, int64_t tile, A* copy, A* z, NextTile& next) {
      const TileRows<A> rows = f.read(b, tile, copy);
      G.scores(b, 1, rows, vectors_of<A>(f.size(tile)), z, kTile, next, rows.data == copy ? nullptr : copy);
    });
  }

  // `score` writes the scores z [K, kTile] of a tile, with scratch `copy` [C, kTile].
  template <class F>
  void sum_usage_by(const F& score) {
    const int64_t scratch_size = C * kTile + (K + 1) * kTile + 2 * K * W;
    const Buffer<A> scratch(threads * scratch_size);
    auto body = [&](int t) {
      A* copy = scratch + t * scratch_size;
      A* z = copy + C * kTile;
      A* ok = z + K * kTile;
      A* V = ok + kTile;
      A* sum = V + K * W;
      const Range part = share(tiles * B, threads, t);
      for (int64_t u = part.begin; u < part.end; ++u) {
        const int64_t b = u / tiles, tile = u % tiles;
        const int groups = vectors_of<A>(f.size(tile));
        NextTile next = after_tile(b, tile);
        score(b, tile, copy, z, next);
        mark_valid(b, tile, ok);
        for (int64_t i = 0; i < K * W; ++i) sum[i] = 0;
        for (int g = 0; g < groups; ++g) {
          softmax_and_mean<A>(z + g * W, kTile, K, tau, V);
          add_usage(V, load<A>(ok + g * W), sum);
        }
        for (int64_t k = 0; k < K; ++k) usage[t * K + k] += sum_lanes<A>(load<A>(sum + k * W));
      }
    };
    parallel_for_floats(threads, body);
    if (!grad || !M) return;
    // As in the reference, the clamp keeps the derivative of x log x finite for a class without
    // positions.
    const double tiny = sizeof(A) == 8 ? 2.2250738585072014e-308 : 1.17549435e-38;
    for (int64_t k = 0; k < K; ++k) {
      const double m = mean_usage(k), clamped = m < tiny ? tiny : m;
      usage_gradient[k] =
          static_cast<A>(a.upstream * a.balance * (__builtin_log(clamped) + (m >= tiny)) / static_cast<double>(M));
    }
  }

  double mean_usage(int64_t k) const {
    double sum = 0;
    for (int t = 0; t < threads; ++t) sum += usage[t * K + k];
    return sum / static_cast<double>(M);
  }

  // sum_k V_k usage_gradient_k
  V_ usage_mean(const A* V, int64_t V_stride) const {
    V_ sum{};
    for (int64_t k = 0; k < K; ++k) sum += load<A>(V + k * V_stride) * usage_gradient[k];
    return sum;
  }

  // ---------------------------------------------------------------- the value

  NextTile after_tile(int64_t b, int64_t tile) const {
    return tile + 1 < tiles ? f.lines(b, tile + 1) : f.lines(b + 1, 0);
  }

  double value(bool infonce) const {
    double positive = 0, negative = 0;
    for (int t = 0; t < threads; ++t) {
      positive += sums[t].positive;
      negative += sums[t].negative;
    }
    const double count = static_cast<double>(M);
    double loss = positive / count;
    if (!infonce) loss += negative / (count * static_cast<double>(n));
    if (balance) {
      double penalty = __builtin_log(static_cast<double>(K));
      for (int64_t k = 0; k < K; ++k) {
        const double m = mean_usage(k);
        penalty += m * __builtin_log(m < 1e-300 ? 1e-300 : m);
      }
      loss += a.balance * penalty;
    }
    return loss;
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
