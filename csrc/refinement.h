// Labels at the pixels by Bayes' rule: the prior upsampled from the positions, and how well the pixel's colour fits each
// class, given the colours around it (infoseg_fast/refinement.py has the equations). In float32 alone: images come so.
#pragma once

#include <cstdint>

namespace infoseg {

struct RefinementArguments {
  const float* prior = nullptr;      // [B, K, h, w]
  const float* around = nullptr;     // [B, c, h, w], s before it is upsampled
  const float* colour = nullptr;     // [B, c, rows, columns], y
  const float* residual = nullptr;   // [K, c, 2 c + 1], of (y, s, 1)
  const float* log_scale = nullptr;  // [K]
  int64_t B = 0, K = 0, c = 0, h = 0, w = 0, rows = 0, columns = 0;
  float floor = 0;  // least prior
  int threads = 1;
  uint8_t* labels = nullptr;  // [B, rows, columns], of refined_labels
  float* probs = nullptr;     // [B, K, h, w], of refined_probs
};

// The class of the highest score of every pixel.
void refined_labels(const RefinementArguments& a);

// The softmax of the scores, averaged over the pixels of every position: h divides rows and w columns.
void refined_probs(const RefinementArguments& a);

// One instruction set's entry points.
struct RefinementKernels {
  void (*labels)(const RefinementArguments&);
  void (*probs)(const RefinementArguments&);
};

}  // namespace infoseg
