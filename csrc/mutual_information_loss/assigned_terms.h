// The assigned global feature of a position is S'[p] = sum_k V[k, p] G[k] (C numbers, and the
// scalar s0 = sum_k V g0). With it, a pair of images b, c at a position is one inner product
// (METHOD, last of the three identities):
//   T-[b, c] = <f_b, S'_c> + s0_c,   g[b, c] = dloss / dT-[b, c]
//   df_b += sum_c g[b, c] S'_c,   dS'_c = sum_b g[b, c] f_b,   ds0_c = sum_b g[b, c]
//   dV[c, k] = <dS'_c, G_ck> + ds0_c g0_ck,   dG_ck += V[c, k] dS'_c,   dg0_ck += V[c, k] ds0_c
#pragma once

#include "mutual_information_loss/loss.h"

namespace infoseg {
namespace INFOSEG_ISA {

// s0 at W positions. The K rows of V lie kTile apart.
template <class A>
static inline Vec<A> assigned_offset(const GlobalFeatures<A>& G, int64_t c, const A* V) {
  Vec<A> s0{};
  if (G.has_offset)
    for (int64_t k = 0; k < G.K; ++k) s0 += load<A>(V + k * kTile) * G.offsets[c * G.K + k];
  return s0;
}

// Returns the term of a pair at W positions. Replaces T (T- without s0) by the gradient by T-.
template <class A>
static inline Vec<A> pair_term(const Loss<A>& loss, A* T, Vec<A> s0, Vec<A> valid) {
  const Softplus<A> sp = softplus<A>(load<A>(T) + s0);
  store<A>(T, select<A>(valid > Vec<A>{}, sp.sigmoid_x * loss.share_neg, Vec<A>{}));
  return select<A>(valid > Vec<A>{}, sp.of_x, Vec<A>{});
}

// At W positions of image c: adds to dz, the gradient by the scores, the part that comes through V.
// dV is the gradient by V without the part of ds0. Adds V ds0 to the sums `dg0` [K, W] unless null.
// The K rows of V and dz lie kTile apart.
template <class A>
static inline void through_assignment(const GlobalFeatures<A>& G, int64_t c, const A* V, A* dV, int64_t dV_stride,
                                      Vec<A> ds0, A tau, A* dz, A* dg0) {
  constexpr int W = Lanes<A>::W;
  Vec<A> mean{};
  for (int64_t k = 0; k < G.K; ++k) {
    const Vec<A> V_k = load<A>(V + k * kTile);
    Vec<A> dV_k = load<A>(dV + k * dV_stride);
    if (G.has_offset) {
      dV_k += ds0 * G.offsets[c * G.K + k];
      store<A>(dV + k * dV_stride, dV_k);
    }
    mean += V_k * dV_k;
    if (dg0) store<A>(dg0 + k * W, load<A>(dg0 + k * W) + V_k * ds0);
  }
  for (int64_t k = 0; k < G.K; ++k) {
    A* x = dz + k * kTile;
    store<A>(x, load<A>(x) + load<A>(V + k * kTile) * (load<A>(dV + k * dV_stride) - mean) * tau);
  }
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
