// The ops of the appearance term: local_appearance, appearance_statistics and
// information_of_moments (infoseg_fast/reference/appearance.py has the equations).
#pragma once

#include "common/cpu.h"
#include "common/feature_map.h"

namespace infoseg {

// Colour and texture of cells of whole pixels. Float32 only, as images are.
struct AppearanceArguments {
  FeatureMap images;  // [B, c, rows * cell_rows, columns * cell_columns], any strides
  int64_t rows = 0, columns = 0;
  float dark = 0, flat = 0;
  int threads = 1;
  float* out = nullptr;  // [B, c + 2, rows, columns]
};

INFOSEG_KERNEL(void, local_appearance, AppearanceArguments)

// The products of pairs of (1, y), with y scaled to mean 0 and variance 1, times the position's
// share, through the adjoint of the mean over 2 radius + 1 positions in each direction.
struct StatisticsArguments {
  const float* y = nullptr;        // [B, d, h, w]
  const uint8_t* valid = nullptr;  // [B, h, w], or null when every position is valid
  int64_t B = 0, d = 0, h = 0, w = 0, radius = 0;
  int threads = 1;
  float* out = nullptr;  // [B, (d + 1) (d + 2) / 2, h, w]
};

INFOSEG_KERNEL(void, appearance_statistics, StatisticsArguments)

// The mutual information of class and appearance from the moments of the K classes, and its
// gradient by the moments.
struct InformationArguments {
  DType dtype = DType::f32;       // f32 or f64, of every tensor; sums are in float64
  const void* moments = nullptr;  // [K, n (n + 1) / 2]
  const void* total = nullptr;    // [n (n + 1) / 2]
  int64_t K = 0, n = 0;           // n = d + 1
  double resolution = 0;
  void* gradient = nullptr;  // [K, n (n + 1) / 2], or null when not wanted
};

double information_of_moments(const InformationArguments& a);

}  // namespace infoseg
