// The folded global features G [B, K, C] and g0 [B, K], as the products want them.
#pragma once

#include "buffer.h"
#include "products.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Image b's candidates are its own K classes and those of its n partners (b + 1 .. b + n) mod B. The rows of the
// first n images are repeated behind the last, so that every image's candidates lie in one run of rows.
template <class A>
struct GlobalFeatures {
  int64_t B, K, C, partners;
  RowBlocks blocks;
  Buffer<A> panels;   // [B][block of rows][C][rows of the block]: a column of a block is contiguous, for the scores
  Buffer<A> rows;     // [B + n][K][C], for df
  Buffer<A> offsets;  // [B][K]
  bool has_offset;

  // Without need_rows (no df wanted) they are not made; likewise the panels.
  GlobalFeatures(const A* G, const A* g0, int64_t B, int64_t K, int64_t C, int64_t partners, bool need_panels,
                 bool need_rows)
      : B(B),
        K(K),
        C(C),
        partners(partners),
        blocks(RowBlocks::of(K)),
        panels(need_panels ? B * K * C : 0),
        rows(need_rows ? (B + partners) * K * C : 0),
        offsets(g0 ? B * K : 0),
        has_offset(g0 != nullptr) {
    if (need_panels)
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < blocks.count; ++i) {
          const int64_t r0 = blocks.begin(i), n = blocks.begin(i + 1) - r0;
          A* to = panels + (b * K + r0) * C;
          const A* from = G + (b * K + r0) * C;
          for (int64_t c = 0; c < C; ++c)
            for (int64_t r = 0; r < n; ++r) to[c * n + r] = from[r * C + c];
        }
    if (need_rows)
      for (int64_t b = 0; b < B + partners; ++b) {
        const A* from = G + (b % B) * K * C;
        A* to = rows + b * K * C;
        for (int64_t i = 0; i < K * C; ++i) to[i] = from[i];
      }
    if (g0)
      for (int64_t i = 0; i < B * K; ++i) offsets[i] = g0[i];
  }

  // <f, G_k> alone, without g0.
  void score_panels(int64_t c, const A* f, int64_t f_stride, int vectors, A* out, int64_t out_stride) const {
    for (int64_t i = 0; i < blocks.count; ++i) {
      const int64_t r0 = blocks.begin(i), n = blocks.begin(i + 1) - r0;
      product_strip<A, 1, Out::store>(static_cast<int>(n), vectors, C, panels + (c * K + r0) * C, n, f, f_stride,
                                      nullptr, out + r0 * out_stride, out_stride, nothing_ahead(f));
    }
  }

  // Scores of one tile by the classes of image c: out[k, 0..vectors*W). With `pack`, the tile is put there, its rows
  // kPack apart.
  template <int kPack = kTile>
  void scores(int64_t c, TileRows<A> f, int vectors, A* out, int64_t out_stride, NextTile& next,
              A* pack = nullptr) const {
    for (int64_t i = 0; i < blocks.count; ++i) {
      const int64_t r0 = blocks.begin(i), n = blocks.begin(i + 1) - r0;
      const A* panel = panels + (c * K + r0) * C;
      const A* start = has_offset ? offsets + c * K + r0 : nullptr;
      A* to = out + r0 * out_stride;
      if (!pack) {
        product_strip<A, 1, Out::store>(static_cast<int>(n), vectors, C, panel, n, f.data, f.stride, start, to,
                                        out_stride, next.take(C));
        continue;
      }
      product_strip<A, 1, Out::store, kPack>(static_cast<int>(n), vectors, C, panel, n, f.data, f.stride, start, to,
                                             out_stride, next.take(C), pack);
      f = {pack, kPack};
      pack = nullptr;
    }
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
