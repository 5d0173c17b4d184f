// The three products on pairs of bfloat16 (AVX512-BF16). One instruction multiplies and adds two
// numbers in each lane, so a product takes its steps in pairs. Sums are float32. Coefficients and
// global features are rounded to bfloat16.
#pragma once

#include "common/bf16_vectors.h"
#include "common/rank_gradient.h"

namespace infoseg {
namespace INFOSEG_ISA {

#if defined(__AVX512BF16__)
// A pair is stored as a float; only multiply_add uses its two numbers.
INFOSEG_INLINE float pair_of(float low, float high) {
  return float_of(narrow<bfloat16>(low).bits | static_cast<uint32_t>(narrow<bfloat16>(high).bits) << 16);
}

// Global features in pairs: of channels for the scores, of an image's candidates for df.
struct PairedGlobals {
  const GlobalFeatures<float>& G;
  int64_t steps, pairs;              // pairs of channels, pairs of candidates
  Buffer<float> for_scores, for_df;  // [B + n][K][steps], [B][pairs][C]

  PairedGlobals(const GlobalFeatures<float>& G, int64_t candidates, bool scores_wanted, bool df_wanted)
      : G(G),
        steps((G.C + 1) / 2),
        pairs((candidates + 1) / 2),
        for_scores(scores_wanted ? (G.B + G.partners) * G.K * steps : 0),
        for_df(df_wanted ? G.B * pairs * G.C : 0) {
    if (scores_wanted)
      for (int64_t r = 0; r < (G.B + G.partners) * G.K; ++r) {
        const float* from = G.rows + r * G.C;
        for (int64_t s = 0; s < steps; ++s)
          for_scores[r * steps + s] = pair_of(from[2 * s], 2 * s + 1 < G.C ? from[2 * s + 1] : 0.f);
      }
    if (df_wanted)
      for (int64_t b = 0; b < G.B; ++b)
        for (int64_t i = 0; i < pairs; ++i) {
          const float* low = G.rows + (b * G.K + 2 * i) * G.C;
          for (int64_t c = 0; c < G.C; ++c)
            for_df[(b * pairs + i) * G.C + c] = pair_of(low[c], 2 * i + 1 < candidates ? low[G.C + c] : 0.f);
        }
  }

  // Whether a tile can be multiplied as it lies in memory.
  static bool take(const FeatureTiles<float>& f, int64_t tile) {
    return f.map.dtype == DType::bf16 && f.flat && f.map.stride_w == 1 && f.map.stride_c % 2 == 0 &&
           f.size(tile) == kTile;
  }

  // Numbers of scratch for the coefficients of a tile.
  static int64_t scratch_size(int64_t candidates) { return (candidates + 1) / 2 * kTile; }

  // The features of a tile in pairs of channels: [steps, kTile].
  void read(const FeatureTiles<float>& f, int64_t b, int64_t tile, float* to) const {
    const uint16_t* from = static_cast<const uint16_t*>(f.map.data) + f.offset(b, tile * kTile);
    for (int64_t s = 0; s < steps; ++s)
      for (int half = 0; half < 2; ++half) {
        const __m512i low = _mm512_loadu_si512(from + 2 * s * f.map.stride_c + 32 * half);
        const __m512i high = 2 * s + 1 < f.map.C ? _mm512_loadu_si512(from + (2 * s + 1) * f.map.stride_c + 32 * half)
                                                 : _mm512_setzero_si512();
        interleave(to + s * kTile + 32 * half, low, high);
      }
  }

  // As GlobalFeatures::scores, for a tile from read().
  void scores(int64_t c, int64_t images, const float* f, float* out, NextTile& next) const {
    product<float, Left::rows, true>(images * G.K, kTile / 16, steps, {for_scores + c * G.K * steps, steps}, {f, kTile},
                                     {G.has_offset ? G.offsets + c * G.K : nullptr, 0}, {out, kTile}, next);
  }

  // Writes df of one tile. `scratch` is for the coefficients in pairs, [pairs, kTile]. `block` holds
  // kBlockRows rows of kTile numbers.
  void write_df(const FeatureTiles<float>& df, int64_t b, int64_t tile, const float* coefficients, int64_t count,
                float* scratch, float* block, NextTile& next) const {
    for (int64_t i = 0; i < pairs; ++i)
      for (int64_t t = 0; t < kTile; t += 16) {
        const float* low = coefficients + 2 * i * kTile + t;
        store_pairs(scratch + i * kTile + t, _mm512_loadu_ps(low),
                    2 * i + 1 < count ? _mm512_loadu_ps(low + kTile) : _mm512_setzero_ps());
      }
    const RowBlocks blocks = RowBlocks::of(df.map.C);
    for (int64_t i = 0; i < blocks.count; ++i) {
      const int64_t c = blocks.begin(i), n = blocks.begin(i + 1) - c;
      product<float, Left::columns, true>(n, kTile / 16, pairs, {for_df + b * pairs * G.C + c, G.C}, {scratch, kTile},
                                          {}, {block, kTile}, next);
      for (int64_t r = 0; r < n; ++r) {
        uint16_t* to = static_cast<uint16_t*>(df.map.data) + df.offset(b, tile * kTile) + (c + r) * df.map.stride_c;
        for (int64_t t = 0; t < kTile; t += 32) _mm512_storeu_si512(to + t, halves_of(block + r * kTile + t));
      }
    }
  }

  // Adds the share of one tile to dG, in pairs of positions, which is how a row of bfloat16
  // lies in memory.
  void add_dG(const FeatureTiles<float>& f, int64_t b, int64_t tile, int64_t padded, const float* coefficients,
              int64_t count, float* sums, float* scratch, float* transposed, NextTile& next) const {
    constexpr int kHalf = kTile / 2;
    for (int64_t r = 0; r < count; ++r)
      for (int64_t t = 0; t < kTile; t += 32)
        _mm512_storeu_si512(scratch + r * kHalf + t / 2, halves_of(coefficients + r * kTile + t));
    const float* from =
        reinterpret_cast<const float*>(static_cast<const uint16_t*>(f.map.data) + f.offset(b, tile * kTile));
    const int64_t C = f.map.C, stride = f.map.stride_c / 2;
    for (int64_t c = 0; c < C; c += kChannels) {
      const int64_t n = C - c < kChannels ? C - c : kChannels;
      const int vectors = vectors_of<float>(n);
      transpose<float>(transposed, kChannels, from + c * stride, stride, kHalf, n);
      if (n % 16)
        for (int64_t t = 0; t < kHalf; ++t)
          for (int64_t i = n; i < vectors * 16; ++i) transposed[t * kChannels + i] = 0;
      product<float, Left::rows, true>(count, vectors, kHalf, {scratch, kHalf}, {transposed, kChannels},
                                       {sums + c, padded}, {sums + c, padded}, next);
    }
  }
};
#endif

}  // namespace INFOSEG_ISA
}  // namespace infoseg
