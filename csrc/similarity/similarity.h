// One kernel for three ops: local_global_similarity (the scores z), assign (V = softmax(temperature
// z)) and class_moments (sums of V times statistics). METHOD has the equations.
#pragma once

#include "common/cpu.h"
#include "common/feature_map.h"

namespace infoseg {

struct SimilarityArguments {
  FeatureMap features;
  const void* G = nullptr;   // [B, K, C] in the accumulation type, as g0, dG and dg0
  const void* g0 = nullptr;  // [B, K], or null for no offset
  int64_t K = 0;
  bool softmax = false;
  double temperature = 1;
  int threads = 1;

  // Forward: z or V, [B, K, P] in the type of the features. May be null when moments are given.
  void* out = nullptr;

  // Forward: moments[k, s] = sum_{b,p} V[b, k, p] statistics[b, s, p], both in the accumulation
  // type; null: not wanted. Backward: the gradient by the moments, which takes the place of `grad`.
  FeatureMap statistics;
  void* moments = nullptr;

  // Backward: the gradient by the output, [B, K, P]. With `softmax`, `probs` is the forward output
  // V. A gradient whose pointer is null is not computed.
  DType grad_dtype = DType::f32;
  const void* grad = nullptr;
  const void* probs = nullptr;
  FeatureMap df;
  void* dG = nullptr;
  void* dg0 = nullptr;
};

INFOSEG_BF16_KERNEL(void, similarity_forward, SimilarityArguments)
INFOSEG_BF16_KERNEL(void, similarity_backward, SimilarityArguments)

}  // namespace infoseg
