// Vectors of bfloat16 (AVX512-BF16): rounded numbers, and pairs of two rows side by side. A pair is
// stored as a float.
#pragma once

#include "common/simd.h"

namespace infoseg {
namespace INFOSEG_ISA {

#if defined(__AVX512BF16__)
// 16 pairs of low[i] and high[i].
INFOSEG_INLINE void store_pairs(float* to, __m512 low, __m512 high) {
  const __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
  const __m512i b = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high)), 16);
  _mm512_storeu_si512(to, _mm512_or_si512(a, b));
}

// 32 numbers, rounded to bfloat16.
INFOSEG_INLINE __m512i halves_of(const float* from) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
}

// 32 pairs of low[i] and high[i].
INFOSEG_INLINE void interleave(float* to, __m512i low, __m512i high) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first = _mm512_load_si512(kOrder), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(low, first, high));
  _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(low, second, high));
}
#endif

}  // namespace INFOSEG_ISA
}  // namespace infoseg
