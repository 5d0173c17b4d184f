// jsd, same_position, with a few partners, through the assigned features S' of the images (assigned_features.h): an image
// costs two products with its own K global features for the scores and S', and four for the gradients, whatever n is;
// a pair costs C multiplications for T-, for dS' and for df each. In the walk over a tile's images
//   at image c:      scores, V_c, S'_c; T- and g of the pairs (c - n, c) .. (c - 1, c); dS'_c, the gradient by c's scores,
//                    dG_c and dg0_c
//   at image c + n:  S' of the last partner is known, so df_c is formed
// A run needs of the n images before it the features, and of the n images behind it S'.
#pragma once

#include "assigned_features.h"
#include "image_runs.h"
#include "pair_rows.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class E, class A>
struct WaitingImages {
  static constexpr int W = Lanes<A>::W;
  using V_ = Vec<A>;

  Loss<E, A>& loss;
  const int64_t B, C, K, n;
  const bool grad;
  const GlobalFeatures<A> G;
  const FeatureTiles<E, A> df;
  GlobalGradient<A> sums;
  const int64_t image_size;     // numbers kept of an image that waits
  const int64_t assigned_size;  // of one's S' and s0
  const int64_t scratch_size;   // numbers a thread
  Buffer<A> scratch;

  explicit WaitingImages(Loss<E, A>& loss)
      : loss(loss),
        B(loss.B),
        C(loss.C),
        K(loss.K),
        n(loss.n),
        grad(loss.grad),
        G(static_cast<const A*>(loss.a.G), static_cast<const A*>(loss.a.g0), B, K, C, 0, true, true),
        df(loss.a.df),
        sums(B, K, C, 0, loss.threads, loss.a.dG, loss.a.dg0),
        image_size((C + K + n + 1) * kTile),
        assigned_size((C + 1) * kTile),
        scratch_size((n + 1) * image_size + (2 * n + 1) * assigned_size + 2 * K * kTile + C * kTile +
                     kBlockRows * kTile + kTile * kChannels),
        scratch(loss.threads * scratch_size) {}

  struct Image {
    A* f;   // [C, kTile]
    A* dz;  // [K, kTile]: scores, then the gradient by them
    A* g;   // [n, kTile]: T- with each partner, then the gradient by it
    A* ok;  // [kTile]: 1 at valid positions, else 0
  };

  // One thread's scratch in one run.
  struct Walk {
    const WaitingImages& s;
    const int t;
    const Run run;
    A *images, *assigned, *V, *dV, *dS, *block, *transposed;

    Walk(const WaitingImages& s, int t, const Run& run) : s(s), t(t), run(run) {
      images = s.scratch + t * s.scratch_size;
      assigned = images + (s.n + 1) * s.image_size;
      V = assigned + (2 * s.n + 1) * s.assigned_size;
      dV = V + s.K * kTile;
      dS = dV + s.K * kTile;
      block = dS + s.C * kTile;
      transposed = block + kBlockRows * kTile;
    }

    Image image(int64_t c) const {
      A* p = images + (c + s.B) % (s.n + 1) * s.image_size;
      return {p, p + s.C * kTile, p + (s.C + s.K) * kTile, p + (s.C + s.K + s.n) * kTile};
    }

    // Those of the run's first n images stay: they are met again as partners of its last where it holds the whole batch.
    A* S(int64_t c) const {
      const int64_t i = (c - run.first) % s.B;
      return assigned + (i < s.n ? i : s.n + i % (s.n + 1)) * s.assigned_size;
    }
    A* s0(int64_t c) const { return S(c) + s.C * kTile; }
  };

  // Features of image c, and where they are valid.
  void read(const Walk& w, int64_t c) const {
    const Image image = w.image(c);
    const int64_t b = (c + B) % B;
    const TileRows<A> rows = loss.f.read(b, w.run.tile, image.f);
    const int groups = vectors_of<A>(loss.f.size(w.run.tile));
    if (rows.data != image.f)
      for (int64_t i = 0; i < C; ++i)
        for (int g = 0; g < groups; ++g)
          store<A>(image.f + i * kTile + g * W, load<A>(rows.data + i * rows.stride + g * W));
    loss.mark_valid(b, w.run.tile, image.ok);
  }

  // V and S' of image c, its positive term and the gradient of that by the scores.
  void assign(const Walk& w, int64_t c, V_& positive, NextTile& next) const {
    const Image image = w.image(c);
    const int64_t b = c % B;
    const int groups = vectors_of<A>(loss.f.size(w.run.tile));
    const TileRows<A> rows = loss.f.read(b, w.run.tile, image.f);
    G.scores(b, rows, groups, image.dz, kTile, next, rows.data == image.f ? nullptr : image.f);
    loss.mark_valid(b, w.run.tile, image.ok);
    for (int g = 0; g < groups; ++g) {
      loss.positive_term(image.dz + g * W, w.V + g * W, load<A>(image.ok + g * W), positive, kTile);
      store<A>(w.s0(c) + g * W, assigned_offset(G, b, w.V + g * W));
    }
    rank_rows(w.V, G.rows + b * K * C, C, K, groups, w.S(c), next);
  }

  // The terms of image c and those of first .. c - 1, of which the run need not hold all.
  void meet(const Walk& w, int64_t c, int64_t first, int64_t end, V_& negative) const {
    const int groups = vectors_of<A>(loss.f.size(w.run.tile));
    const auto f_of = [&](int64_t i) { return static_cast<const A*>(w.image(first + i).f); };
    const auto g_of = [&](int64_t i) { return w.image(first + i).g + (c - first - i - 1) * kTile; };
    inner_products(end - first, C, groups, w.S(c), f_of, g_of);
    for (int64_t b = first; b < end; ++b) {
      const Image image = w.image(b);
      for (int g = 0; g < groups; ++g) {
        const V_ term = pair_term(loss, g_of(b - first) + g * W, load<A>(w.s0(c) + g * W), load<A>(image.ok + g * W));
        if (w.run.holds(b)) negative += term;
      }
    }
  }

  // All gradient by the scores of image c, and that by its global features.
  void differentiate(const Walk& w, int64_t c, NextTile& next) {
    const Image image = w.image(c);
    const int64_t b = c % B, positions = loss.f.size(w.run.tile);
    const int groups = vectors_of<A>(positions);
    const auto f_of = [&](int64_t i) { return static_cast<const A*>(w.image(c - n + i).f); };
    const auto g_of = [&](int64_t i) { return static_cast<const A*>(w.image(c - n + i).g + (n - i - 1) * kTile); };
    weighted_sum(n, C, groups, f_of, g_of, loss.a.valid != nullptr, w.dS);
    G.score_panels(b, w.dS, kTile, groups, w.dV, kTile);
    A* to = sums.of(w.t, b, 1);
    A* offsets = sums.offsets_of(w.t, b);
    for (int g = 0; g < groups; ++g) {
      V_ ds0{}, valid{};
      for (int64_t i = 0; i < n; ++i) {
        ds0 += load<A>(g_of(i) + g * W);
        valid += load<A>(w.image(c - n + i).ok + g * W);
      }
      // Where none of them is valid V does not count, even if it is NaN.
      A* V = w.V + g * W;
      if (loss.a.valid)
        for (int64_t k = 0; k < K; ++k) store<A>(V + k * kTile, select<A>(valid > V_{}, load<A>(V + k * kTile), V_{}));
      through_assignment(G, b, V, w.dV + g * W, kTile, ds0, loss.tau, image.dz + g * W, offsets);
    }
    if (offsets) add_dg0(image.dz, K, groups, offsets);
    if (!to) return;
    if (loss.f.channel_rows())
      add_channel_rows<A>(loss.f.channels_at(b, w.run.tile), loss.f.map.stride_w, positions, C, sums.padded, image.dz, K,
                          to, next);
    else
      add_dG(TileRows<A>{image.f, kTile}, positions, C, sums.padded, image.dz, K, to, w.transposed, next);
    add_dG(TileRows<A>{w.dS, kTile}, positions, C, sums.padded, w.V, K, to, w.transposed, next);
  }

  // df of image b, whose partners have all been met.
  void write_df_of(const Walk& w, int64_t b, NextTile& next) const {
    const Image image = w.image(b);
    const int groups = vectors_of<A>(df.size(w.run.tile));
    const auto g_of = [&](int64_t i) { return static_cast<const A*>(image.g + i * kTile); };
    const auto beside = [&](int64_t c, int64_t rows) {
      A* to = rows > kBlockRows ? w.dS : w.block;
      const auto S_of = [&](int64_t i) { return static_cast<const A*>(w.S(b + 1 + i) + c * kTile); };
      weighted_sum(n, rows, groups, S_of, g_of, loss.a.valid != nullptr, to);
      return TileRows<A>{to, kTile};
    };
    write_df(df, b % B, w.run.tile, image.dz, static_cast<const A*>(G.rows + b % B * K * C), K, w.block, next, beside);
  }

  void walk(const Walk& w, const Run& coming) {
    const Run& run = w.run;
    const auto lines = [&](const Run& of, int64_t c) { return loss.f.lines((c + B) % B, of.tile); };
    const int64_t before = grad ? run.first - n : run.first, again = run.first + B;
    const int64_t read_end = run.end + n < again ? run.end + n : again;
    const int64_t coming_first = grad ? coming.first - n : coming.first;
    for (int64_t c = before; c < run.end + n; ++c) {
      // While the last partners come that have been read before, the coming run's images are asked for.
      NextTile next = c + 1 < read_end ? lines(run, c + 1) : lines(coming, coming_first + c + 1 - read_end);
      if (c < run.first) {
        read(w, c);
        continue;
      }
      V_ positive{}, negative{};
      if (c < again) assign(w, c, positive, next);
      const bool with_earlier = grad && run.holds(c);
      const int64_t first = with_earlier || c - n > run.first ? c - n : run.first;
      meet(w, c, first, c < run.end ? c : run.end, negative);
      if (run.holds(c)) loss.sums[w.t].positive += sum_lanes<A>(positive);
      loss.sums[w.t].negative += sum_lanes<A>(negative);
      if (with_earlier) differentiate(w, c, next);
      if (loss.a.df.data && c - n >= run.first) write_df_of(w, c - n, next);
    }
  }

  double forward() {
    if (loss.balance) loss.sum_usage(G);
    for_each_run(loss, [&](int t, const Run& run, const Run& coming) { walk(Walk(*this, t, run), coming); });
    if (loss.a.dG || loss.a.dg0) sums.finish(static_cast<A*>(loss.a.dG), static_cast<A*>(loss.a.dg0));
    return loss.value(false);
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
