// jsd, same_position, with many partners, through the assigned features S' (assigned_terms.h). T-
// of all pairs is one [B x C] [C x B] product at every position, and so are df and dS'. Each of W
// positions has a lane, so every operand is a vector, and both factors of a product are loaded.
#pragma once

#include "mutual_information_loss/assigned_terms.h"

namespace infoseg {
namespace INFOSEG_ISA {

constexpr int kPairRows = kVectorRegisters == 32 ? 5 : 3;

// out[i, j] = sum_s x[i, s] y[j, s], each a vector; strides in numbers.
template <class A, int kI, int kJ>
static inline void pair_block(int64_t steps, const A* __restrict x, int64_t x_row, int64_t x_step,
                              const A* __restrict y, int64_t y_row, int64_t y_step, A* __restrict out, int64_t out_row,
                              int64_t out_column) {
  Vec<A> sum[kI][kJ];
#pragma GCC unroll 8
  for (int i = 0; i < kI; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kJ; ++j) sum[i][j] = Vec<A>{};
  for (int64_t s = 0; s < steps; ++s) {
    Vec<A> row[kI];
#pragma GCC unroll 8
    for (int i = 0; i < kI; ++i) row[i] = load<A>(x + i * x_row);
#pragma GCC unroll 8
    for (int j = 0; j < kJ; ++j) {
      const Vec<A> column = load<A>(y + j * y_row);
#pragma GCC unroll 8
      for (int i = 0; i < kI; ++i) sum[i][j] += row[i] * column;
    }
    x += x_step;
    y += y_step;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kI; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kJ; ++j) store<A>(out + i * out_row + j * out_column, sum[i][j]);
}

template <class A, int kI>
static inline void pair_columns(int64_t columns, int64_t steps, const A* x, int64_t x_row, int64_t x_step, const A* y,
                                int64_t y_row, int64_t y_step, A* out, int64_t out_row, int64_t out_column) {
  int64_t j = 0;
  for (; j + kPairRows <= columns; j += kPairRows)
    pair_block<A, kI, kPairRows>(steps, x, x_row, x_step, y + j * y_row, y_row, y_step, out + j * out_column, out_row,
                                 out_column);
  for (; j < columns; ++j)
    pair_block<A, kI, 1>(steps, x, x_row, x_step, y + j * y_row, y_row, y_step, out + j * out_column, out_row,
                         out_column);
}

// The same for any number of rows and columns.
template <class A>
INFOSEG_CALLED static void pair_product(int64_t rows, int64_t columns, int64_t steps, const A* x, int64_t x_row,
                                        int64_t x_step, const A* y, int64_t y_row, int64_t y_step, A* out,
                                        int64_t out_row, int64_t out_column) {
  int64_t i = 0;
  for (; i + kPairRows <= rows; i += kPairRows)
    pair_columns<A, kPairRows>(columns, steps, x + i * x_row, x_row, x_step, y, y_row, y_step, out + i * out_row,
                               out_row, out_column);
  for (; i < rows; ++i)
    pair_columns<A, 1>(columns, steps, x + i * x_row, x_row, x_step, y, y_row, y_step, out + i * out_row, out_row,
                       out_column);
}

template <class A>
struct AllPairs {
  static constexpr int W = Lanes<A>::W;
  using V_ = Vec<A>;

  Loss<A>& loss;
  const int64_t B, C, K, n;
  const GlobalFeatures<A> G;
  const FeatureTiles<A> df;
  GlobalGradient<A> dG;
  const bool in_place;  // products write rows of df where they lie
  const int64_t scratch_size;
  Buffer<A> scratch;

  explicit AllPairs(Loss<A>& loss)
      : loss(loss),
        B(loss.B),
        C(loss.C),
        K(loss.K),
        n(loss.n),
        G(static_cast<const A*>(loss.a.G), static_cast<const A*>(loss.a.g0), B, K, C, 0),
        df(loss.a.df),
        dG(B, K, C, 0, loss.threads, loss.grad && loss.a.dG, loss.grad && loss.a.dg0, true),
        in_place(df.accumulated && df.flat && df.map.stride_w == 1 && loss.P % W == 0),
        scratch_size(2 * B * K * kTile + C * kTile + B * kTile + (2 * B + kPairRows) * C * W + B * B * W + B * W +
                     K * W + (in_place ? 0 : B * C * kTile) + kGradientScratch<A>),
        scratch(loss.threads * scratch_size) {}

  struct Scratch {
    A *z, *V;       // [B, K, kTile]; the gradient by z replaces it
    A* copy;        // [C, kTile] features of one image
    A* ok;          // [B, kTile]: 1 at valid positions, else 0
    A *f, *S, *dS;  // [B, C, W], [B, C, W], [kPairRows, C, W]
    A* pairs;       // [B, B, W]: T-, then g
    A* s0;          // [B, W]
    A* dV;          // [K, W]
    A* df;          // [B, C, kTile], unless in_place
    A* transposed;  // kGradientScratch
  };

  Scratch scratch_of(int t) const {
    Scratch s;
    A* p = scratch + t * scratch_size;
    const auto take = [&p](int64_t n) {
      A* from = p;
      p += n;
      return from;
    };
    s.z = take(B * K * kTile);
    s.V = take(B * K * kTile);
    s.copy = take(C * kTile);
    s.ok = take(B * kTile);
    s.f = take(B * C * W);
    s.S = take(B * C * W);
    s.dS = take(kPairRows * C * W);
    s.pairs = take(B * B * W);
    s.s0 = take(B * W);
    s.dV = take(K * W);
    s.df = take(in_place ? 0 : B * C * kTile);
    s.transposed = take(kGradientScratch<A>);
    return s;
  }

  bool partner(int64_t b, int64_t c) const {
    const int64_t j = (c - b + B) % B;
    return j >= 1 && j <= n;
  }

  // All terms of pairs at W positions, the g-th group of a tile.
  void pair_terms(int t, int64_t tile, int g, const Scratch& s, const A* copy_of_f, int64_t copy_stride_b,
                  int64_t copy_stride_c, V_& total) {
    const A* ok = s.ok + g * W;
    NextTile none = loss.f.none();
    for (int64_t b = 0; b < B; ++b)
      for (int64_t c = 0; c < C; ++c)
        store<A>(s.f + (b * C + c) * W, load<A>(copy_of_f + b * copy_stride_b + c * copy_stride_c));
    for (int64_t c = 0; c < B; ++c) {
      const A* V = s.V + c * K * kTile + g * W;
      product<A, Left::columns>(C, 1, K, {G.rows + c * K * C, C}, {V, kTile}, {}, {s.S + c * C * W, W}, none);
      store<A>(s.s0 + c * W, assigned_offset(G, c, V));
    }
    pair_product<A>(B, B, C, s.f, C * W, W, s.S, C * W, W, s.pairs, B * W, W);
    for (int64_t b = 0; b < B; ++b) {
      const V_ valid = load<A>(ok + b * kTile);
      V_ of_image{};  // one sum for each image: a single sum of B * B numbers would accumulate rounding errors
      for (int64_t c = 0; c < B; ++c) {
        A* pair = s.pairs + (b * B + c) * W;
        if (partner(b, c))
          of_image += pair_term(loss, pair, load<A>(s.s0 + c * W), valid);
        else
          store<A>(pair, V_{});
      }
      total += of_image;
    }
    if (!loss.grad) return;
    if (loss.a.df.data) {
      A* to = in_place ? df.place(0, tile) + g * W : s.df + g * W;
      pair_product<A>(B, C, B, s.pairs, B * W, W, s.S, W, C * W, to, in_place ? df.map.stride_b : C * kTile,
                      in_place ? df.map.stride_c : kTile);
    }
    for (int64_t c0 = 0; c0 < B; c0 += kPairRows) {
      const int64_t rows = B - c0 < kPairRows ? B - c0 : kPairRows;
      pair_product<A>(rows, C, B, s.pairs + c0 * W, W, B * W, s.f, W, C * W, s.dS, C * W, W);
      for (int64_t c = c0; c < c0 + rows; ++c) {
        const A* dS = s.dS + (c - c0) * C * W;
        const A* V = s.V + c * K * kTile + g * W;
        V_ ds0{};
        for (int64_t b = 0; b < B; ++b) ds0 += load<A>(s.pairs + (b * B + c) * W);
        G.inner_products(c, {dS, W}, 1, s.dV, W);
        A* to = dG.of(t, c, 1);
        through_assignment(G, c, V, s.dV, W, ds0, loss.tau, s.z + c * K * kTile + g * W, dG.offsets_of(t, c));
        if (to) dG.add(t, c, {dS, W}, W, V, s.transposed, none);
      }
    }
  }

  double forward() {
    const FeatureTiles<A>& f = loss.f;
    if (loss.balance) loss.sum_usage(G);
    auto body = [&](int t) {
      const Scratch s = scratch_of(t);
      const Range part = share(f.tiles, loss.threads, t);
      for (int64_t tile = part.begin; tile < part.end; ++tile) {
        const int groups = vectors_of<A>(f.size(tile));
        V_ positive{}, negative{};
        for (int64_t b = 0; b < B; ++b) {
          A *z = s.z + b * K * kTile, *V = s.V + b * K * kTile, *ok = s.ok + b * kTile;
          NextTile next = b + 1 < B ? f.lines(b + 1, tile) : f.lines(0, tile + 1);
          loss.mark_valid(b, tile, ok);
          const TileRows<A> rows = f.read(b, tile, s.copy);
          G.scores(b, 1, rows, groups, z, kTile, next);
          for (int g = 0; g < groups; ++g)
            loss.positive_term(z + g * W, V + g * W, load<A>(ok + g * W), positive, kTile);
        }
        for (int g = 0; g < groups; ++g) gather_and_pair(t, tile, g, s, negative);
        loss.sums[t].positive += sum_lanes<A>(positive);
        loss.sums[t].negative += sum_lanes<A>(negative);
        if (!loss.grad) continue;
        NextTile none = f.none();
        for (int64_t b = 0; b < B; ++b) {
          const A* a = s.z + b * K * kTile;
          A* to = dG.of(t, b, 1);
          if (loss.a.df.data) finish_df(b, tile, a, s);
          if (to) dG.add(t, b, f.read(b, tile, s.copy), f.size(tile), a, s.transposed, none);
          if (A* offsets = dG.offsets_of(t, b)) add_dg0(a, K, groups, offsets);
        }
      }
    };
    parallel_for_floats(loss.threads, body);
    if (loss.grad && (loss.a.dG || loss.a.dg0)) dG.finish(static_cast<A*>(loss.a.dG), static_cast<A*>(loss.a.dg0));
    return loss.value(false);
  }

  void gather_and_pair(int t, int64_t tile, int g, const Scratch& s, V_& negative) {
    const FeatureTiles<A>& f = loss.f;
    if (f.in_place(tile)) {
      const TileRows<A> rows = f.read(0, tile, nullptr);
      return pair_terms(t, tile, g, s, rows.data + g * W, f.map.stride_b, f.map.stride_c, negative);
    }
    // Through the scratch tile of the thread, image by image.
    for (int64_t b = 0; b < B; ++b) {
      const TileRows<A> rows = f.read(b, tile, s.copy);
      for (int64_t c = 0; c < C; ++c) store<A>(s.f + (b * C + c) * W, load<A>(rows.data + c * rows.stride + g * W));
    }
    pair_terms(t, tile, g, s, s.f, C * W, W, negative);
  }

  // Adds to df, which holds the part of the pairs, the K coefficients of each position times G.
  void finish_df(int64_t b, int64_t tile, const A* a, const Scratch& s) const {
    const int vectors = vectors_of<A>(df.size(tile));
    const int64_t stride = in_place ? df.map.stride_c : kTile;
    A* rows = in_place ? df.place(b, tile) : s.df + b * C * kTile;
    NextTile none{};
    product<A, Left::columns>(C, vectors, K, {G.rows + b * K * C, C}, {a, kTile}, {rows, stride}, {rows, stride}, none);
    if (!in_place) df.write(b, tile, 0, C, rows);
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
