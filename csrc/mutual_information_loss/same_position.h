// jsd, same_position, with one partner, or with a few partners and few classes. The negative terms
// of image b need the probabilities of its partners b + 1 .. b + n at the same position and give
// gradients by the partners' scores. So an image waits, with its scores and features in cache,
// until its last partner has been scored:
//   at image c:      scores q_c, V_c, the terms of the pairs (c - n, c) .. (c - 1, c)
//   at image c + n:  the gradient by q_c is complete; df, dG and dg0 follow
// The features are read once. A run needs the scores of the n images before it by its own classes,
// and the probabilities of the n images after it. A run that holds the whole batch keeps its first
// n images for that.
#pragma once

#include "mutual_information_loss/image_runs.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class A>
struct SamePosition {
  static constexpr int W = Lanes<A>::W;
  using V_ = Vec<A>;

  Loss<A>& loss;
  const int64_t B, C, K, R, n;
  const A tau;
  const bool grad;
  TileProducts<A> products;
  const int64_t kept;          // images in scratch: those that wait, and the first ones of a whole batch
  const int64_t image_size;    // numbers of one
  const int64_t scratch_size;  // numbers a thread
  Buffer<A> scratch;

  explicit SamePosition(Loss<A>& loss)
      : loss(loss),
        B(loss.B),
        C(loss.C),
        K(loss.K),
        R(loss.R),
        n(loss.n),
        tau(loss.tau),
        grad(loss.grad),
        products(loss.products(n)),
        kept(2 * n + 1),
        image_size((C + R + K + 1) * kTile),
        scratch_size(kept * image_size),
        scratch(loss.threads * scratch_size) {}

  struct Image {
    A* copy;  // [C, kTile] features
    A* q;     // [R, kTile] scores, then the gradient by them
    A* V;     // [K, kTile]
    A* ok;    // [kTile]: 1 at valid positions, else 0
  };

  struct Totals {
    V_ positive{}, negative{};
  };

  // One thread's images in one run.
  struct Walk {
    const SamePosition& s;
    const int t;
    const Run run;
    // The first n images of the run stay: in a whole batch they are also the partners of its last
    // images.
    Image image(int64_t c) const {
      const int64_t i = run.whole ? (c - run.first) % s.B : c - run.first + s.n;
      const int64_t place = run.whole && i < s.n ? i : s.n + i % (s.n + 1);
      A* copy = s.scratch + t * s.scratch_size + place * s.image_size;
      A* q = copy + s.C * kTile;
      return {copy, q, q + s.R * kTile, q + (s.R + s.K) * kTile};
    }
  };

  // The terms of a pair at W positions. w: the scores of the first image by the classes of the
  // second, replaced by the gradient. V, dz: the probabilities of the second image and the gradient
  // by its own scores. Rows lie kTile apart.
  void pair_terms(A* w, const A* V, A* dz, V_ valid, V_& total) const {
    V_ T{};
    for (int64_t k = 0; k < K; ++k) T += load<A>(V + k * kTile) * load<A>(w + k * kTile);
    const Softplus<A> sp = softplus<A>(T);
    total += select<A>(valid > V_{}, sp.of_x, V_{});
    if (!grad) return;
    const V_ g = sp.sigmoid_x * loss.share_neg;
    for (int64_t k = 0; k < K; ++k) {
      const V_ by_w = select<A>(valid > V_{}, g * load<A>(V + k * kTile), V_{});
      const V_ by_z = select<A>(valid > V_{}, by_w * (load<A>(w + k * kTile) - T) * tau, V_{});
      store<A>(dz + k * kTile, load<A>(dz + k * kTile) + by_z);
      store<A>(w + k * kTile, by_w);
    }
  }

  // The terms of the pairs of the images first .. end - 1 with image c. Terms of images outside the
  // run only serve the gradient.
  void meet(const Walk& w, int64_t c, int64_t first, int64_t end, V_& negative) const {
    const Image own = w.image(c);
    V_ elsewhere{};
    for (int g = 0; g < vectors_of<A>(loss.f.size(w.run.tile)); ++g)
      for (int64_t b = end - 1; b >= first; --b) {
        const Image other = w.image(b);
        pair_terms(other.q + (c - b) * K * kTile + g * W, own.V + g * W, own.q + g * W, load<A>(other.ok + g * W),
                   w.run.holds(b) ? negative : elsewhere);
      }
  }

  void differentiate(const Walk& w, int64_t c, NextTile& next) {
    const Image image = w.image(c);
    products.add_gradient(w.t, (c + B) % B, w.run.tile, {image.copy, kTile}, image.q, next);
  }

  void walk(const Walk& w, const Run& coming) {
    const Run& run = w.run;
    const auto lines = [&](const Run& of, int64_t c) { return loss.f.lines((c + B) % B, of.tile); };
    const auto first_of = [&](const Run& of) { return grad && !of.whole ? of.first - n : of.first; };
    const int64_t scored_end = run.whole ? run.end : run.end + n;
    V_ positive{}, negative{}, elsewhere{};
    for (int64_t c = first_of(run); c < run.end + n; ++c) {
      const Image image = w.image(c);
      const int64_t b = (c + B) % B;
      NextTile next = c + 1 < scored_end    ? lines(run, c + 1)
                      : c + 1 == scored_end ? lines(coming, first_of(coming))
                                            : loss.f.none();
      if (c < scored_end) {
        loss.mark_valid(b, run.tile, image.ok);
        // An image before the run needs the scores by the run's classes only; one after it needs
        // its own only.
        products.score(b, run.tile, c < run.first ? run.first - c : 0, c < run.end ? n : 0, image.copy, image.q, next);
        if (c < run.first) continue;
        for (int g = 0; g < vectors_of<A>(loss.f.size(run.tile)); ++g)
          loss.positive_term(image.q + g * W, image.V + g * W, load<A>(image.ok + g * W),
                             run.holds(c) ? positive : elsewhere, kTile);
      }
      const int64_t before = grad && !run.whole ? c - n : c - n > run.first ? c - n : run.first;
      meet(w, c, before, c < run.end ? c : run.end, negative);
      if (!grad) continue;
      if (c - n >= (run.whole ? run.first + n : run.first)) differentiate(w, c - n, next);
      if (c >= scored_end) differentiate(w, c, next);
    }
    loss.sums[w.t].positive += sum_lanes<A>(positive);
    loss.sums[w.t].negative += sum_lanes<A>(negative);
  }

  double forward() {
    if (loss.balance) loss.sum_usage(products);
    for_each_run(loss, [&](int t, const Run& run, const Run& coming) { walk({*this, t, run}, coming); });
    products.finish();
    return loss.value(false);
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
