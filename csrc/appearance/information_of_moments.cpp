// Inverts a few small matrices, without vectors and threads.
#include <cmath>
#include <vector>

#include "appearance/appearance.h"

namespace infoseg {

namespace {

// Replaces a symmetric positive definite matrix [n, n] by its inverse; returns log |det|.
double invert(std::vector<double>& Q, int64_t n) {
  double log_det = 0;
  for (int64_t p = 0; p < n; ++p) {
    const double pivot = Q[p * n + p];
    log_det += std::log(std::fabs(pivot));
    Q[p * n + p] = 1;
    for (int64_t j = 0; j < n; ++j) Q[p * n + j] /= pivot;
    for (int64_t i = 0; i < n; ++i) {
      if (i == p) continue;
      const double factor = Q[i * n + p];
      Q[i * n + p] = 0;
      for (int64_t j = 0; j < n; ++j) Q[i * n + j] -= factor * Q[p * n + j];
    }
  }
  return log_det;
}

template <class A>
double information(const InformationArguments& a, double tiny) {
  const int64_t n = a.n, S = n * (n + 1) / 2;
  const double floor = a.resolution * a.resolution;
  std::vector<double> Q(static_cast<size_t>(n * n));
  double value = 0;
  for (int64_t k = 0; k <= a.K; ++k) {  // number K is all positions together
    const A* M = static_cast<const A*>(k < a.K ? a.moments : a.total) + (k < a.K ? k * S : 0);
    // A class without positions has moments 0. The comparison keeps NaN.
    const double pi = M[0] < tiny ? tiny : static_cast<double>(M[0]);
    for (int64_t i = 0, s = 0; i < n; ++i)
      for (int64_t j = i; j < n; ++j, ++s) Q[i * n + j] = Q[j * n + i] = static_cast<double>(M[s]) / pi;
    Q[0] = pi == pi ? 1 : pi;
    for (int64_t i = 1; i < n; ++i) Q[i * n + i] += floor;
    const double half_log_det = invert(Q, n) / 2;
    if (k == a.K) return value + half_log_det;
    value -= static_cast<double>(M[0]) * half_log_det;
    if (!a.gradient) continue;
    A* gradient = static_cast<A*>(a.gradient) + k * S;
    double corner = static_cast<double>(n);
    for (int64_t i = 1; i < n; ++i) corner -= floor * Q[i * n + i];
    for (int64_t i = 0, s = 0; i < n; ++i)
      for (int64_t j = i; j < n; ++j, ++s) gradient[s] = static_cast<A>(Q[i * n + j] * (i == j ? -0.5 : -1.0));
    gradient[0] = static_cast<A>(corner / 2 - half_log_det - Q[0] / 2);
  }
  return value;
}

}  // namespace

double information_of_moments(const InformationArguments& a) {
  return a.dtype == DType::f64 ? information<double>(a, 2.2250738585072014e-308)
                               : information<float>(a, 1.1754943508222875e-38);
}

}  // namespace infoseg
