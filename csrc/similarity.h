// Similarity of local and global features, the assignment made from it, and the moments of its classes.
#pragma once

#include "feature_map.h"

namespace infoseg {

struct SimilarityArguments {
  DType dtype = DType::f32;
  FeatureMap features;
  const void* G = nullptr;   // [B, K, C] in the accumulation type, as g0, dG and dg0
  const void* g0 = nullptr;  // [B, K] or null
  int64_t K = 0;
  int threads = 1;

  // Forward: z, or V = softmax(temperature z), [B, K, P] in the type of the features; with moments it may be null.
  void* out = nullptr;
  bool softmax = false;
  double temperature = 1;

  // moments[k, s] = sum_{b,p} V[b, k, p] statistics[b, s, p], both in the accumulation type; null: not wanted. Going
  // back, the gradient by them, which takes the place of `grad`.
  FeatureMap statistics;
  void* moments = nullptr;

  // Backward, from the gradient by the output, [B, K, P]; with `softmax`, `probs` is the forward output. What is
  // null is not wanted.
  DType grad_dtype = DType::f32;
  const void* grad = nullptr;
  const void* probs = nullptr;
  FeatureMap df;
  void* dG = nullptr;
  void* dg0 = nullptr;
};

void similarity_forward(const SimilarityArguments& a);
void similarity_backward(const SimilarityArguments& a);

// One instruction set's entry points.
struct SimilarityKernels {
  void (*forward)(const SimilarityArguments&);
  void (*backward)(const SimilarityArguments&);
};

}  // namespace infoseg
