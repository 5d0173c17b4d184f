// jsd, same_position, with a few partners, through the assigned features S' (assigned_terms.h). For
// any n, an image takes two products with its own K global features for the scores and S', and four
// more for the gradients. A pair takes C multiplications for each of T-, dS' and df. The walk over
// the images of a tile computes
//   at image c:      scores, V_c, S'_c; T- and g of the pairs (c - n, c) .. (c - 1, c), and dS'_c. These complete the
//                    gradient by c's scores, so dG_c and dg0_c follow
//   at image c + n:  S' of the last partner is known, so df_c follows
// A run needs the features of the n images before it and S' of the n images after it.
#pragma once

#include "mutual_information_loss/assigned_terms.h"
#include "mutual_information_loss/image_runs.h"
#include "mutual_information_loss/pair_rows.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class A>
struct AssignedFeatures {
  static constexpr int W = Lanes<A>::W;
  static constexpr int kRow = kApart<A>;
  using V_ = Vec<A>;

  Loss<A>& loss;
  const int64_t B, C, K, n;
  const bool grad;
  const GlobalFeatures<A> G;
  const FeatureTiles<A> df;
  GlobalGradient<A> sums;
  const int64_t image_size;     // numbers kept for an image that waits
  const int64_t assigned_size;  // numbers of one image's S' and s0
  const int64_t scratch_size;   // numbers for each thread
  Buffer<A> scratch;
  Buffer<A*> pointers;  // 4 n for each thread

  explicit AssignedFeatures(Loss<A>& loss)
      : loss(loss),
        B(loss.B),
        C(loss.C),
        K(loss.K),
        n(loss.n),
        grad(loss.grad),
        G(static_cast<const A*>(loss.a.G), static_cast<const A*>(loss.a.g0), B, K, C, 0),
        df(loss.a.df),
        sums(B, K, C, 0, loss.threads, loss.a.dG, loss.a.dg0, !loss.f.channel_rows()),
        image_size(C * kRow + (K + n + 1) * kTile),
        assigned_size(C * kRow + kTile),
        scratch_size((n + 1) * image_size + (2 * n + 1) * assigned_size + 2 * K * kTile + C * kRow +
                     kScratchRows * kTile + kGradientScratch<A>),
        scratch(loss.threads * scratch_size),
        pointers(loss.threads * 4 * n) {}

  struct Image {
    A* f;   // [C, kRow]
    A* dz;  // [K, kTile]: scores, then the gradient by them
    A* g;   // [n, kTile]: T- with each partner, then the gradient by it
    A* ok;  // [kTile]: 1 at valid positions, else 0
  };

  // The scratch of one thread in one run.
  struct Walk {
    const AssignedFeatures& s;
    const int t;
    const Run run;
    A *images, *assigned;
    A *V, *dV;  // [K, kTile]
    A* dS;      // [C, kRow], later the part of another image's df that comes from pairs
    A *block, *transposed;
    A **f, **g;        // of the images that meet another
    A **S, **weights;  // of an image's partners

    Walk(const AssignedFeatures& s, int t, const Run& run) : s(s), t(t), run(run) {
      images = s.scratch + t * s.scratch_size;
      assigned = images + (s.n + 1) * s.image_size;
      V = assigned + (2 * s.n + 1) * s.assigned_size;
      dV = V + s.K * kTile;
      dS = dV + s.K * kTile;
      block = dS + s.C * kRow;
      transposed = block + kScratchRows * kTile;
      f = s.pointers + t * 4 * s.n;
      g = f + s.n;
      S = g + s.n;
      weights = S + s.n;
    }

    Image image(int64_t c) const {
      A* f = images + (c + s.B) % (s.n + 1) * s.image_size;
      A* dz = f + s.C * kRow;
      return {f, dz, dz + s.K * kTile, dz + (s.K + s.n) * kTile};
    }

    // S' [C, kRow], then s0 [kTile]. Those of the run's first n images stay: in a whole batch these
    // images are also the partners of its last ones.
    A* assigned_to(int64_t c) const {
      const int64_t i = (c - run.first) % s.B;
      return assigned + (i < s.n ? i : s.n + i % (s.n + 1)) * s.assigned_size;
    }
  };

  // Reads the features of image c and its valid positions.
  void read(const Walk& w, int64_t c) const {
    const Image image = w.image(c);
    const int64_t b = (c + B) % B, padded = vectors_of<A>(loss.f.size(w.run.tile)) * W;
    const TileRows<A> rows = loss.f.read(b, w.run.tile, image.f, kRow);
    if (rows.data != image.f)
      for (int64_t i = 0; i < C; ++i)
        for (int64_t t = 0; t < padded; t += W)
          store<A>(image.f + i * kRow + t, load<A>(rows.data + i * rows.stride + t));
    loss.mark_valid(b, w.run.tile, image.ok);
  }

  // V and S' of image c, its positive term, and the gradient of that term by the scores.
  void assign(const Walk& w, int64_t c, V_& positive, NextTile& next) const {
    const Image image = w.image(c);
    const int64_t b = c % B;
    const int groups = vectors_of<A>(loss.f.size(w.run.tile));
    const TileRows<A> rows = loss.f.read(b, w.run.tile, image.f, kRow);
    G.scores(b, 1, rows, groups, image.dz, kTile, next, rows.data == image.f ? nullptr : image.f, kRow);
    loss.mark_valid(b, w.run.tile, image.ok);
    A* S = w.assigned_to(c);
    for (int g = 0; g < groups; ++g) {
      loss.positive_term(image.dz + g * W, w.V + g * W, load<A>(image.ok + g * W), positive, kTile);
      store<A>(S + C * kRow + g * W, assigned_offset(G, b, w.V + g * W));
    }
    product<A, Left::columns>(C, groups, K, {G.rows + b * K * C, C}, {w.V, kTile}, {}, {S, kRow}, next);
  }

  // The terms of the pairs of the images first .. end - 1 with image c and, with_dS, dS' of c.
  // Terms of images outside the run only serve the gradient.
  void meet(const Walk& w, int64_t c, int64_t first, int64_t end, bool with_dS, V_& negative) const {
    const int groups = vectors_of<A>(loss.f.size(w.run.tile));
    const A* S = w.assigned_to(c);
    for (int64_t b = first; b < end; ++b) {
      const Image image = w.image(b);
      w.f[b - first] = image.f;
      w.g[b - first] = image.g + (c - b - 1) * kTile;
    }
    for (int line = 0; line < groups; line += kLineVectors) {
      const int line_end = line + kLineVectors < groups ? line + kLineVectors : groups;
      for (int g = line; g < line_end; ++g) {
        inner_products<A>(end - first, C, S + g * W, w.f, g * W, w.g);
        for (int64_t b = first; b < end; ++b) {
          const V_ term =
              pair_term(loss, w.g[b - first] + g * W, load<A>(S + C * kRow + g * W), load<A>(w.image(b).ok + g * W));
          if (w.run.holds(b)) negative += term;
        }
      }
      if (with_dS) weighted_sum<A>(n, C, line_end - line, w.f, w.g, line * W, loss.a.valid != nullptr, w.dS);
    }
  }

  // Completes the gradient by the scores of image c and adds its share to dG and dg0. c has met the
  // n images before it.
  void differentiate(const Walk& w, int64_t c, NextTile& next) {
    const Image image = w.image(c);
    const int64_t b = c % B, positions = loss.f.size(w.run.tile);
    const int groups = vectors_of<A>(positions);
    G.inner_products(b, {w.dS, kRow}, groups, w.dV, kTile);
    A* to = sums.of(w.t, b, 1);
    A* offsets = sums.offsets_of(w.t, b);
    for (int g = 0; g < groups; ++g) {
      V_ ds0{}, valid{};
      for (int64_t i = 0; i < n; ++i) {
        ds0 += load<A>(w.g[i] + g * W);
        valid += load<A>(w.image(c - n + i).ok + g * W);
      }
      // V does not count where no image is valid, even if it is NaN.
      A* V = w.V + g * W;
      if (loss.a.valid)
        for (int64_t k = 0; k < K; ++k) store<A>(V + k * kTile, select<A>(valid > V_{}, load<A>(V + k * kTile), V_{}));
      through_assignment(G, b, V, w.dV + g * W, kTile, ds0, loss.tau, image.dz + g * W, offsets);
    }
    if (offsets) add_dg0(image.dz, K, groups, offsets);
    if (!to) return;
    if (loss.f.channel_rows())
      add_channel_rows<A>(loss.f.at(b, w.run.tile), loss.f.map.stride_w, positions, C, sums.padded, image.dz, K, to,
                          next);
    else
      sums.template add<kRow>(w.t, b, {image.f, kRow}, positions, image.dz, w.transposed, next);
    sums.template add<kRow>(w.t, b, {w.dS, kRow}, positions, w.V, w.transposed, next);
  }

  // Writes df of image b, which has met all its partners.
  void write_df_of(const Walk& w, int64_t b, NextTile& next) const {
    const Image image = w.image(b);
    const int groups = vectors_of<A>(df.size(w.run.tile));
    for (int64_t j = 0; j < n; ++j) {
      w.S[j] = w.assigned_to(b + 1 + j);
      w.weights[j] = image.g + j * kTile;
    }
    weighted_sum<A>(n, C, groups, w.S, w.weights, 0, loss.a.valid != nullptr, w.dS);
    write_df<A>(df, b % B, w.run.tile, image.dz, G.rows + b % B * K * C, K, w.block, next, {w.dS, kRow});
  }

  void walk(const Walk& w, const Run& coming) {
    const Run& run = w.run;
    const auto lines = [&](const Run& of, int64_t c) { return loss.f.lines((c + B) % B, of.tile); };
    const int64_t before = grad ? n : 0, again = run.first + B;
    const int64_t read_end = run.end + n < again ? run.end + n : again;
    NextTile none = loss.f.none();
    for (int64_t c = run.first - before; c < run.end + n; ++c) {
      // The last partners have been read before: prefetch the images of the coming run meanwhile.
      NextTile next = c + 1 < read_end ? lines(run, c + 1) : lines(coming, coming.first - before + c + 1 - read_end);
      if (c < run.first) {
        read(w, c);
        continue;
      }
      V_ positive{}, negative{};
      const bool with_dS = grad && run.holds(c);
      // The products of the gradient take longer, so they prefetch.
      if (c < again) assign(w, c, positive, with_dS ? none : next);
      const int64_t first = with_dS || c - n > run.first ? c - n : run.first;
      meet(w, c, first, c < run.end ? c : run.end, with_dS, negative);
      if (run.holds(c)) loss.sums[w.t].positive += sum_lanes<A>(positive);
      loss.sums[w.t].negative += sum_lanes<A>(negative);
      if (with_dS) differentiate(w, c, next);
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
