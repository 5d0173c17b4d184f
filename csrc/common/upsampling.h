// Bilinear upsampling within a kernel: the source coordinates of the rows and columns of the
// output.
#pragma once

#include "common/buffer.h"
#include "common/simd.h"

namespace infoseg {
namespace INFOSEG_ISA {

// PyTorch's source coordinate of one output index, align_corners=False.
template <class A>
struct Source {
  int32_t low, high;
  A weight;  // of high
};

template <class A>
static Source<A> source_of(int64_t index, int64_t in, int64_t out) {
  const A scale = static_cast<A>(in) / static_cast<A>(out);
  A x = scale * (static_cast<A>(index) + A(0.5)) - A(0.5);
  if (x < 0) x = 0;
  int64_t low = static_cast<int64_t>(x);
  if (low > in - 1) low = in - 1;
  A weight = x - static_cast<A>(low);
  if (weight > 1) weight = 1;
  return {static_cast<int32_t>(low), static_cast<int32_t>(low < in - 1 ? low + 1 : low), weight};
}

// The source coordinates of the columns of an output row, in groups of W, counted from `first`.
template <class A>
struct Columns {
  static constexpr int W = Lanes<A>::W;
  int64_t groups;
  Buffer<int32_t> first, span;  // [groups]: a group reads columns first .. first + span - 1
  Buffer<int32_t> low, high;    // [groups * W]
  Buffer<A> weight;             // [groups * W]

  Columns(int64_t in, int64_t out)
      : groups((out + W - 1) / W), first(groups), span(groups), low(groups * W), high(groups * W), weight(groups * W) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int i = 0; i < W; ++i) {
        const int64_t x = g * W + i < out ? g * W + i : out - 1;
        const Source<A> s = source_of<A>(x, in, out);
        if (i == 0) first[g] = s.low;
        low[g * W + i] = s.low - first[g];
        high[g * W + i] = s.high - first[g];
        weight[g * W + i] = s.weight;
        if (i == W - 1) span[g] = s.high - first[g] + 1;
      }
    }
  }
};

// row[low] and row[high] of W columns.
template <class A>
INFOSEG_INLINE void pick(const A* row, const int32_t* low, const int32_t* high, int32_t span, Vec<A>& at_low,
                         Vec<A>& at_high) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    if (span <= 32) {
      // An upsampled row reads few neighbours: two registers hold them, and a permutation is faster
      // than a gather.
      const __m512i i = _mm512_loadu_si512(low), j = _mm512_loadu_si512(high);
      const __m512 a = _mm512_loadu_ps((const float*)row);
      if (span <= 16) {
        at_low = (Vec<A>)_mm512_permutexvar_ps(i, a);
        at_high = (Vec<A>)_mm512_permutexvar_ps(j, a);
      } else {
        const __m512 b = _mm512_loadu_ps((const float*)row + 16);
        at_low = (Vec<A>)_mm512_permutex2var_ps(a, i, b);
        at_high = (Vec<A>)_mm512_permutex2var_ps(a, j, b);
      }
      return;
    }
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) {
    const __m256i i = _mm256_loadu_si256((const __m256i*)low), j = _mm256_loadu_si256((const __m256i*)high);
    if (span <= 8) {
      const __m256 a = _mm256_loadu_ps((const float*)row);
      at_low = (Vec<A>)_mm256_permutevar8x32_ps(a, i);
      at_high = (Vec<A>)_mm256_permutevar8x32_ps(a, j);
    } else {
      at_low = (Vec<A>)_mm256_i32gather_ps((const float*)row, i, 4);
      at_high = (Vec<A>)_mm256_i32gather_ps((const float*)row, j, 4);
    }
    return;
  }
#endif
  (void)span;
  for (int i = 0; i < Lanes<A>::W; ++i) {
    at_low[i] = row[low[i]];
    at_high[i] = row[high[i]];
  }
}

template <class A>
INFOSEG_INLINE void store_labels(uint8_t* to, Vec<A> labels, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)labels));
    _mm_mask_storeu_epi8(to, n >= 16 ? __mmask16(-1) : __mmask16((1u << n) - 1), bytes);
    return;
  }
#endif
  for (int i = 0; i < Lanes<A>::W && i < n; ++i) to[i] = static_cast<uint8_t>(labels[i]);
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
