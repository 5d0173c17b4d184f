// Vectors of the instruction set that this source is compiled for, which INFOSEG_ISA names
// (common/cpu.h).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns about its own header
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "common/feature_map.h"

#define INFOSEG_INLINE static inline __attribute__((always_inline))
// A long function: a copy of it at each call would take long to compile.
#define INFOSEG_CALLED __attribute__((noinline))

namespace infoseg {
namespace INFOSEG_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

// Vector extensions of GCC and clang: the same code compiles to each instruction set.
template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  static constexpr int W = kVectorBytes / 4;
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
  static constexpr int W = kVectorBytes / 8;
};

template <class T>
using Vec = typename Lanes<T>::V;

template <class T>
INFOSEG_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Unaligned*>(p);
}

template <class T>
INFOSEG_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Lanes<T>::Unaligned*>(p) = v;
}

// Stores past the caches, to an address that is a multiple of the vector's size.
template <class T>
INFOSEG_INLINE void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    _mm512_stream_ps(reinterpret_cast<float*>(p), (__m512)v);
  else
    _mm512_stream_pd(reinterpret_cast<double*>(p), (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    _mm256_stream_ps(reinterpret_cast<float*>(p), (__m256)v);
  else
    _mm256_stream_pd(reinterpret_cast<double*>(p), (__m256d)v);
#else
  store<T>(p, v);
#endif
}

// Makes the streamed numbers visible to other threads.
INFOSEG_INLINE void finish_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// x - 0 is x for every x, -0 and NaN included, so the compiler removes the subtraction.
template <class T>
INFOSEG_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

template <class T, class M>
INFOSEG_INLINE Vec<T> select(M mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes : no;
}

// The second argument where either is NaN, as the x86 instruction does.
template <class T>
INFOSEG_INLINE Vec<T> greater_of(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}
template <class T>
INFOSEG_INLINE double sum_lanes(Vec<T> v) {
  double sum = 0;
  for (int i = 0; i < Lanes<T>::W; ++i) sum += static_cast<double>(v[i]);
  return sum;
}

// ---------------------------------------------------------------- half types

INFOSEG_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

INFOSEG_INLINE float float_of(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

template <class A>
INFOSEG_INLINE A widen(float x) {
  return x;
}
template <class A>
INFOSEG_INLINE A widen(double x) {
  return x;
}
template <class A>
INFOSEG_INLINE A widen(bfloat16 x) {
  return float_of(static_cast<uint32_t>(x.bits) << 16);
}
template <class A>
INFOSEG_INLINE A widen(float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float tiny = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24, a subnormal's unit
    return sign ? -tiny : tiny;
  }
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
#endif
}

template <class E>
struct Narrow {
  template <class A>
  static E from(A x) {
    return static_cast<E>(x);
  }
};
template <>
struct Narrow<bfloat16> {
  static bfloat16 from(float x) {
    const uint32_t u = bits_of(x);
    if (x != x) return {static_cast<uint16_t>(u >> 16 | 0x40)};
    return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
  }
};
template <>
struct Narrow<float16> {
  static float16 from(float x) {
#if defined(__F16C__)
    return {static_cast<uint16_t>(_cvtss_sh(x, 0))};
#else
    const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, size = u & 0x7fffffffu;
    if (size > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (size >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
    if (size < 0x38800000u) {
      // Adding 0.5 leaves a subnormal half's bits, rounded to even, at the bottom of the sum.
      const uint32_t rounded = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
      return {static_cast<uint16_t>(sign | rounded)};
    }
    return {static_cast<uint16_t>(sign | (((size + 0xfffu + (size >> 13 & 1)) >> 13) - (112u << 10)))};
#endif
  }
};

template <class E, class A>
INFOSEG_INLINE E narrow(A x) {
  return Narrow<E>::from(x);
}

template <class A, class E>
static inline void widen_row(A* __restrict to, const E* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen<A>(from[i]);
}

template <class E, class A>
static inline void narrow_row(E* __restrict to, const A* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<E>(from[i]);
}

#if defined(__AVX512F__)
INFOSEG_INLINE __m512 load_half(const float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INFOSEG_INLINE __m512 load_half(const bfloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

INFOSEG_INLINE __m256i half_bits(__m512 x, float16) { return _mm512_cvtps_ph(x, 0); }
INFOSEG_INLINE __m256i half_bits(__m512 x, bfloat16) {
  const __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
  rounded = _mm512_srli_epi32(rounded, 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40)));
}

template <class E>
static inline void widen_half_row(float* __restrict to, const E* __restrict from, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) _mm512_storeu_ps(to + i, load_half(from + i));
  for (; i < n; ++i) to[i] = widen<float>(from[i]);
}
template <>
inline void widen_row<float, float16>(float* __restrict to, const float16* __restrict from, int64_t n) {
  widen_half_row(to, from, n);
}
template <>
inline void widen_row<float, bfloat16>(float* __restrict to, const bfloat16* __restrict from, int64_t n) {
  widen_half_row(to, from, n);
}

template <class E>
static inline void narrow_half_row(E* __restrict to, const float* __restrict from, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), half_bits(_mm512_loadu_ps(from + i), E{}));
  for (; i < n; ++i) to[i] = narrow<E>(from[i]);
}
template <>
inline void narrow_row<float16, float>(float16* __restrict to, const float* __restrict from, int64_t n) {
  narrow_half_row(to, from, n);
}
template <>
inline void narrow_row<bfloat16, float>(bfloat16* __restrict to, const float* __restrict from, int64_t n) {
  narrow_half_row(to, from, n);
}
#endif

// Calls f with a number of the accumulation type of `type`. Half types are only stored: every sum
// over them is a float32 sum, so kernels are compiled for two types, and element types matter where
// numbers are read and written.
template <class F>
static inline auto by_accumulation(DType type, const F& f) {
#if defined(__AVX512BF16__)
  (void)type;  // compiled for bfloat16 features alone
  return f(float{});
#else
  return type == DType::f64 ? f(double{}) : f(float{});
#endif
}

// Calls f with `data` as a pointer to its elements, of a type that is accumulated in A.
template <class A, class F>
static inline void by_element(DType type, void* data, const F& f) {
  if constexpr (sizeof(A) == 8)
    f(static_cast<double*>(data));
  else if (type == DType::bf16)
    f(static_cast<bfloat16*>(data));
  else if (type == DType::f16)
    f(static_cast<float16*>(data));
  else
    f(static_cast<float*>(data));
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
