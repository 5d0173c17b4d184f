// refined_labels for one instruction set.
#include "common/buffer.h"
#include "common/denormals.h"
#include "common/softmax.h"
#include "common/upsampling.h"
#include "refined_labels/refined_labels.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Calls `use(k, score)` with the scores of W pixels for each class. `from` holds the prior of K
// classes and the surroundings at the output's row and the input's columns, `stride` apart; `at`
// interpolates between columns. y holds the colours, W apart. `kColours` is c, or 0 for any c: then
// `scratch` has room for 2 c vectors.
template <int kColours, class Pick, class Use>
INFOSEG_INLINE void scores_of(const float* from, int64_t stride, const Pick& at, const float* y, float* scratch,
                              const RefinedLabelsArguments& a, const Use& use) {
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
  const float* weights = a.residual;
  for (int64_t k = 0; k < a.K; ++k) {
    Vec<float> squares{};
    for (int64_t i = 0; i < c; ++i, weights += 2 * c + 1) {
      Vec<float> r = broadcast<float>(weights[2 * c]);
      for (int64_t j = 0; j < 2 * c; ++j) {
        if constexpr (kColours)
          r += seen[j] * weights[j];
        else
          r += load<float>(scratch + j * W) * weights[j];
      }
      squares += r * r;
    }
    const Vec<float> prior = greater_of<float>(at(from + k * stride), broadcast<float>(a.floor));
    use(k, log_of_positive<float>(prior) + a.log_scale[k] - squares * 0.5f);
  }
}

// The scores of the pixels of a row.
template <int kColours>
struct Rows {
  static constexpr int W = Lanes<float>::W;
  const RefinedLabelsArguments& a;
  const Columns<float> columns;
  // Rows are padded: `pick` reads two vectors from a column on.
  const int64_t stride, scratch_size;

  explicit Rows(const RefinedLabelsArguments& given)
      : a(given),
        columns(a.w, a.columns),
        stride((a.w + W - 1) / W * W + 2 * W),
        scratch_size((a.K + a.c) * stride + 3 * a.c * W) {}

  // Scores of one row, W pixels at a time: calls `use(k, score)` for every class, then `end(g, n)`,
  // where n of the pixels from g W on are inside the row. `scratch` has scratch_size numbers.
  template <class Use, class End>
  inline __attribute__((always_inline)) void scores(int64_t b, int64_t line, float* scratch, const Use& use,
                                                    const End& end) const {
    const int64_t K = a.K, c = a.c, h = a.h, w = a.w;
    float *row = scratch, *y = row + (K + c) * stride;
    const Source<float> s = source_of<float>(line, h, a.rows);
    const auto between = [&](const float* maps, int64_t n, float* to) {
      for (int64_t k = 0; k < n; ++k) {
        const float *low = maps + (k * h + s.low) * w, *high = maps + (k * h + s.high) * w;
        for (int64_t x = 0; x < w; ++x) to[k * stride + x] = low[x] * (1 - s.weight) + high[x] * s.weight;
      }
    };
    between(a.prior + b * K * h * w, K, row);
    between(a.around + b * c * h * w, c, row + K * stride);
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
      scores_of<kColours>(row + columns.first[g], stride, at, y, y + c * W, a, use);
      end(g, n);
    }
  }
};

template <int kColours>
static void labels_with(const RefinedLabelsArguments& a) {
  constexpr int W = Lanes<float>::W;
  const Rows<kColours> rows(a);
  const Buffer<float> scratch(a.threads * rows.scratch_size);
  auto body = [&](int t) {
    float* own = scratch + t * rows.scratch_size;
    for (int64_t i = 0; i < rows.scratch_size; ++i) own[i] = 0;  // the end of each row is read but not used
    const Range part = share(a.B * a.rows, a.threads, t);
    for (int64_t u = part.begin; u < part.end; ++u) {
      Vec<float> top{}, label{};
      rows.scores(
          u / a.rows, u % a.rows, own,
          [&](int64_t k, Vec<float> score) {
            const auto higher = score > top;
            label = k == 0 ? Vec<float>{} : select<float>(higher, broadcast<float>(static_cast<float>(k)), label);
            top = k == 0 ? score : select<float>(higher, score, top);
          },
          [&](int64_t g, int64_t n) { store_labels<float>(a.labels + u * a.columns + g * W, label, n); });
    }
  };
  parallel_for_floats(a.threads, body);
}

void refined_labels(const RefinedLabelsArguments& a) {
  if (a.c == 1) return labels_with<1>(a);
  if (a.c == 3) return labels_with<3>(a);
  return labels_with<0>(a);
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
