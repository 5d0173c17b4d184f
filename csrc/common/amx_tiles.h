// Products of bfloat16 matrices in the tile registers of AMX. A register holds up to 16 rows of 64
// bytes. One instruction adds the product of 16 x 32 and 32 x 16 bfloat16 to 16 x 16 float32:
//   C[m, n] += sum_k A[m, k] B[k, n]
// A lies in rows of 32 numbers. B lies in 16 rows of pairs: row i holds B[2 i, n] and B[2 i + 1, n]
// side by side for each n. Denormal numbers count as 0.
#pragma once

#include "common/products.h"

namespace infoseg {
namespace INFOSEG_ISA {

#if defined(__AMX_BF16__)
constexpr int kTileRows = 16;   // rows of a register, and columns of C
constexpr int kTileDepth = 32;  // numbers of a row of A, and of a column of B

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "the operand of ldtilecfg");

// The registers of a product: 0 to 3 hold C, of two blocks of rows by two of columns. 4 and 5 hold A
// of the two blocks of rows, 6 and 7 hold B of the two blocks of columns. The instructions are in
// assembly, since the intrinsics of GCC 12 do not tell the compiler that they read and write memory.
INFOSEG_INLINE void configure_tiles(int64_t first_rows, int64_t second_rows) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    const bool of_second = i == 2 || i == 3 || i == 5;
    config.row_bytes[i] = 64;
    config.rows[i] = static_cast<uint8_t>(i > 5 ? kTileRows : of_second && second_rows ? second_rows : first_rows);
  }
  asm volatile("ldtilecfg %0" ::"m"(config));
}
INFOSEG_INLINE void release_tiles() { asm volatile("tilerelease"); }

template <int kRegister>
INFOSEG_INLINE void load_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(kRegister) : "memory");
}
template <int kRegister>
INFOSEG_INLINE void store_tile(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(kRegister) : "memory");
}
template <int kRegister>
INFOSEG_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kRegister));
}
template <int kC, int kA, int kB>
INFOSEG_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

// bfloat16 numbers in rows, `stride` numbers apart.
struct HalfRows {
  const uint16_t* data;
  int64_t stride;
};

// The factors of a product of `depth` times kTileDepth steps. B lies in pairs, which are stored as
// floats. It is used again from its beginning after `period` times kTileDepth steps.
struct TileFactors {
  HalfRows A;
  TileRows<float> B;
  int64_t depth, period;
};

// The first value of C: zero without data, else rows, or with stride 0 a row of 16 equal numbers for
// each row.
using TileStart = Start<float>;

template <int kC>
INFOSEG_INLINE void start_tile(TileStart start, int64_t row, int64_t column) {
  if (!start.data)
    zero_tile<kC>();
  else if (start.stride)
    load_tile<kC>(start.data + row * start.stride + column, start.stride * 4);
  else
    load_tile<kC>(start.data + row * kTileRows, kTileRows * 4);
}

template <bool kTwoRows, bool kTwoColumns>
static inline void tile_block(const TileFactors& f, int64_t row, int64_t column, TileStart start, Out<float> out,
                              NextTile& next) {
  constexpr int64_t kLines = 4;  // pairs of cache lines prefetched in each step
  start_tile<0>(start, row, column);
  if constexpr (kTwoColumns) start_tile<1>(start, row, column + kTileRows);
  if constexpr (kTwoRows) start_tile<2>(start, row + kTileRows, column);
  if constexpr (kTwoRows && kTwoColumns) start_tile<3>(start, row + kTileRows, column + kTileRows);
  Ahead ahead = next.take(kLines * f.depth);
  int64_t in_B = 0;
  for (int64_t k = 0; k < f.depth; ++k) {
    const uint16_t* a = f.A.data + row * f.A.stride + k * kTileDepth;
    const float* b = f.B.data + in_B * kTileRows * f.B.stride + column;
    if (++in_B == f.period) in_B = 0;
    load_tile<6>(b, f.B.stride * 4);
    if constexpr (kTwoColumns) load_tile<7>(b + kTileRows, f.B.stride * 4);
    load_tile<4>(a, f.A.stride * 2);
    multiply_tiles<0, 4, 6>();
    if constexpr (kTwoColumns) multiply_tiles<1, 4, 7>();
    if constexpr (kTwoRows) {
      load_tile<5>(a + kTileRows * f.A.stride, f.A.stride * 2);
      multiply_tiles<2, 5, 6>();
      if constexpr (kTwoColumns) multiply_tiles<3, 5, 7>();
    }
    for (int64_t i = 0; i < kLines; ++i) {
      __builtin_prefetch(ahead.line, 0, 2);
      __builtin_prefetch(ahead.line + 64, 0, 2);
      ahead.line += ahead.stride;
    }
  }
  float* to = out.data + row * out.stride + column;
  store_tile<0>(to, out.stride * 4);
  if constexpr (kTwoColumns) store_tile<1>(to + kTileRows, out.stride * 4);
  if constexpr (kTwoRows) store_tile<2>(to + kTileRows * out.stride, out.stride * 4);
  if constexpr (kTwoRows && kTwoColumns) store_tile<3>(to + kTileRows * out.stride + kTileRows, out.stride * 4);
}

// out[m, n] for all rows m and a multiple of 16 columns n. The calling thread's registers are
// released at the end, so that the system has none to save.
INFOSEG_CALLED static void tile_product(int64_t rows, int64_t columns, const TileFactors& f, TileStart start,
                                        Out<float> out, NextTile& next) {
  int64_t first_before = 0, second_before = 0;
  for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
    const int64_t left = rows - row, first = left < kTileRows ? left : kTileRows;
    const int64_t second = left - first < kTileRows ? left - first : kTileRows;
    if (first != first_before || second != second_before) configure_tiles(first, second);
    first_before = first, second_before = second;
    int64_t column = 0;
    for (; column + 2 * kTileRows <= columns; column += 2 * kTileRows)
      (second ? tile_block<true, true> : tile_block<false, true>)(f, row, column, start, out, next);
    if (column < columns)
      (second ? tile_block<true, false> : tile_block<false, false>)(f, row, column, start, out, next);
  }
  release_tiles();
}
#endif

}  // namespace INFOSEG_ISA
}  // namespace infoseg
