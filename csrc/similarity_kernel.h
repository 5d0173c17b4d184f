// Body of similarity.h for one instruction set.
#pragma once

#include "similarity.h"
#include "softmax.h"
#include "tile_products.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Sums of V Y over all positions: by lane over a few tiles in the accumulation type, over those in float64. A set of
// sums a thread; the sets are added in the order of the threads.
template <class A>
class Moments {
  static constexpr int kTiles = 4;  // whose sums stay in lanes

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

  // With the probabilities V [K, kTile] of image b's tile, the number `done` of the thread's.
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
  const FeatureTiles<A, A> Y_;
  const int64_t K_, S_;
  const int threads_;
  A* const out_;
  LaneSums<A> lanes_;
  const int64_t scratch_size_;
  const Buffer<A> scratch_;
  const Buffer<double> sums_;
};

template <class E>
static void similarity_forward(const SimilarityArguments& a) {
  using A = typename Accumulate<E>::type;
  constexpr int W = Lanes<A>::W;
  const TileProducts<E, A> products(a.features, a.G, a.g0, a.K, 0, a.threads, {});
  Moments<A> moments(a.statistics, a.K, a.threads, a.moments);
  const FeatureTiles<E, A>& f = products.f;
  const int64_t B = a.features.B, C = a.features.C, K = a.K, P = f.P;
  const int64_t scratch_size = C * kTile + K * kTile + K * W;
  const Buffer<A> scratch(a.threads * scratch_size);
  E* const out = static_cast<E*>(a.out);
  auto body = [&](int t) {
    A* copy = scratch + t * scratch_size;
    A* block = copy + C * kTile;
    A* V = block + K * kTile;
    const Range part = share(B * f.tiles, a.threads, t);
    for (int64_t u = part.begin; u < part.end; ++u) {
      const int64_t b = u / f.tiles, tile = u % f.tiles, n = f.size(tile);
      const int vectors = vectors_of<A>(n);
      E* to = out + b * K * P + tile * kTile;
      NextTile next = tile + 1 < f.tiles ? f.lines(b, tile + 1) : f.lines(b + 1, 0);
      // Scores are formed in the block: rows of the output lie a power of two apart and would push each other out of
      // L1.
      products.score(b, tile, 0, 0, copy, block, next);
      // Whole vectors of the final type go straight out.
      const bool direct = sizeof(E) == sizeof(A) && n % W == 0 && !a.moments;
      if (a.softmax)
        for (int v = 0; v < vectors; ++v) {
          softmax_and_mean<A>(block + v * W, kTile, K, static_cast<A>(a.temperature), V);
          A* q = direct ? reinterpret_cast<A*>(to) + v * W : block + v * W;
          for (int64_t k = 0; k < K; ++k) store<A>(q + k * (direct ? P : kTile), load<A>(V + k * W));
        }
      if (a.moments) moments.add(t, u - part.begin, b, tile, block);
      if (a.out && (!direct || !a.softmax))
        for (int64_t k = 0; k < K; ++k) narrow_row<E, A>(to + k * P, block + k * kTile, n);
    }
  };
  parallel_for_floats(a.threads, body);
  if (a.moments) moments.finish();
}

// Numbers [K, kTile] of one tile from [K, P], zeros behind the last position.
template <class X, class A>
static void read_classes(const X* from, int64_t K, int64_t P, int64_t n, A* to) {
  for (int64_t k = 0; k < K; ++k) {
    widen_row<A, X>(to + k * kTile, from + k * P, n);
    for (int64_t t = n; t < kTile; ++t) to[k * kTile + t] = 0;
  }
}

template <class A>
static void read_classes_any(DType type, const void* from, int64_t offset, int64_t K, int64_t P, int64_t n, A* to) {
  switch (type) {
    case DType::f64:
      if constexpr (sizeof(A) == 8) read_classes<double, A>(static_cast<const double*>(from) + offset, K, P, n, to);
      break;
    case DType::bf16:
      return read_classes<bfloat16, A>(static_cast<const bfloat16*>(from) + offset, K, P, n, to);
    case DType::f16:
      return read_classes<float16, A>(static_cast<const float16*>(from) + offset, K, P, n, to);
    default:
      return read_classes<float, A>(static_cast<const float*>(from) + offset, K, P, n, to);
  }
}

template <class E>
static void similarity_backward(const SimilarityArguments& a) {
  using A = typename Accumulate<E>::type;
  constexpr int W = Lanes<A>::W;
  WantedProducts<A> wanted;
  wanted.scores = false;
  wanted.df = a.df;
  wanted.dG = static_cast<A*>(a.dG);
  wanted.dg0 = static_cast<A*>(a.dg0);
  TileProducts<E, A> products(a.features, a.G, nullptr, a.K, 0, a.threads, wanted);
  const FeatureTiles<E, A>& f = products.f;
  const int64_t B = a.features.B, C = a.features.C, K = a.K, P = f.P;
  // The gradient by the probabilities is dM Y: of the same form as the scores, and formed like them.
  const FeatureTiles<A, A> statistics(a.statistics);
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
        read_classes_any<A>(a.grad_dtype, a.grad, offset, K, P, n, q);
      }
      if (a.softmax) {
        read_classes_any<A>(a.dtype, a.probs, offset, K, P, n, V);
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
      const TileRows<A> rows = products.reads_in_place() ? TileRows<A>{copy, kTile} : f.read(b, tile, copy);
      products.add_gradient(t, b, tile, rows, q, next);
    }
  };
  parallel_for_floats(a.threads, body);
  products.finish();
}

static void similarity_forward_any(const SimilarityArguments& a) {
  by_type(
      a.dtype, [&] { similarity_forward<float>(a); }, [&] { similarity_forward<double>(a); },
      [&] { similarity_forward<bfloat16>(a); }, [&] { similarity_forward<float16>(a); });
}

static void similarity_backward_any(const SimilarityArguments& a) {
  by_type(
      a.dtype, [&] { similarity_backward<float>(a); }, [&] { similarity_backward<double>(a); },
      [&] { similarity_backward<bfloat16>(a); }, [&] { similarity_backward<float16>(a); });
}

extern const SimilarityKernels similarity_kernels;
const SimilarityKernels similarity_kernels = {similarity_forward_any, similarity_backward_any};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
