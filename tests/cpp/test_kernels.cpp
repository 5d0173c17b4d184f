// Tests of the C++ core without Python, for the sanitizers: every buffer has exactly the size it
// must have. Values are compared with plain loops in float64, gradients with differences of the
// loss. Exits 1 and says what differs.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "appearance/appearance.h"
#include "common/cpu.h"
#include "common/threads.h"
#include "mutual_information_loss/mutual_information_loss.h"
#include "refined_labels/refined_labels.h"
#include "segment/segment.h"
#include "similarity/similarity.h"

using namespace infoseg;

static int failures = 0;
static std::string context;

static void check(bool good, const char* what, double found = 0, double expected = 0) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %s: %.17g, expected %.17g\n", context.c_str(), what, found, expected);
}

static unsigned seed = 1;
static double noise() {
  seed = seed * 1664525u + 1013904223u;
  return (seed >> 8) / 8388608.0 - 1.0;
}

// Memory of exactly n numbers: a sanitizer reports an access to the next one.
template <class T>
using Exact = std::unique_ptr<T[]>;
template <class T>
static Exact<T> exact(int64_t n) {
  return Exact<T>(new T[static_cast<size_t>(n)]());
}

struct Problem {
  int64_t B, C, K, h, w;
  int layout;  // 0 contiguous, 1 channels last, 2 every second column of wider rows
  bool offset, mask;
  int64_t P() const { return h * w; }
  template <class T>
  FeatureMap map(T* data) const {
    const DType dtype = sizeof(T) == 8 ? DType::f64 : DType::f32;
    if (layout == 1) return {data, dtype, B, C, h, w, C * P(), 1, w * C, C};
    if (layout == 2) return {data, dtype, B, C, h, w, C * h * 2 * w, h * 2 * w, 2 * w, 2};
    return {data, dtype, B, C, h, w, C * P(), P(), w, 1};
  }
  int64_t numbers() const { return layout == 2 ? B * C * P() * 2 - 1 : B * C * P(); }
};

static int64_t place(const FeatureMap& m, int64_t b, int64_t c, int64_t p) {
  return b * m.stride_b + c * m.stride_c + p / m.w * m.stride_h + p % m.w * m.stride_w;
}

template <class T>
struct Data {
  Problem p;
  Exact<T> f, G, g0;
  Exact<uint8_t> valid;
  explicit Data(const Problem& p)
      : p(p),
        f(exact<T>(p.numbers())),
        G(exact<T>(p.B * p.K * p.C)),
        g0(exact<T>(p.B * p.K)),
        valid(exact<uint8_t>(p.B * p.P())) {
    for (int64_t i = 0; i < p.numbers(); ++i) f[i] = static_cast<T>(noise());
    for (int64_t i = 0; i < p.B * p.K * p.C; ++i) G[i] = static_cast<T>(noise());
    for (int64_t i = 0; i < p.B * p.K; ++i) g0[i] = static_cast<T>(noise());
    for (int64_t i = 0; i < p.B * p.P(); ++i) valid[i] = noise() > -0.5;
  }
  double score(int64_t b, int64_t c, int64_t k, int64_t q) const {
    const FeatureMap m = p.map<float>(nullptr);
    double sum = p.offset ? static_cast<double>(g0[c * p.K + k]) : 0.0;
    for (int64_t i = 0; i < p.C; ++i)
      sum += static_cast<double>(f[place(m, b, i, q)]) * static_cast<double>(G[(c * p.K + k) * p.C + i]);
    return sum;
  }
  std::vector<double> softmax(int64_t b, int64_t c, int64_t q, double tau) const {
    std::vector<double> v(static_cast<size_t>(p.K));
    double top = -1e300, sum = 0;
    for (int64_t k = 0; k < p.K; ++k) top = std::max(top, v[k] = tau * score(b, c, k, q));
    for (double& x : v) sum += x = std::exp(x - top);
    for (double& x : v) x /= sum;
    return v;
  }
};

static double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

struct LossSettings {
  double temperature;
  Estimator estimator;
  Negatives negatives;
  int64_t partners;
  double balance;
};

template <class T>
static double plain_loss(const Data<T>& d, const LossSettings& s) {
  const Problem& p = d.p;
  double total = 0, count = 0;
  std::vector<double> usage(static_cast<size_t>(p.K), 0.0);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t q = 0; q < p.P(); ++q) {
      if (p.mask && !d.valid[b * p.P() + q]) continue;
      ++count;
      const std::vector<double> V = d.softmax(b, b, q, s.temperature);
      double T_pos = 0;
      for (int64_t k = 0; k < p.K; ++k) T_pos += V[k] * d.score(b, b, k, q), usage[k] += V[k];
      double sum = 0;
      if (s.estimator == Estimator::infonce) {
        for (int64_t j = 0; j <= s.partners; ++j)
          for (int64_t k = 0; k < p.K; ++k) sum += std::exp(d.score(b, (b + j) % p.B, k, q));
        total += std::log(sum) - T_pos;
        continue;
      }
      total += softplus(-T_pos);
      for (int64_t j = 1; j <= s.partners; ++j) {
        const int64_t c = (b + j) % p.B;
        const std::vector<double> R = s.negatives == Negatives::reassigned ? d.softmax(b, c, q, s.temperature)
                                                                           : d.softmax(c, c, q, s.temperature);
        double T_neg = 0;
        for (int64_t k = 0; k < p.K; ++k) T_neg += R[k] * d.score(b, c, k, q);
        total += softplus(T_neg) / static_cast<double>(s.partners);
      }
    }
  double loss = total / count;
  if (s.balance != 0) {
    loss += s.balance * std::log(static_cast<double>(p.K));
    for (double u : usage) loss += s.balance * u / count * std::log(u / count);
  }
  return loss;
}

template <class T>
static LossArguments loss_arguments(const Data<T>& d, const LossSettings& s, int threads) {
  LossArguments a;
  a.features = d.p.map(d.f.get());
  a.G = d.G.get();
  a.g0 = d.p.offset ? d.g0.get() : nullptr;
  a.valid = d.p.mask ? d.valid.get() : nullptr;
  a.K = d.p.K;
  a.temperature = s.temperature;
  a.estimator = s.estimator;
  a.negatives = s.negatives;
  a.partners = s.partners;
  a.balance = s.balance;
  a.threads = threads;
  return a;
}

template <class T>
static double loss_and_gradients(const Data<T>& d, const LossSettings& s, int threads, T* df, T* dG, T* dg0) {
  LossArguments a = loss_arguments(d, s, threads);
  a.df = d.p.map(df);
  a.dG = dG;
  a.dg0 = dg0;
  return mutual_information_loss(a);
}

template <class T>
static void test_loss(const Problem& p, const LossSettings& s, int threads) {
  const Data<T> d(p);
  const double expected = plain_loss(d, s), tolerance = sizeof(T) == 8 ? 1e-12 : 2e-5;
  const double plain = mutual_information_loss(loss_arguments(d, s, threads));
  check(std::fabs(plain - expected) <= tolerance * (1 + std::fabs(expected)), "loss", plain, expected);
  const Exact<T> df = exact<T>(p.numbers()), dG = exact<T>(p.B * p.K * p.C), dg0 = exact<T>(p.B * p.K);
  const double loss = loss_and_gradients(d, s, threads, df.get(), dG.get(), dg0.get());
  check(std::fabs(loss - plain) <= tolerance * (1 + std::fabs(plain)), "loss with gradients", loss, plain);
  const Exact<T> again = exact<T>(p.numbers()), dG2 = exact<T>(p.B * p.K * p.C), dg2 = exact<T>(p.B * p.K);
  loss_and_gradients(d, s, threads, again.get(), dG2.get(), dg2.get());
  check(!std::memcmp(df.get(), again.get(), sizeof(T) * static_cast<size_t>(p.numbers())), "the same bits again");
  check(!std::memcmp(dG.get(), dG2.get(), sizeof(T) * static_cast<size_t>(p.B * p.K * p.C)),
        "the same bits of dG again");
  if (sizeof(T) == 4) return;
  // The derivative along one random direction of all inputs.
  double slope = 0;
  Data<T> low(p), high(p);
  const double step = 1e-5;
  const FeatureMap m = p.map<float>(nullptr);
  const auto move = [&](Exact<T> Data<T>::* x, const T* gradient, int64_t i) {
    const double by = noise();
    slope += by * static_cast<double>(gradient[i]);
    (low.*x)[i] = static_cast<T>((d.*x)[i] - step * by);
    (high.*x)[i] = static_cast<T>((d.*x)[i] + step * by);
  };
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t c = 0; c < p.C; ++c)
      for (int64_t q = 0; q < p.P(); ++q) move(&Data<T>::f, df.get(), place(m, b, c, q));
  for (int64_t i = 0; i < p.B * p.K * p.C; ++i) move(&Data<T>::G, dG.get(), i);
  for (int64_t i = 0; i < p.B * p.K; ++i) move(&Data<T>::g0, dg0.get(), i);
  for (Data<T>* x : {&low, &high}) std::memcpy(x->valid.get(), d.valid.get(), static_cast<size_t>(p.B * p.P()));
  const double measured = (plain_loss(high, s) - plain_loss(low, s)) / (2 * step);
  const double offset_free = p.offset ? 1e-7 : 1;  // without g0 the loss does not move with it, but dg0 is still given
  if (p.offset)
    check(std::fabs(slope - measured) <= offset_free * (1 + std::fabs(measured)), "gradient along a direction", slope,
          measured);
}

static void test_similarity(const Problem& p, int threads) {
  const Data<float> d(p);
  for (bool softmax : {false, true}) {
    const Exact<float> out = exact<float>(p.B * p.K * p.P());
    SimilarityArguments a;
    a.features = p.map(d.f.get());
    a.G = d.G.get();
    a.g0 = p.offset ? d.g0.get() : nullptr;
    a.K = p.K;
    a.threads = threads;
    a.out = out.get();
    a.softmax = softmax;
    a.temperature = 1.5;
    similarity_forward(a);
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t q = 0; q < p.P(); ++q) {
        const std::vector<double> V = d.softmax(b, b, q, 1.5);
        for (int64_t k = 0; k < p.K; ++k) {
          const double expected = softmax ? V[k] : d.score(b, b, k, q), found = out[(b * p.K + k) * p.P() + q];
          check(std::fabs(found - expected) < 2e-5, softmax ? "assign" : "similarity", found, expected);
        }
      }
    const Exact<float> grad = exact<float>(p.B * p.K * p.P()), df = exact<float>(p.numbers()),
                       dG = exact<float>(p.B * p.K * p.C), dg0 = exact<float>(p.B * p.K);
    for (int64_t i = 0; i < p.B * p.K * p.P(); ++i) grad[i] = static_cast<float>(noise());
    a.grad = grad.get();
    a.probs = softmax ? out.get() : nullptr;
    a.df = p.map(df.get());
    a.dG = dG.get();
    a.dg0 = dg0.get();
    similarity_backward(a);
    // sum_k dg0 = sum of the coefficients; for the softmax it is 0.
    for (int64_t b = 0; b < p.B; ++b) {
      double expected = 0, found = 0;
      for (int64_t i = 0; i < p.K * p.P(); ++i) expected += softmax ? 0 : grad[b * p.K * p.P() + i];
      for (int64_t k = 0; k < p.K; ++k) found += dg0[b * p.K + k];
      check(std::fabs(found - expected) < 1e-3, "dg0", found, expected);
    }
  }
}

template <class T>
static void test_moments(const Problem& p, int64_t S, int threads) {
  const Data<T> d(p);
  const Problem of_statistics{p.B, S, p.K, p.h, p.w, p.layout, false, false};
  const Data<T> Y(of_statistics);
  const FeatureMap y = of_statistics.map(Y.f.get());
  const Exact<T> probs = exact<T>(p.B * p.K * p.P()), moments = exact<T>(p.K * S), alone = exact<T>(p.K * S);
  SimilarityArguments a;
  a.features = p.map(d.f.get());
  a.G = d.G.get();
  a.g0 = p.offset ? d.g0.get() : nullptr;
  a.K = p.K;
  a.threads = threads;
  a.softmax = true;
  a.temperature = 1.5;
  a.statistics = y;
  a.moments = alone.get();
  similarity_forward(a);
  a.out = probs.get();
  a.moments = moments.get();
  similarity_forward(a);
  a.probs = probs.get();
  check(!std::memcmp(alone.get(), moments.get(), sizeof(T) * static_cast<size_t>(p.K * S)), "moments, V kept or not");
  std::vector<double> expected(static_cast<size_t>(p.K * S), 0.0);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t q = 0; q < p.P(); ++q) {
      const std::vector<double> V = d.softmax(b, b, q, 1.5);
      for (int64_t k = 0; k < p.K; ++k)
        for (int64_t s = 0; s < S; ++s) expected[k * S + s] += V[k] * static_cast<double>(Y.f[place(y, b, s, q)]);
    }
  const double tolerance = sizeof(T) == 8 ? 1e-11 : 1e-3;
  for (int64_t i = 0; i < p.K * S; ++i)
    check(std::fabs(moments[i] - expected[i]) < tolerance, "moment", moments[i], expected[i]);
  // The backward pass equals the one with the gradient by the probabilities written out.
  std::vector<Exact<T>> found;
  const Exact<T> grad = exact<T>(p.B * p.K * p.P());
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t k = 0; k < p.K; ++k)
      for (int64_t q = 0; q < p.P(); ++q) {
        double sum = 0;
        for (int64_t s = 0; s < S; ++s)
          sum += static_cast<double>(moments[k * S + s]) * static_cast<double>(Y.f[place(y, b, s, q)]);
        grad[(b * p.K + k) * p.P() + q] = static_cast<T>(sum);
      }
  for (bool written : {false, true}) {
    Exact<T> df = exact<T>(p.numbers()), dG = exact<T>(p.B * p.K * p.C), dg0 = exact<T>(p.B * p.K);
    a.grad_dtype = a.features.dtype;
    a.grad = written ? grad.get() : nullptr;
    a.moments = written ? nullptr : moments.get();
    a.df = p.map(df.get());
    a.dG = dG.get();
    a.dg0 = dg0.get();
    similarity_backward(a);
    found.push_back(std::move(df));
    found.push_back(std::move(dG));
    found.push_back(std::move(dg0));
  }
  const int64_t sizes[] = {p.numbers(), p.B * p.K * p.C, p.B * p.K};
  for (size_t x = 0; x < 3; ++x)
    for (int64_t i = 0; i < sizes[x]; ++i)
      check(std::fabs(found[x][i] - found[3 + x][i]) < (sizeof(T) == 8 ? 1e-9 : 1e-2), "gradient of the moments",
            found[x][i], found[3 + x][i]);
}

// Cells of 2 x 3 pixels; layout 3 is an image whose columns lie in rows.
static void test_appearance(int64_t B, int64_t c, int64_t h, int64_t w, int layout, int64_t radius, int threads) {
  const int64_t rows = 2 * h, columns = 3 * w, P = h * w;
  const Problem p{B, c, 2, rows, columns, layout == 3 ? 0 : layout, false, false};
  FeatureMap m = p.map<float>(nullptr);
  if (layout == 3) m = {nullptr, DType::f32, B, c, rows, columns, c * rows * columns, rows * columns, 1, rows};
  const Exact<float> images = exact<float>(p.numbers()), y = exact<float>(B * (c + 2) * P);
  for (int64_t i = 0; i < p.numbers(); ++i) images[i] = static_cast<float>(0.5 + 0.5 * noise());
  m.data = images.get();
  AppearanceArguments a;
  a.images = m;
  a.rows = h;
  a.columns = w;
  a.dark = 0.05f;
  a.flat = 1e-3f;
  a.threads = threads;
  a.out = y.get();
  local_appearance(a);
  const auto bright = [&](int64_t b, int64_t q) {
    double sum = 0;
    for (int64_t i = 0; i < c; ++i) sum += std::log(images[place(m, b, i, q)] + 0.05);
    return sum / static_cast<double>(c);
  };
  const auto inside = [](int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n - 1; };
  struct Tensor {
    double uu = 0, vv = 0, uv = 0;
  };
  const auto add_cell = [&](Tensor& t, int64_t b, int64_t v, int64_t u) {
    for (int64_t row = 2 * v; row < 2 * v + 2; ++row)
      for (int64_t x = 3 * u; x < 3 * u + 3; ++x) {
        if (x + 1 == columns || row + 1 == rows) continue;
        const int64_t here = row * columns + x, below = here + columns;
        const double falling = bright(b, below + 1) - bright(b, here), rising = bright(b, here + 1) - bright(b, below);
        t.uu += falling * falling / 54;
        t.vv += rising * rising / 54;
        t.uv += falling * rising / 54;
      }
  };
  for (int64_t b = 0; b < B; ++b)
    for (int64_t v = 0; v < h; ++v)
      for (int64_t u = 0; u < w; ++u) {
        for (int64_t i = 0; i < c; ++i) {
          double sum = 0;
          for (int64_t j = 0; j < 6; ++j) sum += images[place(m, b, i, (2 * v + j / 3) * columns + 3 * u + j % 3)];
          const double found = y[(b * (c + 2) + i) * P + v * w + u];
          check(std::fabs(found - std::log(sum / 6 + 0.05)) < 1e-5, "colour", found, std::log(sum / 6 + 0.05));
        }
        Tensor t;
        for (int64_t j = 0; j < 9; ++j) add_cell(t, b, inside(v + j / 3 - 1, h), inside(u + j % 3 - 1, w));
        const float* texture = y.get() + (b * (c + 2) + c) * P + v * w + u;
        const double trace = t.uu + t.vv + 1e-3, coherence = std::hypot(t.uu - t.vv, 2 * t.uv) / trace;
        check(std::fabs(texture[0] - std::log(trace)) < 1e-4, "roughness", texture[0], std::log(trace));
        check(std::fabs(texture[P] - coherence) < 1e-4, "coherence", texture[P], coherence);
      }

  const int64_t d = c + 2, S = (d + 1) * (d + 2) / 2;
  const Exact<float> out = exact<float>(B * S * P);
  const Exact<uint8_t> valid = exact<uint8_t>(B * P);
  double count = 0;
  for (int64_t i = 0; i < B * P; ++i) count += valid[i] = i == 0 || noise() > -0.5;
  StatisticsArguments s;
  s.y = y.get();
  s.valid = valid.get();
  s.B = B;
  s.d = d;
  s.h = h;
  s.w = w;
  s.radius = radius;
  s.threads = threads;
  s.out = out.get();
  appearance_statistics(s);
  std::vector<double> mean(d), deviation(d), expected(S * P);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t q = 0; q < B * P; ++q) mean[i] += valid[q] * y[(q / P * d + i) * P + q % P] / count;
    for (int64_t q = 0; q < B * P; ++q)
      deviation[i] += valid[q] * std::pow(y[(q / P * d + i) * P + q % P] - mean[i], 2) / count;
    deviation[i] = std::max(std::sqrt(deviation[i]), 1e-38);
  }
  const int64_t side = 2 * radius + 1;
  for (int64_t b = 0; b < B; ++b) {
    std::fill(expected.begin(), expected.end(), 0.0);
    const auto factor = [&](int64_t i, int64_t q) {
      return i == 0 ? 1.0 : (y[(b * d + i - 1) * P + q] - mean[i - 1]) / deviation[i - 1];
    };
    for (int64_t q = 0; q < P; ++q)
      for (int64_t o = 0; o < side * side; ++o) {
        const int64_t to = inside(q / w + o / side - radius, h) * w + inside(q % w + o % side - radius, w);
        for (int64_t i = 0, k = 0; i <= d; ++i)
          for (int64_t j = i; j <= d; ++j, ++k)
            expected[k * P + to] +=
                valid[b * P + q] * factor(i, q) * factor(j, q) / count / static_cast<double>(side * side);
      }
    for (int64_t i = 0; i < S * P; ++i)
      check(count < 2 || std::fabs(out[b * S * P + i] - expected[i]) < 1e-4, "statistic", out[b * S * P + i],
            expected[i]);
  }
}

static void test_segment(const Problem& p, int64_t rows, int64_t columns, int threads) {
  const Data<float> d(p);
  const Exact<uint8_t> labels = exact<uint8_t>(p.B * rows * columns), target = exact<uint8_t>(p.B * rows * columns);
  for (int64_t i = 0; i < p.B * rows * columns; ++i) target[i] = noise() > 0.5 ? 255 : noise() > 0;
  const Exact<int64_t> counts = exact<int64_t>(p.K * 2);
  SegmentArguments a;
  a.features = p.map(d.f.get());
  a.G = d.G.get();
  a.g0 = p.offset ? d.g0.get() : nullptr;
  a.K = p.K;
  a.rows = rows;
  a.columns = columns;
  a.threads = threads;
  a.labels = labels.get();
  segment(a);
  a.labels = nullptr;
  a.target = target.get();
  a.num_classes = 2;
  a.ignore_index = 255;
  a.counts = counts.get();
  check(segment(a) == -1, "no target is out of range");
  std::vector<int64_t> expected(static_cast<size_t>(p.K * 2), 0);
  for (int64_t i = 0; i < p.B * rows * columns; ++i) {
    check(labels[i] < p.K, "label below K", labels[i]);
    if (target[i] != 255) ++expected[labels[i] * 2 + target[i]];
  }
  for (int64_t i = 0; i < p.K * 2; ++i)
    check(counts[i] == expected[i], "count", static_cast<double>(counts[i]), static_cast<double>(expected[i]));
  target[p.B * rows * columns - 1] = 7;
  check(segment(a) == p.B * rows * columns - 1, "place of the target out of range");
}

// Labels against scores in float64; a label whose score is within rounding of the greatest is right
// too.
static void test_refined_labels(int64_t B, int64_t K, int64_t c, int64_t h, int64_t w, int64_t rows, int64_t columns,
                                int threads) {
  const int64_t sizes[] = {B * K * h * w, B * c * h * w, B * c * rows * columns, K * c * (2 * c + 1), K};
  std::vector<Exact<float>> given;
  for (int64_t n : sizes) {
    given.push_back(exact<float>(n));
    for (int64_t i = 0; i < n; ++i) given.back()[i] = static_cast<float>(noise());
  }
  for (int64_t i = 0; i < sizes[0]; ++i) given[0][i] = static_cast<float>(0.5 + 0.5 * noise());
  const Exact<uint8_t> labels = exact<uint8_t>(B * rows * columns);
  RefinedLabelsArguments a;
  a.prior = given[0].get();
  a.around = given[1].get();
  a.colour = given[2].get();
  a.residual = given[3].get();
  a.log_scale = given[4].get();
  a.B = B, a.K = K, a.c = c, a.h = h, a.w = w, a.rows = rows, a.columns = columns;
  a.floor = 1e-6f;
  a.threads = threads;
  a.labels = labels.get();
  refined_labels(a);
  const auto source = [](int64_t i, int64_t in, int64_t out) {
    const double x = (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5;
    return std::min(std::max(x, 0.0), static_cast<double>(in - 1));
  };
  const auto upsampled = [&](const float* map, double y, double x) {
    const int64_t i = static_cast<int64_t>(y), j = static_cast<int64_t>(x), i1 = std::min(i + 1, h - 1),
                  j1 = std::min(j + 1, w - 1);
    const double v = y - static_cast<double>(i), u = x - static_cast<double>(j);
    return (1 - v) * ((1 - u) * map[i * w + j] + u * map[i * w + j1]) +
           v * ((1 - u) * map[i1 * w + j] + u * map[i1 * w + j1]);
  };
  std::vector<double> seen(static_cast<size_t>(2 * c)), scores(static_cast<size_t>(K));
  for (int64_t q = 0; q < B * rows * columns; ++q) {
    const int64_t b = q / (rows * columns), row = q / columns % rows, column = q % columns;
    const double y = source(row, h, rows), x = source(column, w, columns);
    for (int64_t i = 0; i < c; ++i) {
      seen[static_cast<size_t>(i)] = a.colour[((b * c + i) * rows + row) * columns + column];
      seen[static_cast<size_t>(c + i)] = upsampled(a.around + (b * c + i) * h * w, y, x);
    }
    double top = -1e300;
    for (int64_t k = 0; k < K; ++k) {
      double score = std::log(std::max(upsampled(a.prior + (b * K + k) * h * w, y, x), 1e-6)) + a.log_scale[k];
      for (int64_t i = 0; i < c; ++i) {
        const float* weights = a.residual + (k * c + i) * (2 * c + 1);
        double r = weights[2 * c];
        for (int64_t j = 0; j < 2 * c; ++j) r += weights[j] * seen[static_cast<size_t>(j)];
        score -= r * r / 2;
      }
      scores[static_cast<size_t>(k)] = score;
      top = std::max(top, score);
    }
    check(labels[q] < K, "label below K", labels[q]);
    check(scores[labels[q]] > top - 1e-3, "score of the label", scores[labels[q]], top);
  }
}

static void test_threads() {
  context = "threads";
  for (int round = 0; round < 50; ++round)
    for (int threads : {1, 2, 3, 5}) {
      std::vector<int> done(static_cast<size_t>(threads), 0);
      auto body = [&](int t) { ++done[static_cast<size_t>(t)]; };
      parallel_for(threads, body);
      for (int n : done) check(n == 1, "every part runs once", n, 1);
    }
  // Callers of several threads at once.
  std::vector<std::thread> callers;
  std::vector<long> sums(4, 0);
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&sums, c] {
      for (int round = 0; round < 50; ++round) {
        long parts[3] = {0, 0, 0};
        auto body = [&](int t) { parts[t] = t + 1; };
        parallel_for(3, body);
        sums[static_cast<size_t>(c)] += parts[0] + parts[1] + parts[2];
      }
    });
  for (std::thread& t : callers) t.join();
  for (long s : sums) check(s == 300, "callers beside each other", static_cast<double>(s), 300);
}

static void test_fork() {
  context = "fork";
  const pid_t child = fork();
  if (child == 0) {
    int parts[3] = {0, 0, 0};
    auto body = [&](int t) { parts[t] = 1; };
    parallel_for(3, body);
    _exit(parts[0] + parts[1] + parts[2] == 3 ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  check(status == 0, "a forked child has threads of its own", status);
}

int main(int argc, char** argv) {
  const bool only_threads = argc > 1 && !std::strcmp(argv[1], "threads");
  test_threads();
  if (!only_threads) test_fork();  // the thread sanitizer does not follow a fork of threads
  const Problem problems[] = {
      {4, 5, 3, 3, 5, 0, true, false},    {3, 17, 7, 8, 8, 0, true, true},   {5, 33, 15, 9, 15, 1, true, true},
      {4, 66, 9, 5, 13, 2, true, false},  {3, 16, 2, 1, 1, 1, true, false},  {4, 12, 27, 8, 16, 0, true, true},
      {6, 20, 11, 4, 16, 0, true, false}, {2, 7, 5, 16, 9, 0, false, false}, {10, 18, 3, 5, 13, 1, true, true}};
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx}) {
    if (!set_isa(isa)) continue;
    for (const Problem& p : problems) {
      if (only_threads && p.C > 12) continue;
      for (int threads : {1, 3}) {
        if (only_threads && threads == 1) continue;
        context = std::string(isa_name(isa)) + " B " + std::to_string(p.B) + " C " + std::to_string(p.C) + " K " +
                  std::to_string(p.K) + " threads " + std::to_string(threads);
        std::set<int64_t> partners{1, p.B - 1};
        if (p.B > 2) partners.insert(2);
        for (int64_t n : partners)
          for (double balance : {0.0, 0.7})
            for (Negatives negatives : {Negatives::same_position, Negatives::reassigned}) {
              test_loss<double>(p, {1.3, Estimator::jsd, negatives, n, balance}, threads);
              test_loss<float>(p, {1.3, Estimator::jsd, negatives, n, balance}, threads);
            }
        for (int64_t n : {int64_t{1}, p.B - 1}) {
          test_loss<double>(p, {0.8, Estimator::infonce, Negatives::same_position, n, 0.4}, threads);
          test_loss<float>(p, {0.8, Estimator::infonce, Negatives::same_position, n, 0.0}, threads);
        }
        test_similarity(p, threads);
        test_moments<float>(p, 15, threads);
        test_moments<double>(p, 70, threads);
        test_appearance(p.B, 1 + p.C % 4, p.h, p.w, p.layout == 0 && p.offset ? 3 : p.layout, p.C % 3, threads);
        test_segment(p, 4 * p.h, 4 * p.w, threads);
        test_segment(p, p.h + 1, 2 * p.w + 5, threads);
        test_segment(p, 2, 3, threads);
        test_refined_labels(p.B, p.K, 1 + p.C % 4, p.h, p.w, 4 * p.h, 4 * p.w, threads);
        test_refined_labels(p.B, p.K, 3, p.h, p.w, p.h + 1, 2 * p.w + 5, threads);
      }
    }
  }
  std::printf(failures ? "%d failed\n" : "all passed\n", failures);
  return failures != 0;
}
