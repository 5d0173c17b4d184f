// local_global_similarity, assign and class_moments for one instruction set.
#include <type_traits>

#include "similarity/similarity.h"
#include "common/softmax.h"
#include "common/tile_products.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Sums of V Y over all positions. A few tiles are summed by lane in the accumulation type, and
// their sums in float64. Each thread has a set of sums; the sets are added in the order of the
// threads.
template <class A>
class Moments {
  static constexpr int kTiles = 4;  // tiles that are summed by lane

 public:
  Moments(const FeatureMap& statistics, int64_t K, int threads, void* out)
      : Y_(statistics),
        K_(K),
        S_(statistics.C),
        threads_(threads),
        out_(static_cast<A*>(out)),
        lanes_(1, S_, K, threads, out != nullptr),
        scratch_size_(S_ * kTile + LaneSums<A>::scratch_size(K)),
        scratch_(out ? threads * scratch_size_ : 0),
        sums_(out ? threads * K * S_ : 0) {
    for (int64_t i = 0; out && i < threads * K * S_; ++i) sums_[i] = 0;
  }

  // Adds a tile of image b with probabilities V [K, kTile]; the thread has added `done` tiles
  // before.
  void add(int t, int64_t done, int64_t b, int64_t tile, const A* V) {
    A* copy = scratch_ + t * scratch_size_;
    NextTile none = Y_.none();
    lanes_.add(t, 0, Y_.read(b, tile, copy), Y_.size(tile), V, copy + S_ * kTile, none);
    if ((done + 1) % kTiles == 0) lanes_.move_to(t, 0, sums_ + t * K_ * S_, S_);
  }

  void finish() {
    for (int t = 0; t < threads_; ++t) lanes_.move_to(t, 0, sums_ + t * K_ * S_, S_);
    for (int64_t i = 0; i < K_ * S_; ++i) {
      double total = 0;
      for (int t = 0; t < threads_; ++t) total += sums_[t * K_ * S_ + i];
      out_[i] = static_cast<A>(total);
    }
  }

 private:
  const FeatureTiles<A> Y_;
  const int64_t K_, S_;
  const int threads_;
  A* const out_;
  LaneSums<A> lanes_;
  const int64_t scratch_size_;
  const Buffer<A> scratch_;
  const Buffer<double> sums_;
};

template <class A>
static void forward(const SimilarityArguments& a) {
  constexpr int W = Lanes<A>::W;
  const TileProducts<A> products(a.features, a.G, a.g0, a.K, 0, a.threads, {});
  Moments<A> moments(a.statistics, a.K, a.threads, a.moments);
  const FeatureTiles<A>& f = products.f;
  const int64_t B = a.features.B, C = a.features.C, K = a.K, P = f.P;
  const int64_t scratch_size = C * kTile + K * kTile + K * W;
  const Buffer<A> scratch(a.threads * scratch_size);
  auto body = [&](int t) {
    A* copy = scratch + t * scratch_size;
    A* block = copy + C * kTile;
    A* V = block + K * kTile;
    const Range part = share(B * f.tiles, a.threads, t);
    for (int64_t u = part.begin; u < part.end; ++u) {
      const int64_t b = u / f.tiles, tile = u % f.tiles, n = f.size(tile);
      const int vectors = vectors_of<A>(n);
      const int64_t place = b * K * P + tile * kTile;
      NextTile next = tile + 1 < f.tiles ? f.lines(b, tile + 1) : f.lines(b + 1, 0);
      // Scores are computed in the block: rows of the output lie a power of two apart and would
      // evict one another from L1.
      products.score(b, tile, 0, 0, copy, block, next);
      // Whole vectors of the element type are written to the output directly.
      const bool direct = f.accumulated && n % W == 0 && !a.moments;
      if (a.softmax)
        for (int v = 0; v < vectors; ++v) {
          softmax_and_mean<A>(block + v * W, kTile, K, static_cast<A>(a.temperature), V);
          A* q = (direct ? static_cast<A*>(a.out) + place : block) + v * W;
          for (int64_t k = 0; k < K; ++k) store<A>(q + k * (direct ? P : kTile), load<A>(V + k * W));
        }
      if (a.moments) moments.add(t, u - part.begin, b, tile, block);
      if (a.out && (!direct || !a.softmax))
        by_element<A>(a.features.dtype, a.out, [&](auto* out) {
          using E = std::remove_pointer_t<decltype(out)>;
          for (int64_t k = 0; k < K; ++k) narrow_row<E, A>(out + place + k * P, block + k * kTile, n);
        });
    }
  };
  parallel_for_floats(a.threads, body);
  if (a.moments) moments.finish();
}

// Reads the numbers [K, kTile] of one tile from [K, P], with zeros behind the last position.
template <class A>
static void read_classes(DType type, const void* from, int64_t offset, int64_t K, int64_t P, int64_t n, A* to) {
  by_element<A>(type, const_cast<void*>(from), [&](const auto* x) {
    for (int64_t k = 0; k < K; ++k) {
      widen_row<A>(to + k * kTile, x + offset + k * P, n);
      for (int64_t t = n; t < kTile; ++t) to[k * kTile + t] = 0;
    }
  });
}

template <class A>
static void backward(const SimilarityArguments& a) {
  constexpr int W = Lanes<A>::W;
  WantedProducts<A> wanted;
  wanted.scores = false;
  wanted.df = a.df;
  wanted.dG = static_cast<A*>(a.dG);
  wanted.dg0 = static_cast<A*>(a.dg0);
  TileProducts<A> products(a.features, a.G, nullptr, a.K, 0, a.threads, wanted);
  const FeatureTiles<A>& f = products.f;
  const int64_t B = a.features.B, C = a.features.C, K = a.K, P = f.P;
  // The gradient by the probabilities is dM Y. It has the form of the scores and is computed like
  // them.
  const FeatureTiles<A> statistics(a.statistics);
  const GlobalFeatures<A> dM(static_cast<const A*>(a.moments), nullptr, 1, K, a.statistics.C, 0);
  const int64_t scratch_size = (C + 2 * K + a.statistics.C) * kTile;
  const Buffer<A> scratch(a.threads * scratch_size);
  const A tau = static_cast<A>(a.temperature);
  auto body = [&](int t) {
    A* copy = scratch + t * scratch_size;
    A* q = copy + C * kTile;
    A* V = q + K * kTile;
    A* Y = V + K * kTile;
    const Range part = share(B * f.tiles, a.threads, t);
    for (int64_t u = part.begin; u < part.end; ++u) {
      const int64_t b = u / f.tiles, tile = u % f.tiles, n = f.size(tile), offset = b * K * P + tile * kTile;
      const int vectors = vectors_of<A>(n);
      if (a.moments) {
        NextTile none = statistics.none();
        dM.scores(0, 1, statistics.read(b, tile, Y), vectors, q, kTile, none);
      } else {
        read_classes<A>(a.grad_dtype, a.grad, offset, K, P, n, q);
      }
      if (a.softmax) {
        read_classes<A>(a.features.dtype, a.probs, offset, K, P, n, V);
        for (int v = 0; v < vectors; ++v) {
          Vec<A> mean{};
          for (int64_t k = 0; k < K; ++k) mean += load<A>(V + k * kTile + v * W) * load<A>(q + k * kTile + v * W);
          for (int64_t k = 0; k < K; ++k) {
            A* x = q + k * kTile + v * W;
            store<A>(x, load<A>(V + k * kTile + v * W) * (load<A>(x) - mean) * tau);
          }
        }
      }
      NextTile next = tile + 1 < f.tiles ? f.lines(b, tile + 1) : f.lines(b + 1, 0);
      const TileRows<A> rows = products.reads_in_place(tile) ? TileRows<A>{copy, kTile} : f.read(b, tile, copy);
      products.add_gradient(t, b, tile, rows, q, next);
    }
  };
  parallel_for_floats(a.threads, body);
  products.finish();
}

void similarity_forward(const SimilarityArguments& a) {
  by_accumulation(a.features.dtype, [&](auto zero) { forward<decltype(zero)>(a); });
}

void similarity_backward(const SimilarityArguments& a) {
  by_accumulation(a.features.dtype, [&](auto zero) { backward<decltype(zero)>(a); });
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
