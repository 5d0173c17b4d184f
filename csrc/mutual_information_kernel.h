// Body of mutual_information.h for one instruction set.
#pragma once

#include "bf16_pairs.h"
#include "mutual_information.h"
#include "softmax.h"

namespace infoseg {
namespace INFOSEG_ISA {

static_assert(kLossTile == kTile, "the kept coefficients are laid out in the tiles of the products");

template <class E, class A>
struct Loss {
  static constexpr int W = Lanes<A>::W;
  static constexpr int kGroups = kTile / W;  // runs of W positions in a tile
  using V_ = Vec<A>;

  const LossArguments& a;
  const LossSettings& set;
  const FeatureTiles<E, A> f;
  const int64_t B, C, K, P, n, R, tiles;
  const int threads;
  const bool grad, infonce, same_position;
  const A tau;
  int64_t M = 0;             // valid positions
  A share_pos, share_neg;    // 1 / M and 1 / (n M); 0 when nothing is valid
  Buffer<A> usage_gradient;  // [K], of the balance term by V

  // One thread's sums, apart from the next thread's cache lines.
  struct alignas(64) Sums {
    double positive, negative, apart[14];
  };
  Buffer<Sums> sums;
  Buffer<double> usage;  // [threads, K] sums of V over valid positions
  const int64_t scratch_size;
  Buffer<A> scratch;

  struct Scratch {
    A* copy;   // [C, kTile] features
    A* ok;     // [B, kTile]: 1 at valid positions, else 0
    A* V;      // [B or 1 + n, K, W]
    A* usage;  // [K, W]
  };

  explicit Loss(const LossArguments& a)
      : a(a),
        set(a.settings),
        f(a.features),
        B(a.features.B),
        C(a.features.C),
        K(a.K),
        P(f.P),
        n(set.partners),
        R((1 + n) * K),
        tiles(f.tiles),
        threads(a.threads),
        grad(a.wants_gradient),
        infonce(set.estimator == Estimator::infonce),
        same_position(!infonce && set.negatives == Negatives::same_position),
        tau(static_cast<A>(set.temperature)),
        usage_gradient(K),
        sums(threads),
        usage(threads * K),
        scratch_size(C * kTile + B * kTile + (same_position ? B * K : R) * W + K * W),
        scratch(threads * scratch_size) {
    for (int t = 0; t < threads; ++t) sums[t] = {};
    for (int64_t i = 0; i < threads * K; ++i) usage[i] = 0;
    for (int64_t k = 0; k < K; ++k) usage_gradient[k] = 0;
    if (a.valid)
      for (int64_t i = 0; i < B * P; ++i) M += a.valid[i] != 0;
    else
      M = B * P;
    share_pos = M ? static_cast<A>(1.0 / static_cast<double>(M)) : A(0);
    share_neg = M ? static_cast<A>(1.0 / (static_cast<double>(M) * static_cast<double>(n))) : A(0);
  }

  Scratch scratch_of(int t) const {
    A* p = scratch + t * scratch_size;
    return {p, p + C * kTile, p + C * kTile + B * kTile, p + scratch_size - K * W};
  }

  void mark_valid(int64_t b, int64_t tile, A* ok) const {
    const int64_t size = f.size(tile);
    const uint8_t* valid = a.valid ? a.valid + b * P + tile * kTile : nullptr;
    for (int64_t t = 0; t < kTile; ++t) ok[t] = t < size && (!valid || valid[t]) ? A(1) : A(0);
  }

  // All (1 + n) K scores of one image's tile; the tile that comes next is asked for meanwhile.
  void score(const GlobalFeatures<A>& G, const PairsOf<E, A>& pairs, int64_t b, int64_t tile, A* copy, A* q,
             const TileLines& next) const {
    if constexpr (kHasPairs<E>)
      if (pairs_in(f, tile)) {
        pairs.read(f, b, tile, copy);
        int64_t asked = 0;
        for (int64_t j = 0; j <= n; ++j) asked = pairs.scores((b + j) % B, copy, q + j * K * kTile, next, asked);
        return;
      }
    (void)pairs;
    TileRows<A> rows = f.read(b, tile, copy);
    const int vectors = vectors_of<A>(f.size(tile));
    int64_t asked = 0;
    for (int64_t j = 0; j <= n; ++j) {
      A* pack = rows.data == copy ? nullptr : copy;
      asked = G.scores((b + j) % B, rows.data, rows.stride, vectors, q + j * K * kTile, kTile, next, asked, pack);
      rows = {copy, kTile};
    }
    // Behind the last position nothing reads, but what is kept must not differ from run to run.
    for (int64_t t = vectors * W; t < kTile; ++t)
      for (int64_t r = 0; r < R; ++r) q[r * kTile + t] = 0;
  }

  TileLines after_image(int64_t b, int64_t tile) const {
    return b + 1 < B ? f.lines(b + 1, tile) : f.lines(tile + 1 < tiles ? 0 : B, tile + 1);
  }
  TileLines after_tile(int64_t b, int64_t tile) const {
    return tile + 1 < tiles ? f.lines(b, tile + 1) : f.lines(b + 1, 0);
  }

  // ---------------------------------------------------------------- the balance term

  void add_usage(const A* V, V_ ok, A* lanes) const {
    for (int64_t k = 0; k < K; ++k)
      store<A>(lanes + k * W, load<A>(lanes + k * W) + select<A>(ok > V_{}, load<A>(V + k * W), V_{}));
  }

  void clear_usage(A* lanes) const {
    for (int64_t i = 0; i < K * W; ++i) lanes[i] = 0;
  }

  void flush_usage(int t, const A* lanes) const {
    for (int64_t k = 0; k < K; ++k) usage[t * K + k] += sum_lanes<A>(load<A>(lanes + k * W));
  }

  double mean_usage(int64_t k) const {
    double sum = 0;
    for (int t = 0; t < threads; ++t) sum += usage[t * K + k];
    return sum / static_cast<double>(M);
  }

  void fill_usage_gradient() const {
    // As in the reference: the clamp keeps the slope of x log x finite where a class is not used at all.
    const double tiny = sizeof(A) == 8 ? 2.2250738585072014e-308 : 1.17549435e-38;
    if (!M) return;
    for (int64_t k = 0; k < K; ++k) {
      const double m = mean_usage(k), clamped = m < tiny ? tiny : m;
      usage_gradient[k] = static_cast<A>(set.balance * (__builtin_log(clamped) + (m >= tiny)) / static_cast<double>(M));
    }
  }

  // sum_k V_k usage_gradient_k
  V_ usage_mean(const A* V) const {
    V_ sum{};
    for (int64_t k = 0; k < K; ++k) sum += load<A>(V + k * W) * usage_gradient[k];
    return sum;
  }

  // ---------------------------------------------------------------- from scores to coefficients, in place

  // jsd, same_position: W positions of all images. q [B, R, kTile] from the first of the W positions.
  void same_position_group(A* q, const A* ok, A* V, A* lanes, Sums& total) const {
    const bool balance = set.balance != 0;
    V_ positive{}, negative{};
    for (int64_t b = 0; b < B; ++b) {
      A* z = q + b * R * kTile;
      A* V_b = V + b * K * W;
      const V_ valid = load<A>(ok + b * kTile);
      const V_ T = softmax_and_mean<A>(z, kTile, K, tau, V_b);
      const Softplus<A> sp = softplus<A>(T);
      positive += select<A>(valid > V_{}, sp.of_minus_x, V_{});
      if (lanes) add_usage(V_b, valid, lanes);
      if (!grad) continue;
      const V_ g = -sp.sigmoid_minus_x * share_pos;
      const V_ mean = balance ? usage_mean(V_b) : V_{};
      for (int64_t k = 0; k < K; ++k) {
        V_ x = g * (A(1) + (load<A>(z + k * kTile) - T) * tau);
        if (balance) x += (usage_gradient[k] - mean) * tau;
        store<A>(z + k * kTile, select<A>(valid > V_{}, x * load<A>(V_b + k * W), V_{}));
      }
    }
    for (int64_t b = 0; b < B; ++b) {
      const V_ valid = load<A>(ok + b * kTile);
      for (int64_t j = 1; j <= n; ++j) {
        const int64_t c = (b + j) % B;
        A* w = q + (b * R + j * K) * kTile;
        A* z_c = q + c * R * kTile;
        const A* V_c = V + c * K * W;
        V_ T{};
        for (int64_t k = 0; k < K; ++k) T += load<A>(V_c + k * W) * load<A>(w + k * kTile);
        const Softplus<A> sp = softplus<A>(T);
        negative += select<A>(valid > V_{}, sp.of_x, V_{});
        if (!grad) continue;
        const V_ g = sp.sigmoid_x * share_neg;
        for (int64_t k = 0; k < K; ++k) {
          const V_ by_w = select<A>(valid > V_{}, g * load<A>(V_c + k * W), V_{});
          const V_ by_z = select<A>(valid > V_{}, by_w * (load<A>(w + k * kTile) - T) * tau, V_{});
          store<A>(z_c + k * kTile, load<A>(z_c + k * kTile) + by_z);
          store<A>(w + k * kTile, by_w);
        }
      }
    }
    total.positive += sum_lanes<A>(positive);
    total.negative += sum_lanes<A>(negative);
  }

  // infonce, or jsd with reassigned negatives: W positions of one image. q [R, kTile], V [R, W].
  void own_position_group(A* q, V_ valid, A* V, A* lanes, Sums& total) const {
    const bool balance = set.balance != 0;
    const V_ T = softmax_and_mean<A>(q, kTile, K, tau, V);
    if (lanes) add_usage(V, valid, lanes);
    V_ slope = broadcast<A>(-share_pos);
    if (infonce) {
      V_ top = load<A>(q);
      for (int64_t r = 1; r < R; ++r) top = greater_of<A>(top, load<A>(q + r * kTile));
      V_ sum{};
      for (int64_t r = 0; r < R; ++r) {
        const V_ e = exp_nonpositive<A>(load<A>(q + r * kTile) - top);
        sum += e;
        // The own scores are needed once more below; their exponentials wait behind V.
        if (r >= K) store<A>(q + r * kTile, e);
      }
      total.positive += sum_lanes<A>(select<A>(valid > V_{}, (top - T) + log_from_one<A>(sum), V_{}));
      if (!grad) return;
      const V_ scale = share_pos / sum;
      for (int64_t r = K; r < R; ++r)
        store<A>(q + r * kTile, select<A>(valid > V_{}, load<A>(q + r * kTile) * scale, V_{}));
      const V_ mean = balance ? usage_mean(V) : V_{};
      for (int64_t k = 0; k < K; ++k) {
        const V_ z = load<A>(q + k * kTile);
        V_ x = slope * (A(1) + (z - T) * tau);
        if (balance) x += (usage_gradient[k] - mean) * tau;
        x = x * load<A>(V + k * W) + exp_nonpositive<A>(z - top) * scale;
        store<A>(q + k * kTile, select<A>(valid > V_{}, x, V_{}));
      }
      return;
    }
    const Softplus<A> sp = softplus<A>(T);
    total.positive += sum_lanes<A>(select<A>(valid > V_{}, sp.of_minus_x, V_{}));
    if (grad) {
      slope = -sp.sigmoid_minus_x * share_pos;
      const V_ mean = balance ? usage_mean(V) : V_{};
      for (int64_t k = 0; k < K; ++k) {
        V_ x = slope * (A(1) + (load<A>(q + k * kTile) - T) * tau);
        if (balance) x += (usage_gradient[k] - mean) * tau;
        store<A>(q + k * kTile, select<A>(valid > V_{}, x * load<A>(V + k * W), V_{}));
      }
    }
    V_ negative{};
    for (int64_t j = 1; j <= n; ++j) {
      A* w = q + j * K * kTile;
      const V_ T_neg = softmax_and_mean<A>(w, kTile, K, tau, V);
      const Softplus<A> sn = softplus<A>(T_neg);
      negative += select<A>(valid > V_{}, sn.of_x, V_{});
      if (!grad) continue;
      const V_ g = sn.sigmoid_x * share_neg;
      for (int64_t k = 0; k < K; ++k) {
        const V_ x = g * load<A>(V + k * W) * (A(1) + (load<A>(w + k * kTile) - T_neg) * tau);
        store<A>(w + k * kTile, select<A>(valid > V_{}, x, V_{}));
      }
    }
    total.negative += sum_lanes<A>(negative);
  }

  // ---------------------------------------------------------------- forward passes

  double value() const {
    double positive = 0, negative = 0;
    for (int t = 0; t < threads; ++t) {
      positive += sums[t].positive;
      negative += sums[t].negative;
    }
    const double count = static_cast<double>(M);
    double loss = positive / count;
    if (!infonce) loss += negative / (count * static_cast<double>(n));
    if (set.balance != 0) {
      double penalty = __builtin_log(static_cast<double>(K));
      for (int64_t k = 0; k < K; ++k) {
        const double m = mean_usage(k);
        penalty += m * __builtin_log(m < 1e-300 ? 1e-300 : m);
      }
      loss += set.balance * penalty;
    }
    return loss;
  }

  A* coefficients(int64_t tile, int64_t b) const {
    return static_cast<A*>(a.coefficients) + (tile * B + b) * R * kTile;
  }

  // Sums V over all positions, which the gradient of the balance term needs before it can be formed.
  void sum_usage_of_tile(int t, const A* q, const A* ok, int64_t tile, const Scratch& s) const {
    clear_usage(s.usage);
    for (int g = 0; g < vectors_of<A>(f.size(tile)); ++g) {
      softmax_and_mean<A>(q + g * W, kTile, K, tau, s.V);
      add_usage(s.V, load<A>(ok + g * W), s.usage);
    }
    flush_usage(t, s.usage);
  }

  // Scores of all images at a tile meet in the loss, so the tile of all images is the unit of work.
  double forward_same_position() {
    const GlobalFeatures<A> G(static_cast<const A*>(a.G), static_cast<const A*>(a.g0), B, K, C, n, true, false, A(1));
    const PairsOf<E, A> pairs(G, R, true, false);
    const bool balance = set.balance != 0;
    const bool two_passes = grad;
    const Buffer<A> blocks(grad ? 0 : threads * B * R * kTile);
    auto one_pass = [&](int t) {
      const Scratch s = scratch_of(t);
      const Range part = share(tiles, threads, t);
      for (int64_t tile = part.begin; tile < part.end; ++tile) {
        A* q = grad ? coefficients(tile, 0) : blocks + t * B * R * kTile;
        for (int64_t b = 0; b < B; ++b) {
          mark_valid(b, tile, s.ok + b * kTile);
          score(G, pairs, b, tile, s.copy, q + b * R * kTile, after_image(b, tile));
        }
        if (balance) clear_usage(s.usage);
        for (int g = 0; g < vectors_of<A>(f.size(tile)); ++g)
          same_position_group(q + g * W, s.ok + g * W, s.V, balance ? s.usage : nullptr, sums[t]);
        if (balance) flush_usage(t, s.usage);
      }
    };
    auto first_pass = [&](int t) {
      const Scratch s = scratch_of(t);
      const Range part = share(tiles * B, threads, t);
      for (int64_t u = part.begin; u < part.end; ++u) {
        const int64_t b = u / tiles, tile = u % tiles;
        score(G, pairs, b, tile, s.copy, coefficients(tile, b), after_tile(b, tile));
        if (!balance) continue;
        mark_valid(b, tile, s.ok);
        sum_usage_of_tile(t, coefficients(tile, b), s.ok, tile, s);
      }
    };
    auto second_pass = [&](int t) {
      const Scratch s = scratch_of(t);
      const Range part = share(tiles * kGroups, threads, t);
      int64_t marked = -1;
      for (int64_t u = part.begin; u < part.end; ++u) {
        const int64_t tile = u / kGroups, g = u % kGroups;
        if (g >= vectors_of<A>(f.size(tile))) continue;
        if (tile != marked)
          for (int64_t b = 0; b < B; ++b) mark_valid(b, tile, s.ok + b * kTile);
        marked = tile;
        same_position_group(coefficients(tile, 0) + g * W, s.ok + g * W, s.V, nullptr, sums[t]);
      }
    };
    if (two_passes) {
      parallel_for(threads, first_pass);
      if (balance) fill_usage_gradient();
      parallel_for(threads, second_pass);
    } else {
      parallel_for(threads, one_pass);
    }
    return value();
  }

  // infonce, or reassigned negatives: one image's tile is the unit, and keeping the gradients is possible.
  double forward_own_position(Keeps keeps) {
    const bool forms = grad && keeps == Keeps::gradients;
    const GlobalFeatures<A> G(static_cast<const A*>(a.G), static_cast<const A*>(a.g0), B, K, C, n, true, forms, A(1));
    const PairsOf<E, A> pairs(G, R, true, forms);
    const bool balance = set.balance != 0, kept = grad && !forms;
    const Buffer<A> blocks(kept ? 0 : threads * R * kTile);
    const int64_t tile_scratch_size = TileScratch<A>::size(C) + pair_scratch(R);
    const Buffer<A> tile_scratch(forms ? threads * tile_scratch_size : 0);
    GlobalGradient<A> dG(B, K, C, n, threads, forms && a.dG, forms && a.dg0);
    const FeatureTiles<E, A> df(a.df);
    // Images first, so that one image's global features and their sums stay in cache.
    auto usage_pass = [&](int t) {
      const Scratch s = scratch_of(t);
      const Range part = share(tiles * B, threads, t);
      for (int64_t u = part.begin; u < part.end; ++u) {
        const int64_t b = u / tiles, tile = u % tiles;
        A* q = kept ? coefficients(tile, b) : blocks + t * R * kTile;
        mark_valid(b, tile, s.ok);
        if (kept) {
          score(G, pairs, b, tile, s.copy, q, after_tile(b, tile));
        } else {
          const TileRows<A> rows = f.read(b, tile, s.copy);
          G.scores(b, rows.data, rows.stride, vectors_of<A>(f.size(tile)), q, kTile, after_tile(b, tile), 0);
        }
        sum_usage_of_tile(t, q, s.ok, tile, s);
      }
    };
    const bool first = grad && balance;
    auto pass = [&](int t) {
      const Scratch s = scratch_of(t);
      const Range part = share(tiles * B, threads, t);
      for (int64_t u = part.begin; u < part.end; ++u) {
        const int64_t b = u / tiles, tile = u % tiles;
        A* q = kept ? coefficients(tile, b) : blocks + t * R * kTile;
        mark_valid(b, tile, s.ok);
        if (!(kept && first)) score(G, pairs, b, tile, s.copy, q, after_tile(b, tile));
        if (balance && !first) clear_usage(s.usage);
        const int groups = vectors_of<A>(f.size(tile));
        for (int g = 0; g < groups; ++g)
          own_position_group(q + g * W, load<A>(s.ok + g * W), s.V, balance && !first ? s.usage : nullptr, sums[t]);
        if (balance && !first) flush_usage(t, s.usage);
        if (!forms) continue;
        const TileScratch<A> ts = TileScratch<A>::at(tile_scratch + t * tile_scratch_size, C);
        A* to = dG.of(t, b, 1 + n);
        if (a.dg0) add_dg0(q, R, groups, dG.offsets_of(t, b));
        if constexpr (kHasPairs<E>)
          if (pairs_in(f, tile) && (!a.df.data || pairs_in(df, tile))) {
            A* paired = tile_scratch + t * tile_scratch_size + TileScratch<A>::size(C);
            if (a.df.data) pairs.write_df(df, b, tile, q, R, paired, ts, f.lines(B, 0));
            if (a.dG) pairs.add_dG(f, b, tile, dG.padded, q, R, to, paired, ts);
            continue;
          }
        if (a.df.data) write_df(df, b, tile, q, G.rows + b * K * C, R, ts, f.lines(B, 0));
        if (a.dG) add_dG(f.read(b, tile, s.copy), f.size(tile), C, dG.padded, q, R, to, ts);
      }
    };
    if (first) {
      parallel_for(threads, usage_pass);
      fill_usage_gradient();
    }
    parallel_for(threads, pass);
    if (forms) dG.finish(static_cast<A*>(a.dG), static_cast<A*>(a.dg0), A(1));
    return value();
  }
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
