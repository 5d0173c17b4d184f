// exp, log1p(exp) and log of vectors, with an error of one or two units in the last place.
#pragma once

#include "common/simd.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float lowest = -87.0f, magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float log2_e = 1.44269504088896341f, ln2_high = 0.693145751953125f,
                         ln2_low = 1.42860682030941723e-6f;
  static constexpr int bias = 127, mantissa = 23, degree = 7, log_terms = 5, log1p_terms = 8;
  static constexpr float largest = 3.402823466e38f;
};
template <>
struct ExpConstants<double> {
  static constexpr double lowest = -708.0, magic = 6755399441055744.0;
  static constexpr double log2_e = 1.44269504088896340736, ln2_high = 6.93147180369123816490e-1,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr int bias = 1023, mantissa = 52, degree = 13, log_terms = 10, log1p_terms = 17;
  static constexpr double largest = 1.7976931348623157e308;
};

constexpr double kInverseFactorial[14] = {
    1.,        1.,         1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,
    1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800.};

// exp(x) for x <= 0, which is all that softmax and sigmoid need. Below `lowest` the result is 0;
// NaN stays NaN.
template <class T>
INFOSEG_INLINE Vec<T> exp_nonpositive(Vec<T> x) {
  using K = ExpConstants<T>;
  using I = typename Lanes<T>::I;
  const auto under = x < broadcast<T>(K::lowest);
  const Vec<T> shifted = x * K::log2_e + K::magic;
  const Vec<T> n = shifted - K::magic;
  Vec<T> r = x - n * K::ln2_high;
  r = r - n * K::ln2_low;
  // Taylor series: |r| <= ln(2)/2, and the first omitted term is below a hundredth of the last bit.
  Vec<T> poly = broadcast<T>(T(kInverseFactorial[K::degree]));
#pragma GCC unroll 16
  for (int i = K::degree - 1; i >= 0; --i) poly = poly * r + T(kInverseFactorial[i]);
  const I power = ((I)shifted + K::bias) << K::mantissa;
  return under ? Vec<T>{} : poly * (Vec<T>)power;
}

// 2 atanh(s) / s - 2, a series in s^2.
template <class T, int kTerms>
INFOSEG_INLINE Vec<T> atanh_tail(Vec<T> s2) {
  Vec<T> sum = broadcast<T>(T(2) / (2 * kTerms + 1));
#pragma GCC unroll 20
  for (int i = kTerms - 1; i >= 1; --i) sum = sum * s2 + T(2) / (2 * i + 1);
  return sum * s2;
}

// log(1 + u) for u in [0, 1], with full relative precision near 0.
template <class T>
INFOSEG_INLINE Vec<T> log1p_unit(Vec<T> u) {
  const Vec<T> s = u / (u + T(2));
  return s * T(2) + s * atanh_tail<T, ExpConstants<T>::log1p_terms>(s * s);
}

// log(y) for y > 0 that is not denormal; infinity and NaN are returned unchanged.
template <class T>
INFOSEG_INLINE Vec<T> log_of_positive(Vec<T> y) {
  using K = ExpConstants<T>;
  using I = typename Lanes<T>::I;
  const I root_half = (I)broadcast<T>(T(0.70710678118654752));
  const I e = ((I)y - root_half) >> K::mantissa;
  const Vec<T> m = (Vec<T>)((I)y - (e << K::mantissa));
  const Vec<T> n = __builtin_convertvector(e, Vec<T>);
  const Vec<T> s = (m - T(1)) / (m + T(1));
  const Vec<T> log_m = s * T(2) + s * atanh_tail<T, K::log_terms>(s * s);
  const Vec<T> result = n * K::ln2_high + (log_m + n * K::ln2_low);
  return y <= broadcast<T>(K::largest) ? result : y;
}

template <class T>
struct Softplus {
  Vec<T> of_x, of_minus_x;            // log(1 + e^x), log(1 + e^-x)
  Vec<T> sigmoid_x, sigmoid_minus_x;  // their derivatives by x and by -x
};

template <class T>
INFOSEG_INLINE Softplus<T> softplus(Vec<T> x) {
  const auto negative = x < Vec<T>{};
  const Vec<T> size = negative ? -x : x;
  const Vec<T> u = exp_nonpositive<T>(-size);
  const Vec<T> tail = log1p_unit<T>(u);
  const Vec<T> large = T(1) / (u + T(1));
  const Vec<T> small = u * large;
  Softplus<T> s;
  s.of_x = (negative ? Vec<T>{} : x) + tail;
  s.of_minus_x = (negative ? size : Vec<T>{}) + tail;
  s.sigmoid_x = negative ? small : large;
  s.sigmoid_minus_x = negative ? large : small;
  return s;
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
