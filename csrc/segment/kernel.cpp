// segment and segment_and_count for one instruction set.
#include "common/feature_tile.h"
#include "segment/segment.h"
#include "common/softmax.h"
#include "common/denormals.h"
#include "common/upsampling.h"

namespace infoseg {
namespace INFOSEG_ISA {

template <class A>
static int64_t segment_with(const SegmentArguments& a) {
  constexpr int W = Lanes<A>::W;
  const FeatureTiles<A> f(a.features);
  const int64_t B = a.features.B, C = a.features.C, h = a.features.h, w = a.features.w, K = a.K;
  const A tau = static_cast<A>(a.temperature);
  const GlobalFeatures<A> G(static_cast<const A*>(a.G), static_cast<const A*>(a.g0), B, K, C, 0);
  const Columns<A> columns(w, a.columns);

  // A slab is a range of output rows with the feature rows that it needs. Slabs fit in the cache,
  // and there are enough for the threads.
  constexpr int64_t kSlabBytes = 256 << 10;
  int64_t slabs = (K * h * w * static_cast<int64_t>(sizeof(A)) + kSlabBytes - 1) / kSlabBytes;
  if (B == 0) return -1;
  if (slabs * B < 4 * a.threads && a.threads > 1) slabs = (4 * a.threads + B - 1) / B;
  if (slabs > h) slabs = h;
  if (slabs > a.rows) slabs = a.rows;
  int64_t slab_tiles = 0;
  struct Slab {
    int64_t row, rows_end, tile, tiles_end;
  };
  const auto slab_of = [&](int64_t s) {
    Slab slab;
    slab.row = a.rows * s / slabs;
    slab.rows_end = a.rows * (s + 1) / slabs;
    slab.tile = source_of<A>(slab.row, h, a.rows).low * w / kTile;
    slab.tiles_end = ((source_of<A>(slab.rows_end - 1, h, a.rows).high + 1) * w + kTile - 1) / kTile;
    return slab;
  };
  for (int64_t s = 0; s < slabs; ++s) {
    const Slab slab = slab_of(s);
    if (slab.tiles_end - slab.tile > slab_tiles) slab_tiles = slab.tiles_end - slab.tile;
  }
  const int64_t stride = slab_tiles * kTile + W, row_stride = (w + W - 1) / W * W + 2 * W;
  const int64_t scratch_size = C * kTile + K * stride + K * row_stride + K * W;
  const Buffer<A> scratch(a.threads * scratch_size);
  const int64_t row_bytes = (a.columns + 63) / 64 * 64;
  const Buffer<uint8_t> label_rows(a.labels ? 0 : a.threads * row_bytes);

  // Two more columns: ignored targets, and targets out of range.
  const int64_t cells = K * (a.num_classes + 2);
  const Buffer<int64_t> counts(a.counts ? 2 * a.threads * cells : 0);
  int32_t column_of[256];
  if (a.counts) {
    for (int64_t i = 0; i < 2 * a.threads * cells; ++i) counts[i] = 0;
    for (int v = 0; v < 256; ++v)
      column_of[v] = static_cast<int32_t>(v == a.ignore_index ? a.num_classes
                                          : v < a.num_classes ? v
                                                              : a.num_classes + 1);
  }

  auto body = [&](int t) {
    A* copy = scratch + t * scratch_size;
    A* V = copy + C * kTile;
    A* row = V + K * stride;
    A* softmax = row + K * row_stride;
    int64_t* even = counts + 2 * t * cells;
    int64_t* odd = even + cells;
    for (int64_t i = 0; i < K * row_stride; ++i) row[i] = 0;  // the end of each row is read but not used
    const Range part = share(B * slabs, a.threads, t);
    for (int64_t u = part.begin; u < part.end; ++u) {
      const int64_t b = u / slabs;
      const Slab slab = slab_of(u % slabs);
      for (int64_t tile = slab.tile; tile < slab.tiles_end; ++tile) {
        const TileRows<A> rows = f.read(b, tile, copy);
        const int vectors = vectors_of<A>(f.size(tile));
        A* q = V + (tile - slab.tile) * kTile;
        NextTile next = tile + 1 < slab.tiles_end ? f.lines(b, tile + 1) : f.none();
        G.scores(b, 1, rows, vectors, q, stride, next, rows.data == copy ? nullptr : copy);
        if (a.logits) continue;
        for (int v = 0; v < vectors; ++v) {
          softmax_and_mean<A>(q + v * W, stride, K, tau, softmax);
          for (int64_t k = 0; k < K; ++k) store<A>(q + k * stride + v * W, load<A>(softmax + k * W));
        }
      }
      for (int64_t y = slab.row; y < slab.rows_end; ++y) {
        const Source<A> s = source_of<A>(y, h, a.rows);
        const A* low = V + (s.low * w - slab.tile * kTile);
        const A* high = V + (s.high * w - slab.tile * kTile);
        for (int64_t k = 0; k < K; ++k)
          for (int64_t x = 0; x < w; x += W)
            store<A>(row + k * row_stride + x,
                     load<A>(low + k * stride + x) * (A(1) - s.weight) + load<A>(high + k * stride + x) * s.weight);
        uint8_t* labels = a.labels ? a.labels + (b * a.rows + y) * a.columns : label_rows + t * row_bytes;
        for (int64_t g = 0; g < columns.groups; ++g) {
          const Vec<A> weight = load<A>(columns.weight + g * W);
          const int32_t *i = columns.low + g * W, *j = columns.high + g * W, span = columns.span[g];
          const A* from = row + columns.first[g];
          Vec<A> top{}, label{};
          for (int64_t k = 0; k < K; ++k) {
            Vec<A> x, y_;
            pick<A>(from + k * row_stride, i, j, span, x, y_);
            const Vec<A> value = x * (A(1) - weight) + y_ * weight;
            const auto higher = value > top;
            label = k == 0 ? label : select<A>(higher, broadcast<A>(static_cast<A>(k)), label);
            top = k == 0 ? value : select<A>(higher, value, top);
          }
          store_labels<A>(labels + g * W, label, a.columns - g * W);
        }
        if (a.counts) {
          const uint8_t* target = a.target + (b * a.rows + y) * a.columns;
          const int64_t width = a.num_classes + 2;
          // Two tables: in a run of one label, each addition to one table would wait for the one
          // before.
          int64_t x = 0;
          for (; x + 1 < a.columns; x += 2) {
            ++even[labels[x] * width + column_of[target[x]]];
            ++odd[labels[x + 1] * width + column_of[target[x + 1]]];
          }
          if (x < a.columns) ++even[labels[x] * width + column_of[target[x]]];
        }
      }
    }
  };
  parallel_for_floats(a.threads, body);

  if (!a.counts) return -1;
  int64_t out_of_range = 0;
  for (int t = 0; t < 2 * a.threads; ++t)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t* from = counts + t * cells + k * (a.num_classes + 2);
      for (int64_t i = 0; i < a.num_classes; ++i) a.counts[k * a.num_classes + i] += from[i];
      out_of_range += from[a.num_classes + 1];
    }
  if (out_of_range)
    for (int64_t i = 0; i < B * a.rows * a.columns; ++i)
      if (column_of[a.target[i]] == a.num_classes + 1) return i;
  return -1;
}

int64_t segment(const SegmentArguments& a) {
  return by_accumulation(a.features.dtype, [&](auto zero) { return segment_with<decltype(zero)>(a); });
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
