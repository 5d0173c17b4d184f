// How Python hands a tensor over: a data pointer as a number, sizes and strides in elements. Checks are Python's.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>

#include "feature_map.h"

namespace infoseg {

// (pointer, B, C, h, w, stride_b, stride_c, stride_h, stride_w); pointer 0 is "not given".
using FeatureMapArgument = std::array<std::int64_t, 9>;

static inline FeatureMap feature_map(const FeatureMapArgument& a) {
  return {reinterpret_cast<void*>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]};
}

static inline void* pointer(std::int64_t address) { return reinterpret_cast<void*>(address); }

}  // namespace infoseg
