// Which of the ways the loss takes, and its entry points for one instruction set.
#pragma once

#include "all_pairs_kernel.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class E>
static double loss_forward(const LossArguments& a) {
  using A = typename Accumulate<E>::type;
  Loss<E, A> loss(a);
  const Keeps keeps = loss_keeps(loss.B, loss.C, loss.K, a.settings);
  if (!loss.same_position) return loss.forward_own_position(keeps);
  if (keeps == Keeps::coefficients) return loss.forward_same_position();
  return AllPairs<E, A>(loss).forward();
}

template <class E>
static void loss_backward(const LossArguments& a) {
  using A = typename Accumulate<E>::type;
  const int64_t B = a.features.B, C = a.features.C, K = a.K, n = a.settings.partners, R = (1 + n) * K;
  const FeatureTiles<E, A> f(a.features), df(a.df);
  const A scale = static_cast<A>(a.upstream);
  const GlobalFeatures<A> G(static_cast<const A*>(a.G), nullptr, B, K, C, n, false, a.df.data != nullptr, scale);
  const PairsOf<E, A> pairs(G, R, false, a.df.data != nullptr);
  GlobalGradient<A> dG(B, K, C, n, a.threads, a.dG != nullptr, a.dg0 != nullptr);
  const int64_t scratch_size = C * kTile + TileScratch<A>::size(C) + pair_scratch(R);
  const Buffer<A> scratch(a.threads * scratch_size);
  auto body = [&](int t) {
    A* copy = scratch + t * scratch_size;
    const TileScratch<A> ts = TileScratch<A>::at(copy + C * kTile, C);
    const Range part = share(f.tiles * B, a.threads, t);
    for (int64_t u = part.begin; u < part.end; ++u) {
      const int64_t b = u / f.tiles, tile = u % f.tiles;
      const A* q = static_cast<const A*>(a.coefficients) + (tile * B + b) * R * kTile;
      A* to = dG.of(t, b, 1 + n);
      if (a.dg0) add_dg0(q, R, vectors_of<A>(f.size(tile)), dG.offsets_of(t, b));
      if constexpr (kHasPairs<E>)
        if (pairs_in(f, tile) && (!a.df.data || pairs_in(df, tile))) {
          A* paired = copy + C * kTile + TileScratch<A>::size(C);
          if (a.df.data) pairs.write_df(df, b, tile, q, R, paired, ts, f.lines(b, tile));
          if (a.dG) pairs.add_dG(f, b, tile, dG.padded, q, R, to, paired, ts);
          continue;
        }
      if (a.df.data) write_df(df, b, tile, q, static_cast<const A*>(G.rows + b * K * C), R, ts, f.lines(b, tile));
      if (a.dG) add_dG(f.read(b, tile, copy), f.size(tile), C, dG.padded, q, R, to, ts);
    }
  };
  parallel_for(a.threads, body);
  if (a.dG || a.dg0) dG.finish(static_cast<A*>(a.dG), static_cast<A*>(a.dg0), scale);
}

#ifdef INFOSEG_BF16_ONLY
static double loss_forward_any(const LossArguments& a) { return loss_forward<bfloat16>(a); }
static void loss_backward_any(const LossArguments& a) { loss_backward<bfloat16>(a); }
#else
static double loss_forward_any(const LossArguments& a) {
  return by_type(
      a.dtype, [&] { return loss_forward<float>(a); }, [&] { return loss_forward<double>(a); },
      [&] { return loss_forward<bfloat16>(a); }, [&] { return loss_forward<float16>(a); });
}

static void loss_backward_any(const LossArguments& a) {
  by_type(
      a.dtype, [&] { loss_backward<float>(a); }, [&] { loss_backward<double>(a); }, [&] { loss_backward<bfloat16>(a); },
      [&] { loss_backward<float16>(a); });
}

#endif

// Not static: the dispatcher's table. Its name lies in this instruction set's namespace.
extern const LossKernels loss_kernels;
const LossKernels loss_kernels = {loss_forward_any, loss_backward_any};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
