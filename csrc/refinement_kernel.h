// Body of refinement.h for one instruction set.
#pragma once

#include "buffer.h"
#include "denormals.h"
#include "refinement.h"
#include "upsampling.h"
#include "vecmath.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Labels of W pixels. `from` are the prior of K classes and the surroundings, of the output's row and the input's columns,
// `stride` apart, from which `at` picks; y the colours, W apart. `kColours` is c, or 0 for any, when `scratch` has room
// for 2 c vectors.
template <int kColours, class Pick>
INFOSEG_INLINE Vec<float> labels_of(const float* from, int64_t stride, const Pick& at, const float* y, float* scratch,
                                    const RefinementArguments& a) {
  constexpr int W = Lanes<float>::W;
  const int64_t c = kColours ? kColours : a.c;
  Vec<float> seen[kColours ? 2 * kColours : 1];
  for (int64_t i = 0; i < c; ++i) {
    const Vec<float> s = at(from + (a.K + i) * stride);
    if constexpr (kColours) {
      seen[i] = load<float>(y + i * W);
      seen[c + i] = s;
    } else {
      store<float>(scratch + i * W, load<float>(y + i * W));
      store<float>(scratch + (c + i) * W, s);
    }
  }
  Vec<float> top{}, label{};
  const float* weights = a.residual;
  for (int64_t k = 0; k < a.K; ++k) {
    Vec<float> squares{};
    for (int64_t i = 0; i < c; ++i, weights += 2 * c + 1) {
      Vec<float> r = broadcast<float>(weights[2 * c]);
      for (int64_t j = 0; j < 2 * c; ++j) {
        if constexpr (kColours) r += seen[j] * weights[j];
        else r += load<float>(scratch + j * W) * weights[j];
      }
      squares += r * r;
    }
    const Vec<float> prior = greater_of<float>(at(from + k * stride), broadcast<float>(a.floor));
    const Vec<float> score = log_of_positive<float>(prior) + a.log_scale[k] - squares * 0.5f;
    const auto higher = score > top;
    label = k == 0 ? label : select<float>(higher, broadcast<float>(static_cast<float>(k)), label);
    top = k == 0 ? score : select<float>(higher, score, top);
  }
  return label;
}

template <int kColours>
static void refined(const RefinementArguments& a) {
  constexpr int W = Lanes<float>::W;
  const int64_t K = a.K, c = a.c, h = a.h, w = a.w;
  const Columns<float> columns(w, a.columns);
  // `pick` reads two vectors from a column on.
  const int64_t stride = (w + W - 1) / W * W + 2 * W;
  const int64_t scratch_size = (K + c) * stride + 3 * c * W;
  const Buffer<float> scratch(a.threads * scratch_size);

  auto body = [&](int t) {
    float* row = scratch + t * scratch_size;
    float* y = row + (K + c) * stride;
    for (int64_t i = 0; i < scratch_size; ++i) row[i] = 0;  // the end of each row is read, never used
    const Range part = share(a.B * a.rows, a.threads, t);
    for (int64_t u = part.begin; u < part.end; ++u) {
      const int64_t b = u / a.rows, line = u % a.rows;
      const Source<float> s = source_of<float>(line, h, a.rows);
      const auto between = [&](const float* maps, int64_t n, float* to) {
        for (int64_t k = 0; k < n; ++k) {
          const float *low = maps + (k * h + s.low) * w, *high = maps + (k * h + s.high) * w;
          for (int64_t x = 0; x < w; ++x) to[k * stride + x] = low[x] * (1 - s.weight) + high[x] * s.weight;
        }
      };
      between(a.prior + b * K * h * w, K, row);
      between(a.around + b * c * h * w, c, row + K * stride);
      uint8_t* labels = a.labels + u * a.columns;
      for (int64_t g = 0; g < columns.groups; ++g) {
        const Vec<float> weight = load<float>(columns.weight + g * W);
        const auto at = [&](const float* from) {
          Vec<float> low, high;
          pick<float>(from, columns.low + g * W, columns.high + g * W, columns.span[g], low, high);
          return low * (1 - weight) + high * weight;
        };
        const int64_t n = a.columns - g * W < W ? a.columns - g * W : W;
        for (int64_t i = 0; i < c; ++i)
          for (int64_t x = 0; x < n; ++x) y[i * W + x] = a.colour[((b * c + i) * a.rows + line) * a.columns + g * W + x];
        store_labels<float>(labels + g * W, labels_of<kColours>(row + columns.first[g], stride, at, y, y + c * W, a), n);
      }
    }
  };
  parallel_for_floats(a.threads, body);
}

static void refined_any(const RefinementArguments& a) {
  if (a.c == 1) return refined<1>(a);
  if (a.c == 3) return refined<3>(a);
  return refined<0>(a);
}

extern const RefinementKernels refinement_kernels;
const RefinementKernels refinement_kernels = {refined_any};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
