// Tensors as the kernels take them: a pointer, an element type, sizes and strides.
#pragma once

#include <cstdint>

namespace infoseg {

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

static inline int64_t item_size(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

// A tensor [B, C, h, w] of any layout; strides are in elements. float64 is accumulated in float64,
// every other type in float32 ("the accumulation type").
struct FeatureMap {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t B = 0, C = 0, h = 0, w = 0;
  int64_t stride_b = 0, stride_c = 0, stride_h = 0, stride_w = 0;
};

}  // namespace infoseg
