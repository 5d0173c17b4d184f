// What the pixels around a position look like, and the statistics of it that the moments of the classes are sums of.
// In float32 alone: images come so.
#pragma once

#include "feature_map.h"

namespace infoseg {

// The colour and the texture of cells of whole pixels (infoseg_fast/reference/appearance.py has the equations).
struct AppearanceArguments {
  FeatureMap images;       // [B, c, rows * cell_rows, columns * cell_columns], any strides
  int64_t rows = 0, columns = 0;
  float dark = 0, flat = 0;
  int threads = 1;
  float* out = nullptr;  // [B, c + 2, rows, columns]
};

void local_appearance(const AppearanceArguments& a);

// The products of (1, y), y scaled to mean 0 and variance 1, by the position's share, through the adjoint of the mean over
// 2 radius + 1 positions each way.
struct StatisticsArguments {
  const float* y = nullptr;        // [B, d, h, w]
  const uint8_t* valid = nullptr;  // [B, h, w] or null
  int64_t B = 0, d = 0, h = 0, w = 0, radius = 0;
  int threads = 1;
  float* out = nullptr;  // [B, (d + 1) (d + 2) / 2, h, w]
};

void appearance_statistics(const StatisticsArguments& a);

// The mutual information of class and appearance from the moments of the K classes, and its gradient by them, which may be
// null (infoseg_fast/reference/appearance.py has the equations). Of the numbers of type `dtype`; sums in float64.
struct InformationArguments {
  DType dtype = DType::f32;
  const void* moments = nullptr;  // [K, n (n + 1) / 2]
  const void* total = nullptr;    // [n (n + 1) / 2]
  int64_t K = 0, n = 0;           // n = d + 1
  double resolution = 0;
  void* gradient = nullptr;  // [K, n (n + 1) / 2]
};

double information_of_moments(const InformationArguments& a);

// One instruction set's entry points.
struct AppearanceKernels {
  void (*local)(const AppearanceArguments&);
  void (*statistics)(const StatisticsArguments&);
};

}  // namespace infoseg
