// The mutual-information loss and its gradients from folded global features (METHOD, the three
// identities).
#pragma once

#include "common/cpu.h"
#include "common/feature_map.h"

namespace infoseg {

enum class Estimator : int { jsd = 0, infonce = 1 };
enum class Negatives : int { same_position = 0, reassigned = 1 };

struct LossArguments {
  FeatureMap features;
  const void* G = nullptr;         // [B, K, C] in the accumulation type, as g0, dG and dg0
  const void* g0 = nullptr;        // [B, K], or null for no offset
  const uint8_t* valid = nullptr;  // [B, P], or null when every position is valid
  int64_t K = 0;
  double temperature = 1;
  Estimator estimator = Estimator::jsd;
  Negatives negatives = Negatives::same_position;
  int64_t partners = 1;  // n: the partners of image b are the images (b + 1 .. b + n) mod B
  double balance = 0;
  int threads = 1;

  // The gradients of `upstream` times the loss, formed in the same pass. One whose pointer is null
  // is not computed.
  double upstream = 1;
  FeatureMap df;
  void* dG = nullptr;
  void* dg0 = nullptr;
};

// Returns the loss and writes the wanted gradients.
INFOSEG_BF16_KERNEL(double, mutual_information_loss, LossArguments)

}  // namespace infoseg
