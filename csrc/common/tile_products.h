// The products of a tile of positions that the loss and the similarity kernel share: the scores by
// the global features of an image's candidates, and from the gradient by the scores df, dG and dg0.
#pragma once

#include "common/bf16_pairs.h"

namespace infoseg {
namespace INFOSEG_ISA {

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
        pairs_(G_, R, wanted.scores, wanted.df.data != nullptr),
        sums_(B, K, C, partners, threads, wanted.dG != nullptr, wanted.dg0 != nullptr,
              !f.channel_rows() && !kHasPairs<A>),
        scratch_size_(kScratchRows * kTile + kGradientScratch<A> + pair_scratch<A>(R)),
        scratch_(gradient_wanted ? threads * scratch_size_ : 0) {}

  const GlobalFeatures<A>& globals() const { return G_; }

  // Scores [K, kTile] of a tile of image b by each of its candidates first .. last, each at its
  // place in q [R, kTile]. Candidate 0 is the image itself, candidate j its j-th partner. Leaves
  // the tile in `copy` [C, kTile] for add_gradient().
  void score(int64_t b, int64_t tile, int64_t first, int64_t last, A* copy, A* q, NextTile& next) const {
    if constexpr (kHasPairs<A>)
      if (paired(tile)) {
        pairs_.read(f, b, tile, copy);
        pairs_.scores(b + first, last - first + 1, copy, q + first * K * kTile, next);
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
    if constexpr (kHasPairs<A>)
      if (paired(tile)) {
        A* paired_q = transposed + kGradientScratch<A>;
        if (wanted_.df.data) pairs_.write_df(df, b, tile, q, R, paired_q, block, next);
        if (wanted_.dG) pairs_.add_dG(f, b, tile, sums_.padded, q, R, sums, paired_q, transposed, next);
        return;
      }
    if (wanted_.df.data) write_df<A>(df, b, tile, q, G_.rows + b * K * C, R, block, next);
    if (!wanted_.dG) return;
    if (f.channel_rows())
      add_channel_rows<A>(f.at(b, tile), f.map.stride_w, f.size(tile), C, sums_.padded, q, R, sums, next);
    else
      sums_.add(t, b, rows, f.size(tile), q, transposed, next);
  }

  // Whether add_gradient() reads the features from the map.
  bool reads_in_place() const { return f.channel_rows(); }

  // Writes dG and dg0, after the last tile.
  void finish() {
    if (wanted_.dG || wanted_.dg0) sums_.finish(wanted_.dG, wanted_.dg0);
  }

 private:
  // Whether the products of a tile work on pairs of bfloat16.
  bool paired(int64_t tile) const {
    return kHasPairs<A> && pairs_in(f, tile) && (!wanted_.df.data || pairs_in(df, tile));
  }

  const WantedProducts<A> wanted_;
  const GlobalFeatures<A> G_;
  const PairsOf<A> pairs_;
  GlobalGradient<A> sums_;
  const int64_t scratch_size_;
  Buffer<A> scratch_;
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
