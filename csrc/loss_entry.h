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
  // Operations a position and channel, over 6: (1 + n) K with each partner's K scores, B + 2 K with the assigned feature
  // of every image, whose products load two vectors where the others load one.
  if (3 * (loss.B + 2 * loss.K) < 2 * loss.R) return AllPairs<E, A>(loss).forward();
  if (loss.n > 1) return WaitingImages<E, A>(loss).forward();
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
