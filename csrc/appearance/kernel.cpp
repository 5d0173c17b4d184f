// local_appearance and appearance_statistics for one instruction set.
#include <cmath>

#include "appearance/appearance.h"
#include "common/denormals.h"
#include "common/global_features.h"
#include "common/products.h"
#include "common/vecmath.h"

namespace infoseg {
namespace INFOSEG_ISA {

// n rounded up to a whole number of vectors.
static inline int64_t padded_to_vectors(int64_t n) {
  constexpr int64_t W = Lanes<float>::W;
  return (n + W - 1) / W * W;
}

static inline void zero_row(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = 0;
}

// Replaces n numbers x by log(x + offset) scale, or NaN where x + offset is below 0.
static inline void log_row(float* x, int64_t n, float offset, float scale) {
  constexpr int W = Lanes<float>::W;
  const auto log = [&](const float* from) {
    const Vec<float> v = load<float>(from) + offset;
    return select<float>(v < Vec<float>{}, broadcast<float>(std::nanf("")), log_of_positive<float>(v)) * scale;
  };
  int64_t i = 0;
  for (; i + W <= n; i += W) store<float>(x + i, log(x + i));
  if (i == n) return;
  float rest[W];
  for (int j = 0; j < W; ++j) rest[j] = i + j < n ? x[i + j] : 1.0f;
  store<float>(rest, log(rest));
  for (int j = 0; i + j < n; ++j) x[i + j] = rest[j];
}

constexpr int64_t kFactors = 8;  // channels whose product is formed before its logarithm

// Means of `columns` cells of kCell numbers each. With kCell = 0, of `cell` numbers.
template <int64_t kCell>
static inline void pool_row(const float* __restrict from, float* __restrict to, int64_t columns, int64_t cell,
                            float share) {
  const int64_t n = kCell ? kCell : cell;
  for (int64_t x = 0; x < columns; ++x) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += from[x * n + i];
    to[x] = sum * share;
  }
}

// Computes one image row by row and keeps nothing of the image's size. The result for a transposed
// image is the transposed result, so "rows" are the direction in which pixels are consecutive in
// memory.
struct CellSums {
  const AppearanceArguments& a;
  const FeatureMap images;
  const bool transposed;
  const int64_t c, rows, columns, width, cell_rows, cell_columns, padded;
  // The structure tensor has three numbers: the trace, the difference of the diagonal, and twice
  // the other entry. `tensor` holds their sums over the rows of a cell, `cells` their means over
  // cells.
  float *pixels, *bright, *before, *logs, *colour, *tensor, *cells, *maps;

  CellSums(const AppearanceArguments& a, float* scratch)
      : a(a),
        images(in_rows(a.images)),
        transposed(images.stride_w != a.images.stride_w),
        c(images.C),
        rows(transposed ? a.columns : a.rows),
        columns(transposed ? a.rows : a.columns),
        width(images.w),
        cell_rows(images.h / rows),
        cell_columns(images.w / columns),
        padded(padded_to_vectors(width)),
        pixels(scratch),
        bright(pixels + padded),
        before(bright + padded),
        logs(before + padded),
        colour(logs + padded),
        tensor(colour + c * padded),
        cells(tensor + 3 * padded),
        maps(cells + 3 * a.rows * a.columns) {}

  static FeatureMap in_rows(FeatureMap m) {
    if (m.stride_h != 1 || m.stride_w == 1) return m;
    return {m.data, m.dtype, m.B, m.C, m.w, m.h, m.stride_b, m.stride_c, m.stride_w, m.stride_h};
  }

  static int64_t scratch_size(const AppearanceArguments& a) {
    return (a.images.C + 7) * padded_to_vectors(in_rows(a.images).w) + (a.images.C + 5) * a.rows * a.columns;
  }

  void add_row(int64_t b, int64_t row) {
    for (int64_t i = 0; i < c; ++i) {
      const float* from =
          static_cast<const float*>(images.data) + b * images.stride_b + i * images.stride_c + row * images.stride_h;
      if (images.stride_w != 1) {
        for (int64_t x = 0; x < width; ++x) pixels[x] = from[x * images.stride_w];
        from = pixels;
      }
      float* sum = colour + i * padded;
      for (int64_t x = 0; x < width; ++x) {
        sum[x] += from[x];
        // The mean of the logarithms of the channels is the logarithm of their product, divided by
        // their number. A product of more than kFactors channels could underflow.
        bright[x] = i % kFactors == 0 ? from[x] + a.dark : bright[x] * (from[x] + a.dark);
      }
      if (c > kFactors && (i % kFactors == kFactors - 1 || i == c - 1)) {
        log_row(bright, width, 0, 1);
        for (int64_t x = 0; x < width; ++x) logs[x] = i < kFactors ? bright[x] : logs[x] + bright[x];
      }
    }
    const float share = 1 / static_cast<float>(c);
    if (c > kFactors)
      for (int64_t x = 0; x < width; ++x) bright[x] = logs[x] * share;
    else
      log_row(bright, width, 0, share);
  }

  void pool(const float* from, float* to, float share) const {
    if (cell_columns == 4)
      pool_row<4>(from, to, columns, 4, share);
    else
      pool_row<0>(from, to, columns, cell_columns, share);
  }

  // Differences along both diagonals of each 2 x 2 pixels of the rows `before` and `bright`.
  void add_steps() {
    float *trace = tensor, *difference = tensor + padded, *twice_uv = tensor + 2 * padded;
    for (int64_t x = 0; x + 1 < width; ++x) {
      const float u = bright[x + 1] - before[x], v = before[x + 1] - bright[x];
      trace[x] += u * u + v * v;
      difference[x] += u * u - v * v;
      twice_uv[x] += 2 * u * v;
    }
  }

  void finish_cells(int64_t row, float share) {
    for (int64_t i = 0; i < 3; ++i) pool(tensor + i * padded, cells + (i * rows + row) * columns, share);
    zero_row(tensor, 3 * padded);
  }

  // The roughness and the coherence from the means of the tensor over 3 x 3 cells.
  void write_texture(float* rough, float* coherence) const {
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < columns; ++x) {
        const int64_t left = x > 0 ? x - 1 : 0, right = x + 1 < columns ? x + 1 : x;
        float mean[3];
        for (int64_t t = 0; t < 3; ++t) {
          float sum = 0;
          for (int64_t i = y - 1; i <= y + 1; ++i) {
            const float* line = cells + (t * rows + (i < 0 ? 0 : i < rows ? i : rows - 1)) * columns;
            sum += line[left] + line[x] + line[right];
          }
          mean[t] = sum / 9;
        }
        rough[y * columns + x] = mean[0];
        coherence[y * columns + x] = std::sqrt(mean[1] * mean[1] + mean[2] * mean[2]) / (mean[0] + a.flat);
      }
    log_row(rough, rows * columns, a.flat, 1);
  }

  void image(int64_t b) {
    const int64_t P = rows * columns;
    const float share = 1 / static_cast<float>(cell_rows * cell_columns);
    float* const result = a.out + b * (c + 2) * P;
    float* const out = transposed ? maps : result;
    zero_row(tensor, 3 * padded);
    for (int64_t row = 0; row < images.h; ++row) {
      const int64_t cell = row / cell_rows;
      if (row % cell_rows == 0) zero_row(colour, c * padded);
      add_row(b, row);
      if (row > 0) add_steps();
      if (row > 0 && row % cell_rows == 0) finish_cells(cell - 1, share);
      if (row % cell_rows == cell_rows - 1)
        for (int64_t i = 0; i < c; ++i) pool(colour + i * padded, out + i * P + cell * columns, share);
      float* const above = before;
      before = bright;
      bright = above;
    }
    finish_cells(rows - 1, share);
    log_row(out, c * P, a.dark, 1);
    write_texture(out + c * P, out + (c + 1) * P);
    if (transposed)
      for (int64_t i = 0; i < c + 2; ++i) transpose<float>(result + i * P, rows, maps + i * P, columns, columns, rows);
  }
};

void local_appearance(const AppearanceArguments& a) {
  const int64_t size = CellSums::scratch_size(a);
  const Buffer<float> scratch(a.threads * size);
  auto body = [&](int t) {
    CellSums sums(a, scratch + t * size);
    const Range part = share(a.images.B, a.threads, t);
    for (int64_t b = part.begin; b < part.end; ++b) sums.image(b);
  };
  parallel_for_floats(a.threads, body);
}

// The adjoint of the mean over 2 radius + 1 positions in each direction that repeats the border,
// for planes [h, w]: every number is added to its neighbours, and to the border for neighbours
// beyond it.
struct AdjointMean {
  const int64_t h, w, r, pitch;
  float *rows, *wide, *tall;

  AdjointMean(const StatisticsArguments& a, float* scratch)
      : h(a.h),
        w(a.w),
        r(a.radius),
        pitch(w + 2 * r),
        rows(scratch),
        wide(rows + 2 * r + h * pitch),
        tall(wide + h * pitch) {
    zero_row(rows, 2 * r + h * pitch);
  }

  static int64_t scratch_size(const StatisticsArguments& a) {
    const int64_t pitch = a.w + 2 * a.radius;
    return 2 * a.radius + (3 * a.h + 2 * a.radius) * pitch;
  }

  // The place for row y of the plane. 2 r zeros separate the rows, so one loop sums over all rows.
  float* row(int64_t y) const { return rows + 2 * r + y * pitch; }

  void write(float* out) const {
    const int64_t n = h * pitch;
    for (int64_t i = 0; i < n; ++i) wide[i] = rows[i];
    for (int64_t o = 1; o <= 2 * r; ++o)
      for (int64_t i = 0; i < n; ++i) wide[i] += rows[i + o];
    for (int64_t y = 0; y < h; ++y)
      for (int64_t o = 0; o < r; ++o) {
        wide[y * pitch + r] += wide[y * pitch + o];
        wide[y * pitch + r + w - 1] += wide[y * pitch + r + w + o];
      }
    zero_row(tall, n + 2 * r * pitch);
    for (int64_t o = 0; o <= 2 * r; ++o)
      for (int64_t i = 0; i < n; ++i) tall[o * pitch + i] += wide[i];
    for (int64_t o = 0; o < r; ++o)
      for (int64_t i = 0; i < pitch; ++i) {
        tall[r * pitch + i] += tall[o * pitch + i];
        tall[(r + h - 1) * pitch + i] += tall[(r + h + o) * pitch + i];
      }
    const float share = 1 / static_cast<float>((2 * r + 1) * (2 * r + 1));
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x) out[y * w + x] = tall[(r + y) * pitch + r + x] * share;
  }
};

void appearance_statistics(const StatisticsArguments& a) {
  const int64_t P = a.h * a.w, N = a.B * P, d = a.d, S = (d + 1) * (d + 2) / 2;
  // Means and variances in float64, by one thread: there are only d numbers at each position.
  double count = static_cast<double>(N);
  if (a.valid) {
    count = 0;
    for (int64_t i = 0; i < N; ++i) count += a.valid[i];
  }
  const Buffer<float> mean(d), scale(d);
  const auto sum_over = [&](int64_t i, auto of) {
    double total = 0;
    for (int64_t b = 0; b < a.B; ++b) {
      const float* y = a.y + (b * d + i) * P;
      const uint8_t* valid = a.valid ? a.valid + b * P : nullptr;
      // Eight sums side by side: one would wait for each addition.
      double sums[8] = {};
      for (int64_t p = 0; p + 8 <= P; p += 8)
        for (int64_t j = 0; j < 8; ++j) sums[j] += !valid || valid[p + j] ? of(y[p + j]) : 0.0;
      for (int64_t p = P / 8 * 8; p < P; ++p) sums[0] += !valid || valid[p] ? of(y[p]) : 0.0;
      for (double sum : sums) total += sum;
    }
    return total / count;
  };
  for (int64_t i = 0; i < d; ++i) {
    const double m = sum_over(i, [](float y) { return static_cast<double>(y); });
    const double variance = sum_over(i, [m](float y) { return (y - m) * (y - m); });
    mean[i] = static_cast<float>(m);
    const double deviation = std::sqrt(variance), least = 1.1754943508222875e-38;
    scale[i] = static_cast<float>(1 / (deviation < least ? least : deviation));
  }
  const float each = static_cast<float>(1 / count);
  const int64_t scratch_size = (d + 2) * P + AdjointMean::scratch_size(a);
  const Buffer<float> scratch(a.threads * scratch_size);
  auto body = [&](int t) {
    float* factors = scratch + t * scratch_size;
    float* shares = factors + (d + 1) * P;
    const AdjointMean mean_over(a, shares + P);
    const Range part = share(a.B, a.threads, t);
    for (int64_t b = part.begin; b < part.end; ++b) {
      for (int64_t p = 0; p < P; ++p) {
        shares[p] = !a.valid || a.valid[b * P + p] ? each : 0.0f * each;  // NaN when no position is valid
        factors[p] = 1;
      }
      const uint8_t* valid = a.valid ? a.valid + b * P : nullptr;
      for (int64_t i = 0; i < d; ++i)
        for (int64_t p = 0; p < P; ++p) {
          // Invalid positions may hold NaN, or be far from positions that all are equal.
          const float y = (a.y[(b * d + i) * P + p] - mean[i]) * scale[i];
          factors[(i + 1) * P + p] = !valid || valid[p] ? y : 0.0f;
        }
      float* out = a.out + b * S * P;
      for (int64_t i = 0; i <= d; ++i)
        for (int64_t j = i; j <= d; ++j, out += P) {
          const float *x = factors + i * P, *y = factors + j * P;
          if (a.radius == 0) {
            for (int64_t p = 0; p < P; ++p) out[p] = x[p] * y[p] * shares[p];
            continue;
          }
          for (int64_t v = 0; v < a.h; ++v) {
            float* row = mean_over.row(v);
            for (int64_t u = 0, p = v * a.w; u < a.w; ++u, ++p) row[u] = x[p] * y[p] * shares[p];
          }
          mean_over.write(out);
        }
    }
  };
  parallel_for_floats(a.threads, body);
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
