// Softmax over the classes of a few positions.
#pragma once

#include "common/vecmath.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Writes V = softmax(tau z) of K rows of W positions, V_stride apart. Returns T = sum_k V_k z_k.
template <class A>
static inline Vec<A> softmax_and_mean(const A* z, int64_t z_stride, int64_t K, A tau, A* V,
                                      int64_t V_stride = Lanes<A>::W) {
  Vec<A> top = load<A>(z);
  for (int64_t k = 1; k < K; ++k) top = greater_of<A>(top, load<A>(z + k * z_stride));
  Vec<A> sum{}, weighted{};
  for (int64_t k = 0; k < K; ++k) {
    // tau (z - top) is exact for large scores; tau z - tau top is not.
    const Vec<A> below = load<A>(z + k * z_stride) - top;
    const Vec<A> e = exp_nonpositive<A>(below * tau);
    sum += e;
    weighted += e * below;
    store<A>(V + k * V_stride, e);
  }
  const Vec<A> inverse = A(1) / sum;
  for (int64_t k = 0; k < K; ++k) store<A>(V + k * V_stride, load<A>(V + k * V_stride) * inverse);
  return top + weighted * inverse;
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
