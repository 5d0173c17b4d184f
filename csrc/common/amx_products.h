// The three products of a tile of positions in the registers of AMX. Features, the gradient by the
// scores and df are rounded to bfloat16, sums are float32. Global features are the sum of two
// bfloat16 numbers in the scores, which makes these as exact as float32.
#pragma once

#include "common/amx_tiles.h"
#include "common/bf16_vectors.h"
#include "common/rank_gradient.h"

namespace infoseg {
namespace INFOSEG_ISA {

#if defined(__AMX_BF16__)
INFOSEG_INLINE int64_t padded_depth(int64_t n) { return (n + kTileDepth - 1) / kTileDepth * kTileDepth; }

// What 16 numbers lack after they were rounded to bfloat16. An infinite number lacks nothing.
INFOSEG_INLINE __m512 rest_of(__m512 x) {
  const __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
  const __m512 rest = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(_mm512_sub_ps(rest, rest), _mm512_setzero_ps(), _CMP_EQ_OQ), rest);
}

// The numbers first .. first + 15 of a row of n, and zeros after its end.
INFOSEG_INLINE __m512 load_row(const float* row, int64_t first, int64_t n) {
  const int64_t left = n - first;
  return _mm512_maskz_loadu_ps(left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0, row + first);
}

struct AmxProducts {
  const GlobalFeatures<float>& G;
  int64_t depth, rank;          // channels and candidates, padded to whole registers
  Buffer<uint16_t> for_scores;  // [B + n][K][2][depth]: rounded global features, then their rests
  Buffer<float> offsets;        // [B + n][K][16], equal numbers
  Buffer<uint16_t> for_df;      // [B][C][rank]

  AmxProducts(const GlobalFeatures<float>& G, int64_t candidates, bool scores_wanted, bool df_wanted)
      : G(G),
        depth(padded_depth(G.C)),
        rank(padded_depth(candidates)),
        for_scores(scores_wanted ? (G.B + G.partners) * G.K * 2 * depth : 0),
        offsets(scores_wanted && G.has_offset ? (G.B + G.partners) * G.K * kTileRows : 0),
        for_df(df_wanted ? G.B * G.C * rank : 0) {
    for (int64_t r = 0; scores_wanted && r < (G.B + G.partners) * G.K; ++r) {
      uint16_t* to = for_scores + r * 2 * depth;
      for (int64_t c = 0; c < depth; c += 32) {
        const __m512 low = load_row(G.rows + r * G.C, c, G.C), high = load_row(G.rows + r * G.C, c + 16, G.C);
        _mm512_storeu_si512(to + c, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(to + depth + c, (__m512i)_mm512_cvtne2ps_pbh(rest_of(high), rest_of(low)));
      }
      for (int64_t i = 0; G.has_offset && i < kTileRows; ++i) offsets[r * kTileRows + i] = G.offsets[r];
    }
    if (!df_wanted) return;
    const int64_t columns = (G.C + 15) / 16 * 16;
    const Buffer<float> pairs(rank / 2 * columns);  // of candidates, [rank / 2, columns]
    for (int64_t b = 0; b < G.B; ++b) {
      const float* from = G.rows + b * G.K * G.C;
      for (int64_t r = 0; r < rank; r += 2)
        for (int64_t c = 0; c < columns; c += 16)
          store_pairs(pairs + r / 2 * columns + c, load_row(from + r * G.C, c, r < candidates ? G.C : 0),
                      load_row(from + (r + 1) * G.C, c, r + 1 < candidates ? G.C : 0));
      transpose<float>(reinterpret_cast<float*>(for_df + b * G.C * rank), rank / 2, pairs, columns, G.C, rank / 2);
    }
  }

  // Whether a tile can be multiplied as it lies in memory: along positions or along channels.
  static bool take(const FeatureTiles<float>& f, int64_t tile) {
    const FeatureMap& m = f.map;
    return m.dtype == DType::bf16 && f.flat && f.size(tile) == kTile && m.C >= kTileRows && m.C % 2 == 0 &&
           ((m.stride_w == 1 && m.stride_c % 2 == 0) || (m.stride_c == 1 && m.stride_w % 2 == 0));
  }

  // Numbers of scratch for the coefficients of a tile.
  static int64_t scratch_size(int64_t candidates) { return padded_depth(candidates) / 2 * kTile; }

  // The features of a tile in pairs of channels: [depth / 2, kTile].
  void read(const FeatureTiles<float>& f, int64_t b, int64_t tile, float* to) const {
    const uint16_t* from = at(f, b, tile);
    const int64_t pairs = f.map.C / 2;
    if (f.map.stride_w == 1)
      for (int64_t i = 0; i < pairs; ++i)
        for (int64_t t = 0; t < kTile; t += 32)
          interleave(to + i * kTile + t, _mm512_loadu_si512(from + 2 * i * f.map.stride_c + t),
                     _mm512_loadu_si512(from + (2 * i + 1) * f.map.stride_c + t));
    else
      transpose<float>(to, kTile, reinterpret_cast<const float*>(from), f.map.stride_w / 2, pairs, kTile);
    for (int64_t i = pairs * kTile; i < depth / 2 * kTile; i += 16) _mm512_storeu_ps(to + i, _mm512_setzero_ps());
  }

  // As GlobalFeatures::scores, for a tile from read().
  void scores(int64_t c, int64_t images, const float* f, float* out, NextTile& next) const {
    const int64_t steps = depth / kTileDepth;
    tile_product(images * G.K, kTile, {{for_scores + c * G.K * 2 * depth, 2 * depth}, {f, kTile}, 2 * steps, steps},
                 {G.has_offset ? offsets + c * G.K * kTileRows : nullptr, 0}, {out, kTile}, next);
  }

  // Writes df of a tile from the coefficients [count, kTile]. `scratch` has scratch_size() numbers.
  // `block` has kTile rows of kTile numbers.
  void write_df(const FeatureTiles<float>& df, int64_t b, int64_t tile, const float* coefficients, int64_t count,
                float* scratch, float* block, NextTile& next) const {
    for (int64_t i = 0; i < rank / 2; ++i)
      for (int64_t t = 0; t < kTile; t += 16) {
        const float* low = coefficients + 2 * i * kTile + t;
        store_pairs(scratch + i * kTile + t, 2 * i < count ? _mm512_loadu_ps(low) : _mm512_setzero_ps(),
                    2 * i + 1 < count ? _mm512_loadu_ps(low + kTile) : _mm512_setzero_ps());
      }
    for (int64_t c = 0; c < df.map.C; c += kTile) {
      const int64_t n = df.map.C - c < kTile ? df.map.C - c : kTile, steps = rank / kTileDepth;
      tile_product(n, kTile, {{for_df + (b * G.C + c) * rank, rank}, {scratch, kTile}, steps, steps}, {},
                   {block, kTile}, next);
      uint16_t* to = at(df, b, tile) + c * df.map.stride_c;
      if (df.map.stride_w == 1) {
        for (int64_t r = 0; r < n; ++r)
          for (int64_t t = 0; t < kTile; t += 32)
            _mm512_storeu_si512(to + r * df.map.stride_c + t, halves_of(block + r * kTile + t));
        continue;
      }
      for (int64_t i = 0; i < n / 2; ++i)
        for (int64_t t = 0; t < kTile; t += 16)
          store_pairs(block + i * kTile + t, _mm512_loadu_ps(block + 2 * i * kTile + t),
                      _mm512_loadu_ps(block + (2 * i + 1) * kTile + t));
      transpose<float>(reinterpret_cast<float*>(to), df.map.stride_w / 2, block, kTile, kTile, n / 2);
    }
  }

  // Adds the share of a tile to dG, whose rows are `padded` numbers. `scratch` has scratch_size()
  // numbers, `transposed` has kTile rows of kChannels numbers.
  void add_dG(const FeatureTiles<float>& f, int64_t b, int64_t tile, int64_t padded, const float* coefficients,
              int64_t count, float* sums, float* scratch, float* transposed, NextTile& next) const {
    uint16_t* halves = reinterpret_cast<uint16_t*>(scratch);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t t = 0; t < kTile; t += 32)
        _mm512_storeu_si512(halves + r * kTile + t, halves_of(coefficients + r * kTile + t));
    for (int64_t c = 0; c < f.map.C; c += kChannels) {
      const int64_t n = f.map.C - c < kChannels ? f.map.C - c : kChannels;
      const int64_t columns = (n + kTileRows - 1) / kTileRows * kTileRows;
      const uint16_t* from = at(f, b, tile) + c * f.map.stride_c;
      if (f.map.stride_w == 1) {
        transpose<float>(transposed, kChannels, reinterpret_cast<const float*>(from), f.map.stride_c / 2, kTile / 2, n);
        for (int64_t t = 0; n < columns && t < kTile / 2; ++t)
          for (int64_t i = n; i < columns; ++i) transposed[t * kChannels + i] = 0;
      } else {
        for (int64_t t = 0; t < kTile / 2; ++t)
          for (int64_t i = 0; i < n; i += 32) {
            const __mmask32 inside = n - i < 32 ? (1u << (n - i)) - 1 : ~0u;
            interleave(transposed + t * kChannels + i,
                       _mm512_maskz_loadu_epi16(inside, from + 2 * t * f.map.stride_w + i),
                       _mm512_maskz_loadu_epi16(inside, from + (2 * t + 1) * f.map.stride_w + i));
          }
      }
      const int64_t steps = kTile / kTileDepth;
      tile_product(count, columns, {{halves, kTile}, {transposed, kChannels}, steps, steps}, {sums + c, padded},
                   {sums + c, padded}, next);
    }
  }

 private:
  static uint16_t* at(const FeatureTiles<float>& f, int64_t b, int64_t tile) {
    return static_cast<uint16_t*>(f.map.data) + f.offset(b, tile * kTile);
  }
};
#endif

}  // namespace INFOSEG_ISA
}  // namespace infoseg
