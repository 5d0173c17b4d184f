// jsd, same_position, with one partner, or a few and hardly any classes. Image b's negative terms need the probabilities
// of its partners b + 1 .. b + n at the same position, and give gradients by the partners' scores, so an image waits, with
// its scores and features in cache, until its last partner has been scored:
//   at image c:      scores q_c, V_c, the terms of the pairs (c - n, c) .. (c - 1, c)
//   at image c + n:  all the gradient by q_c is known, so df, dG and dg0 are formed
// The features are read once. A run needs of the n images before it the scores by its own, and of the n images behind it
// the probabilities.
#pragma once

#include "image_runs.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class E, class A>
struct SamePosition {
  static constexpr int W = Lanes<A>::W;
  static constexpr int kGroups = kTile / W;
  using V_ = Vec<A>;

  Loss<E, A>& loss;
  const int64_t B, C, K, R, n;
  const A tau;
  const bool grad;
  TileProducts<E, A> products;
  const int64_t waiting;       // images that wait at a time
  const int64_t image_size;    // numbers kept for one
  const int64_t scratch_size;  // numbers a thread
  Buffer<A> scratch;

  explicit SamePosition(Loss<E, A>& loss)
      : loss(loss),
        B(loss.B),
        C(loss.C),
        K(loss.K),
        R(loss.R),
        n(loss.n),
        tau(loss.tau),
        grad(loss.grad),
        products(loss.products(n)),
        waiting(n + 1),
        image_size(C * kTile + R * kTile + kTile),
        scratch_size(waiting * image_size + K * W),
        scratch(loss.threads * scratch_size) {}

  struct Image {
    A* copy;  // [C, kTile] features
    A* q;     // [R, kTile] scores, then the gradient by them
    A* ok;    // [kTile]: 1 at valid positions, else 0
  };

  struct Totals {
    V_ positive{}, negative{};
  };

  struct Thread {
    const SamePosition& s;
    const int t;
    A* V() const { return s.scratch + t * s.scratch_size + s.waiting * s.image_size; }
    Image image(int64_t c) const {
      A* p = s.scratch + t * s.scratch_size + (c + s.B) % s.waiting * s.image_size;
      return {p, p + s.C * kTile, p + (s.C + s.R) * kTile};
    }
  };

  // W positions of the pair of image b, whose scores by the other's classes are w, and the image that V [K, W] and the
  // gradient dz by its own scores belong to. The gradient by w takes its place.
  void pair_terms(A* w, const A* V, A* dz, V_ valid, V_& total) const {
    V_ T{};
    for (int64_t k = 0; k < K; ++k) T += load<A>(V + k * W) * load<A>(w + k * kTile);
    const Softplus<A> sp = softplus<A>(T);
    total += select<A>(valid > V_{}, sp.of_x, V_{});
    if (!grad) return;
    const V_ g = sp.sigmoid_x * loss.share_neg;
    for (int64_t k = 0; k < K; ++k) {
      const V_ by_w = select<A>(valid > V_{}, g * load<A>(V + k * W), V_{});
      const V_ by_z = select<A>(valid > V_{}, by_w * (load<A>(w + k * kTile) - T) * tau, V_{});
      store<A>(dz + k * kTile, load<A>(dz + k * kTile) + by_z);
      store<A>(w + k * kTile, by_w);
    }
  }

  // All terms that image c completes. Those of images that the run does not hold are formed for their gradients alone.
  void receive(const Thread& thread, const Run& run, int64_t c, Totals& total) const {
    const Image own = thread.image(c);
    V_ elsewhere{};
    for (int g = 0; g < vectors_of<A>(loss.f.size(run.tile)); ++g) {
      A* V = thread.V();
      loss.positive_term(own.q + g * W, V, load<A>(own.ok + g * W), run.holds(c) ? total.positive : elsewhere);
      for (int64_t j = 1; j <= n; ++j) {
        const int64_t b = c - j;
        if (b >= run.end || (!grad && b < run.first)) continue;
        const Image other = thread.image(b);
        pair_terms(other.q + j * K * kTile + g * W, V, own.q + g * W, load<A>(other.ok + g * W),
                   run.holds(b) ? total.negative : elsewhere);
      }
    }
  }

  void walk(const Thread& thread, const Run& run, NextTile after) {
    Totals total;
    for (int64_t c = grad ? run.first - n : run.first; c < run.end + n; ++c) {
      const Image image = thread.image(c);
      const int64_t b = (c + B) % B;
      NextTile next = c + 1 < run.end + n ? loss.f.lines((c + 1 + B) % B, run.tile) : after;
      loss.mark_valid(b, run.tile, image.ok);
      // Before the run only the classes of its images matter, behind it only the image's own.
      products.score(b, run.tile, c < run.first ? run.first - c : 0, c < run.end ? n : 0, image.copy, image.q, next);
      if (c >= run.first) receive(thread, run, c, total);
      const int64_t done = c - n;
      if (!grad || done < run.first) continue;
      const Image complete = thread.image(done);
      products.add_gradient(thread.t, done % B, run.tile, {complete.copy, kTile}, complete.q, next);
    }
    loss.sums[thread.t].positive += sum_lanes<A>(total.positive);
    loss.sums[thread.t].negative += sum_lanes<A>(total.negative);
  }

  double forward() {
    if (loss.balance) loss.sum_usage(products.globals());
    for_each_run(loss, [&](int t, const Run& run, const Run& coming) {
      walk({*this, t}, run, loss.f.lines((coming.first - n + B) % B, coming.tile));
    });
    products.finish();
    return loss.value(false);
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
