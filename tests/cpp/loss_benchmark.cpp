// Times the loss kernels without Python: loss_benchmark [repeats] [B C K P n] [megabytes] prints milliseconds and
// GFLOP/s. The last number is memory touched between two runs, as other layers of a network would: it empties the
// caches.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "mutual_information_loss/mutual_information_loss.h"

using namespace infoseg;

// A loop of multiplications and additions that never leaves the registers: what the core can do at the moment.
static double busy_loop() {
  typedef float V __attribute__((vector_size(16)));
  V x[12];
  for (V& v : x) v = V{1, 1, 1, 1};
  for (int i = 0; i < 100000; ++i) {
#pragma GCC unroll 12
    for (V& v : x) {
      v = v * 0.999f + 0.001f;
      asm volatile("" : "+x"(v));
    }
  }
  double sum = 0;
  for (V& v : x) sum += v[0];
  return sum;
}

template <class F>
static double time_ms(F run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

static double quantile(std::vector<double>& x, double q) {
  std::sort(x.begin(), x.end());
  return x[static_cast<size_t>(q * static_cast<double>(x.size() - 1))];
}

int main(int argc, char** argv) {
  auto argument = [&](int i, int64_t value) { return argc > i ? std::atoll(argv[i]) : value; };
  const int repeats = static_cast<int>(argument(1, 200));
  const int64_t B = argument(2, 16), C = argument(3, 128), K = argument(4, 15), P = argument(5, 1024),
                n = argument(6, 1);
  std::vector<float> f(B * C * P + 16), G(B * K * C), g0(B * K), df(B * C * P + 16), dG(B * K * C), dg0(B * K);
  unsigned seed = 1;
  for (auto* x : {&f, &G, &g0})
    for (float& v : *x) v = static_cast<float>((seed = seed * 1664525u + 1013904223u) >> 8) / 8388608.f - 1.f;
  LossArguments a;
  const auto aligned = [](std::vector<float>& x) {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(x.data()) + 63) / 64 * 64);
  };
  a.features = {aligned(f), DType::f32, B, C, 1, P, C * P, P, P, 1};
  a.G = G.data();
  a.g0 = g0.data();
  a.K = K;
  a.partners = n;
  LossArguments with_gradient = a;
  with_gradient.df = {aligned(df), DType::f32, B, C, 1, P, C * P, P, P, 1};
  with_gradient.dG = dG.data();
  with_gradient.dg0 = dg0.data();
  // With each partner's scores, or through the assigned features.
  const double giga = 2e-9 * static_cast<double>(B * C * P * std::min((1 + n) * K, 2 * K + n));
  std::vector<double> alone, both, busy;
  double keep = 0;
  std::vector<float> other(argument(7, 24) << 18);
  const auto others_turn = [&] {
    for (float& v : other) v += 1;
  };
  for (int i = 0; i < repeats; ++i) {
    others_turn();
    alone.push_back(time_ms([&] { mutual_information_loss(a); }));
    others_turn();
    both.push_back(time_ms([&] { mutual_information_loss(with_gradient); }));
    busy.push_back(time_ms([&] { keep += busy_loop(); }));
  }
  for (double q : {0.02, 0.1, 0.5}) {
    const double x = quantile(alone, q), y = quantile(both, q), z = quantile(busy, q);
    std::printf("p%.0f: loss %.3f ms %.1f GFLOP/s, with gradients %.3f ms %.1f GFLOP/s, register loop %.3f ms\n",
                100 * q, x, giga / x * 1e3, y, 3 * giga / y * 1e3, z);
  }
  return keep == 0;
}
