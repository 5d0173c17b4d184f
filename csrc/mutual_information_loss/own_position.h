// infonce, and jsd with reassigned negatives. The terms of a position depend only on its own (1 +
// n) K scores, so each tile of an image is finished by itself: scores, terms, gradients.
#pragma once

#include "mutual_information_loss/loss.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class A>
struct OwnPosition {
  static constexpr int W = Lanes<A>::W;
  using V_ = Vec<A>;

  Loss<A>& loss;
  const int64_t B, C, K, R, n;
  const A tau;
  TileProducts<A> products;
  const int64_t scratch_size;
  Buffer<A> scratch;

  explicit OwnPosition(Loss<A>& loss)
      : loss(loss),
        B(loss.B),
        C(loss.C),
        K(loss.K),
        R(loss.R),
        n(loss.n),
        tau(loss.tau),
        products(loss.products(n)),
        scratch_size(C * kTile + R * kTile + kTile + 2 * K * W),
        scratch(loss.threads * scratch_size) {}

  // Both functions compute the terms of W positions and replace the scores q [R, kTile] by the
  // gradient.

  // The largest of R scores, by independent chains, since a comparison waits for the one before.
  V_ greatest(const A* q) const {
    V_ a = load<A>(q), b = a, c = a, d = a;
    int64_t r = 0;
    for (; r + 4 <= R; r += 4) {
      a = greater_of<A>(a, load<A>(q + r * kTile));
      b = greater_of<A>(b, load<A>(q + (r + 1) * kTile));
      c = greater_of<A>(c, load<A>(q + (r + 2) * kTile));
      d = greater_of<A>(d, load<A>(q + (r + 3) * kTile));
    }
    for (; r < R; ++r) a = greater_of<A>(a, load<A>(q + r * kTile));
    return greater_of<A>(greater_of<A>(a, b), greater_of<A>(c, d));
  }

  void infonce(A* q, V_ valid, A* V, V_& total) const {
    A* own = V + K * W;  // exponentials of the own scores, which are used twice
    const V_ T = softmax_and_mean<A>(q, kTile, K, tau, V);
    const V_ top = greatest(q);
    V_ sum{};
    for (int64_t r = 0; r < R; ++r) {
      const V_ e = exp_nonpositive<A>(load<A>(q + r * kTile) - top);
      sum += e;
      store<A>(r < K ? own + r * W : q + r * kTile, e);
    }
    total += select<A>(valid > V_{}, (top - T) + log_of_positive<A>(sum), V_{});
    if (!loss.grad) return;
    const V_ scale = loss.share_pos / sum;
    for (int64_t r = K; r < R; ++r)
      store<A>(q + r * kTile, select<A>(valid > V_{}, load<A>(q + r * kTile) * scale, V_{}));
    loss.own_gradient(q, T, broadcast<A>(-loss.share_pos), V, valid);
    for (int64_t k = 0; k < K; ++k)
      store<A>(q + k * kTile, load<A>(q + k * kTile) + select<A>(valid > V_{}, load<A>(own + k * W) * scale, V_{}));
  }

  void reassigned(A* q, V_ valid, A* V, V_& positive, V_& negative) const {
    loss.positive_term(q, V, valid, positive);
    for (int64_t j = 1; j <= n; ++j) {
      A* w = q + j * K * kTile;
      const V_ T = softmax_and_mean<A>(w, kTile, K, tau, V);
      const Softplus<A> sp = softplus<A>(T);
      negative += select<A>(valid > V_{}, sp.of_x, V_{});
      if (!loss.grad) continue;
      const V_ g = sp.sigmoid_x * loss.share_neg;
      for (int64_t k = 0; k < K; ++k) {
        const V_ x = g * load<A>(V + k * W) * (A(1) + (load<A>(w + k * kTile) - T) * tau);
        store<A>(w + k * kTile, select<A>(valid > V_{}, x, V_{}));
      }
    }
  }

  double forward() {
    const bool is_infonce = loss.a.estimator == Estimator::infonce;
    if (loss.balance) loss.sum_usage(products);
    // All tiles of an image before the next image: its global features and their sums stay in
    // cache.
    auto body = [&](int t) {
      A* copy = scratch + t * scratch_size;
      A* q = copy + C * kTile;
      A* ok = q + R * kTile;
      A* V = ok + kTile;
      const Range part = share(loss.tiles * B, loss.threads, t);
      for (int64_t u = part.begin; u < part.end; ++u) {
        const int64_t b = u / loss.tiles, tile = u % loss.tiles;
        NextTile next = loss.after_tile(b, tile);
        products.score(b, tile, 0, n, copy, q, next);
        loss.mark_valid(b, tile, ok);
        V_ positive{}, negative{};
        for (int g = 0; g < vectors_of<A>(loss.f.size(tile)); ++g) {
          const V_ valid = load<A>(ok + g * W);
          if (is_infonce)
            infonce(q + g * W, valid, V, positive);
          else
            reassigned(q + g * W, valid, V, positive, negative);
        }
        loss.sums[t].positive += sum_lanes<A>(positive);
        loss.sums[t].negative += sum_lanes<A>(negative);
        if (loss.grad) products.add_gradient(t, b, tile, {copy, kTile}, q, next);
      }
    };
    parallel_for_floats(loss.threads, body);
    products.finish();
    return loss.value(is_infonce);
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
