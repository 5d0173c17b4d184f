// Which of the ways the loss takes, and its entry point for one instruction set.
#pragma once

#include "all_pairs_kernel.h"
#include "assigned_features_kernel.h"
#include "own_position_kernel.h"
#include "same_position_kernel.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class E>
static double loss_of(const LossArguments& a) {
  using A = typename Accumulate<E>::type;
  Loss<E, A> loss(a);
  if (a.settings.estimator == Estimator::infonce || a.settings.negatives == Negatives::reassigned)
    return OwnPosition<E, A>(loss).forward();
  // Multiplications a position and channel are 3 (1 + n) K with each partner's scores, and 6 K through the assigned
  // features, beside which an image takes as long as some 6 more and each pair as 12: it loads more than it multiplies.
  // In one product a pair takes 8, but then all pairs of the batch are formed. From 28 partners on the images that wait
  // outgrow a core's cache.
  const int64_t n = loss.n;
  if (n > 8 && (12 * n > 8 * loss.B || n > 28)) return AllPairs<E, A>(loss).forward();
  if (3 * (1 + n) * loss.K > 6 * loss.K + 12 * n + 6) return AssignedFeatures<E, A>(loss).forward();
  return SamePosition<E, A>(loss).forward();
}

static double loss_of_any(const LossArguments& a) {
#ifdef INFOSEG_BF16_ONLY
  return loss_of<bfloat16>(a);
#else
  return by_type(
      a.dtype, [&] { return loss_of<float>(a); }, [&] { return loss_of<double>(a); },
      [&] { return loss_of<bfloat16>(a); }, [&] { return loss_of<float16>(a); });
#endif
}

// Not static: the dispatcher's table. Its name lies in this instruction set's namespace.
extern const LossKernels loss_kernels;
const LossKernels loss_kernels = {loss_of_any};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
