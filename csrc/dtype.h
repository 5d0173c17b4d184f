// Element types of the tensors the kernels take, and what each is accumulated in.
#pragma once

#include <cstdint>

// Functions in headers are static: an inline function compiled for AVX-512 in one source must never be
// the copy the linker keeps for all of them.

namespace infoseg {

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

// Half types are stored only: every sum over them is a float32 sum.
template <class E>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

static inline int64_t item_size(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

}  // namespace infoseg
