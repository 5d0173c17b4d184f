// The loss for one instruction set: chooses among four ways to compute it.
#include "mutual_information_loss/all_pairs.h"
#include "mutual_information_loss/assigned_features.h"
#include "mutual_information_loss/own_position.h"
#include "mutual_information_loss/same_position.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class A>
static double loss_with(const LossArguments& a) {
  Loss<A> loss(a);
  if (a.estimator == Estimator::infonce || a.negatives == Negatives::reassigned) return OwnPosition<A>(loss).forward();
  // Multiplications for each position and channel: 3 (1 + n) K with the scores of each partner, 6 K
  // through the assigned features. There an image takes as long as 6 more and each pair as 12,
  // since a pair loads more than it multiplies. In one product of all pairs of the batch a pair
  // takes 8. From 28 partners on, the images that wait outgrow a core's cache.
  const int64_t n = loss.n;
  if (n > 8 && (12 * n > 8 * loss.B || n > 28)) return AllPairs<A>(loss).forward();
  if (!kHasBf16Products<A> && 3 * (1 + n) * loss.K > 6 * loss.K + 12 * n + 6)
    return AssignedFeatures<A>(loss).forward();
  return SamePosition<A>(loss).forward();
}

double mutual_information_loss(const LossArguments& a) {
  return by_accumulation(a.features.dtype, [&](auto zero) { return loss_with<decltype(zero)>(a); });
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
