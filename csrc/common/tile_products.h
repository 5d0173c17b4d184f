// The products of a tile of positions that the loss and the similarity kernel share: the scores by
// the global features of an image's candidates, and from the gradient by the scores df, dG and dg0.
#pragma once

#if defined(__AMX_BF16__)
#include "common/amx_products.h"
#elif defined(__AVX512BF16__)
#include "common/bf16_pairs.h"
#else
#include "common/rank_gradient.h"
#endif

namespace infoseg {
namespace INFOSEG_ISA {

// The products of a tile of bfloat16, where the instruction set multiplies bfloat16; else nothing.
template <class A>
struct Bf16Products {
  Bf16Products(const GlobalFeatures<A>&, int64_t, bool, bool) {}
  static int64_t scratch_size(int64_t) { return 0; }
};
template <class A>
constexpr bool kHasBf16Products = false;
#if defined(__AVX512BF16__)
#if defined(__AMX_BF16__)
using Bf16ProductsOfIsa = AmxProducts;
#else
using Bf16ProductsOfIsa = PairedGlobals;
#endif
template <>
struct Bf16Products<float> : Bf16ProductsOfIsa {
  using Bf16ProductsOfIsa::Bf16ProductsOfIsa;
};
template <>
constexpr bool kHasBf16Products<float> = true;
#endif

// Which results a TileProducts computes; a null pointer means none.
template <class A>
struct WantedProducts {
  bool scores = true;
  FeatureMap df;
  A* dG = nullptr;
  A* dg0 = nullptr;
};

template <class A>
class TileProducts {
 public:
  const FeatureTiles<A> f, df;
  const int64_t B, C, K, R;  // R = (1 + n) K scores of a position, by the K classes of 1 + n candidates
  const bool gradient_wanted;

  TileProducts(const FeatureMap& features, const void* G, const void* g0, int64_t K, int64_t partners, int threads,
               const WantedProducts<A>& wanted)
      : f(features),
        df(wanted.df),
        B(features.B),
        C(features.C),
        K(K),
        R((1 + partners) * K),
        gradient_wanted(wanted.df.data || wanted.dG || wanted.dg0),
        wanted_(wanted),
        G_(static_cast<const A*>(wanted.scores || wanted.df.data ? G : nullptr), static_cast<const A*>(g0), B, K, C,
           partners),
        bf16_(G_, R, wanted.scores, wanted.df.data != nullptr),
        sums_(B, K, C, partners, threads, wanted.dG != nullptr, wanted.dg0 != nullptr,
              !f.channel_rows() && !kHasBf16Products<A>),
        scratch_size_(kScratchRows * kTile + kGradientScratch<A> + Bf16Products<A>::scratch_size(R)),
        scratch_(gradient_wanted ? threads * scratch_size_ : 0) {}

  const GlobalFeatures<A>& globals() const { return G_; }

  // Scores [K, kTile] of a tile of image b by each of its candidates first .. last, each at its
  // place in q [R, kTile]. Candidate 0 is the image itself, candidate j its j-th partner. Leaves
  // the tile in `copy` [C, kTile] for add_gradient().
  void score(int64_t b, int64_t tile, int64_t first, int64_t last, A* copy, A* q, NextTile& next) const {
    if constexpr (kHasBf16Products<A>)
      if (in_bf16(tile)) {
        bf16_.read(f, b, tile, copy);
        bf16_.scores(b + first, last - first + 1, copy, q + first * K * kTile, next);
        return;
      }
    const TileRows<A> rows = f.read(b, tile, copy);
    G_.scores(b + first, last - first + 1, rows, vectors_of<A>(f.size(tile)), q + first * K * kTile, kTile, next,
              rows.data == copy ? nullptr : copy);
  }

  // Writes df of a tile of image b, and adds its share to dG and dg0, from the gradient q [R,
  // kTile] by its scores. `rows` is the tile from score() or FeatureTiles::read(). It is not used
  // where reads_in_place().
  void add_gradient(int t, int64_t b, int64_t tile, TileRows<A> rows, const A* q, NextTile& next) {
    A* block = scratch_ + t * scratch_size_;
    A* transposed = block + kScratchRows * kTile;
    A* sums = sums_.of(t, b, R / K);
    if (wanted_.dg0) add_dg0(q, R, vectors_of<A>(f.size(tile)), sums_.offsets_of(t, b));
    if constexpr (kHasBf16Products<A>)
      if (in_bf16(tile)) {
        A* bf16_q = transposed + kGradientScratch<A>;
        if (wanted_.df.data) bf16_.write_df(df, b, tile, q, R, bf16_q, transposed, next);
        if (wanted_.dG) bf16_.add_dG(f, b, tile, sums_.padded, q, R, sums, bf16_q, transposed, next);
        return;
      }
    if (wanted_.df.data) write_df<A>(df, b, tile, q, G_.rows + b * K * C, R, block, next);
    if (!wanted_.dG) return;
    if (f.channel_rows())
      add_channel_rows<A>(f.at(b, tile), f.map.stride_w, f.size(tile), C, sums_.padded, q, R, sums, next);
    else
      sums_.add(t, b, rows, f.size(tile), q, transposed, next);
  }

  // Whether add_gradient() reads the features of a tile from the map.
  bool reads_in_place(int64_t tile) const { return f.channel_rows() || in_bf16(tile); }

  // Writes dG and dg0, after the last tile.
  void finish() {
    if (wanted_.dG || wanted_.dg0) sums_.finish(wanted_.dG, wanted_.dg0);
  }

 private:
  // Whether the products of a tile are those of bfloat16.
  bool in_bf16(int64_t tile) const {
    if constexpr (kHasBf16Products<A>)
      return Bf16Products<A>::take(f, tile) && (!wanted_.df.data || Bf16Products<A>::take(df, tile));
    return false;
  }

  const WantedProducts<A> wanted_;
  const GlobalFeatures<A> G_;
  const Bf16Products<A> bf16_;
  GlobalGradient<A> sums_;
  const int64_t scratch_size_;
  Buffer<A> scratch_;
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
