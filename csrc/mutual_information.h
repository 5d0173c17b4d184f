// The mutual-information loss and its gradients from folded global features (METHOD, the three identities).
#pragma once

#include "feature_map.h"

namespace infoseg {

enum class Estimator : int { jsd = 0, infonce = 1 };
enum class Negatives : int { same_position = 0, reassigned = 1 };

struct LossSettings {
  double temperature = 1;
  Estimator estimator = Estimator::jsd;
  Negatives negatives = Negatives::same_position;
  int64_t partners = 1;  // n: image b's partners are (b + 1 .. b + n) mod B
  double balance = 0;
};

struct LossArguments {
  DType dtype = DType::f32;
  FeatureMap features;
  const void* G = nullptr;         // [B, K, C] in the accumulation type, as g0, dG and dg0
  const void* g0 = nullptr;        // [B, K] or null
  const uint8_t* valid = nullptr;  // [B, P] or null
  int64_t K = 0;
  LossSettings settings;
  int threads = 1;

  // The gradients of `upstream` times the loss, formed on the way; null: not wanted.
  double upstream = 1;
  FeatureMap df;
  void* dG = nullptr;
  void* dg0 = nullptr;
};

// The loss; writes the wanted gradients.
double mutual_information_loss(const LossArguments& a);

// One instruction set's entry point.
struct LossKernels {
  double (*loss)(const LossArguments&);
};

}  // namespace infoseg
