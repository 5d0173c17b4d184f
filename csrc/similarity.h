// Similarity of local and global features, and the assignment made from it.
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

  // Forward: z, or softmax(temperature z), [B, K, P] in the type of the features.
  void* out = nullptr;
  bool softmax = false;
  double temperature = 1;

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
