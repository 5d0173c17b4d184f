// The folded global features G [B, K, C] and g0 [B, K] in the order that the products read.
#pragma once

#include "common/buffer.h"
#include "common/products.h"

namespace infoseg {
namespace INFOSEG_ISA {

// The candidates of image b are its own K classes and those of its n partners (b + 1 .. b + n) mod
// B. The rows of the first n images are repeated after the last, so that the candidates of every
// image are consecutive rows.
template <class A>
struct GlobalFeatures {
  int64_t B, K, C, partners;
  Buffer<A> rows;     // [B + n][K][C]
  Buffer<A> offsets;  // [B + n][K]
  bool has_offset;

  GlobalFeatures(const A* G, const A* g0, int64_t B, int64_t K, int64_t C, int64_t partners)
      : B(B),
        K(K),
        C(C),
        partners(partners),
        rows(G ? (B + partners) * K * C : 0),
        offsets(g0 ? (B + partners) * K : 0),
        has_offset(g0 != nullptr) {
    for (int64_t i = 0; G && i < B + partners; ++i) copy(G + i % B * K * C, K * C, rows + i * K * C);
    for (int64_t i = 0; g0 && i < B + partners; ++i) copy(g0 + i % B * K, K, offsets + i * K);
  }

  // <f, G_k> of image c, without g0.
  void inner_products(int64_t c, TileRows<A> f, int vectors, A* out, int64_t out_stride) const {
    NextTile none{};
    product<A, Left::rows>(K, vectors, C, {rows + c * K * C, C}, f, {}, {out, out_stride}, none);
  }

  // Scores of one tile by the classes of images c .. c + images - 1: out[k, 0..vectors*W). With
  // `pack`, the tile is also copied there.
  void scores(int64_t c, int64_t images, TileRows<A> f, int vectors, A* out, int64_t out_stride, NextTile& next,
              A* pack = nullptr, int64_t pack_stride = kTile) const {
    product<A, Left::rows>(images * K, vectors, C, {rows + c * K * C, C}, f,
                           {has_offset ? offsets + c * K : nullptr, 0}, {out, out_stride}, next, {pack, pack_stride});
  }

 private:
  static void copy(const A* from, int64_t n, A* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
