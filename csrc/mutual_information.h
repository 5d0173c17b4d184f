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

// How the forward pass prepares the backward one.
enum class Keeps : int {
  coefficients = 0,  // the gradient by each of the (1 + n) K scores of a position; going back they are multiplied out
  gradients = 1,     // df and dG themselves, for upstream gradient 1: where those are smaller than the coefficients
};

// Positions are cut into tiles of this many; kept coefficients are [tiles][B][(1 + n) K][64].
constexpr int64_t kLossTile = 64;

struct LossArguments {
  DType dtype = DType::f32;
  FeatureMap features;
  const void* G = nullptr;         // [B, K, C] in the accumulation type, as g0, dG, dg0 and the coefficients
  const void* g0 = nullptr;        // [B, K] or null
  const uint8_t* valid = nullptr;  // [B, P] or null
  int64_t K = 0;
  LossSettings settings;
  int threads = 1;

  // Wanted gradients. Forward writes those that Keeps names, backward those of `coefficients`; null: not wanted.
  bool wants_gradient = false;
  void* coefficients = nullptr;
  double upstream = 1;
  FeatureMap df;
  void* dG = nullptr;
  void* dg0 = nullptr;
};

Keeps loss_keeps(int64_t B, int64_t C, int64_t K, const LossSettings& settings);
double loss_forward(const LossArguments& a);
// From kept coefficients: df, dG, dg0 times `upstream`.
void loss_backward(const LossArguments& a);

// One instruction set's entry points.
struct LossKernels {
  double (*forward)(const LossArguments&);
  void (*backward)(const LossArguments&);
};

}  // namespace infoseg
