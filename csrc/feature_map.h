// Features [B, C, h, w] as a pointer and strides, counted in elements. No layout is assumed.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace infoseg {

struct FeatureMap {
  void* data = nullptr;
  int64_t B = 0, C = 0, h = 0, w = 0;
  int64_t stride_b = 0, stride_c = 0, stride_h = 0, stride_w = 0;
};

static inline int64_t positions(const FeatureMap& f) { return f.h * f.w; }

// Rows of the map follow each other at one stride: position p lies at p * stride_w.
static inline bool is_flat(const FeatureMap& f) { return f.h == 1 || f.stride_h == f.w * f.stride_w; }

}  // namespace infoseg
