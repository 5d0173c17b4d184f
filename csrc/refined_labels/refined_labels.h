// Labels of pixels by Bayes' rule: the prior is upsampled from the positions, and the likelihood of
// each class comes from the pixel's colour given the colours around it
// (infoseg_fast/reference/refined_labels.py has the equations). Float32 only, as images are.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace infoseg {

struct RefinedLabelsArguments {
  const float* prior = nullptr;      // [B, K, h, w]
  const float* around = nullptr;     // [B, c, h, w], the surroundings s before upsampling
  const float* colour = nullptr;     // [B, c, rows, columns], y
  const float* residual = nullptr;   // [K, c, 2 c + 1], weights of (y, s, 1)
  const float* log_scale = nullptr;  // [K]
  int64_t B = 0, K = 0, c = 0, h = 0, w = 0, rows = 0, columns = 0;
  float floor = 0;  // smallest prior
  int threads = 1;
  uint8_t* labels = nullptr;  // [B, rows, columns]
};

// The class with the highest score at every pixel.
INFOSEG_KERNEL(void, refined_labels, RefinedLabelsArguments)

}  // namespace infoseg
