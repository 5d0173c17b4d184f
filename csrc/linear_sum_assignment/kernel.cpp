// The solver of one assignment problem for one instruction set: shortest augmenting paths over
// vectors of columns.
//
// v are the prices of the columns. The distance of a row to column j on an alternating path is the
// sum of the reduced costs c[i][j] - u[i] - v[j] along the path. These are never negative, so
// Dijkstra's algorithm finds the shortest path to a free column. Matching along that path keeps the
// reduced costs of matched entries at 0 and all others at 0 or above, so the final matching is
// optimal. u is not stored: it is c - v at the column of a matched row. With fewer rows than
// columns, the prices of free columns stay 0, as optimality requires. With more rows, the caller
// transposes.

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <type_traits>

#include "linear_sum_assignment/problem.h"

namespace infoseg {
namespace INFOSEG_ISA {
namespace {

#if defined(__AVX512DQ__)
constexpr int kLanesBytes = 64;
#elif defined(__AVX2__)
constexpr int kLanesBytes = 32;
#else
constexpr int kLanesBytes = 16;
#endif

using std::int32_t;
using std::int64_t;
using std::uint64_t;

// One lane, for types without vectors.
template <class T>
struct Lanes {
  static constexpr int kCount = 1;
  using Vector = T;
  using Mask = bool;
  using Index = int64_t;
  static Vector load(const T* p) { return *p; }
  static void store(T* p, Vector x) { *p = x; }
  static Vector all(T x) { return x; }
  static Index all_index(int64_t x) { return x; }
  static Index first_index() { return 0; }
  static Vector min(Vector a, Vector b) { return b < a ? b : a; }
  static Vector max(Vector a, Vector b) { return b < a ? a : b; }
  static Vector smallest(Vector x) { return x; }
  static T first(Vector x) { return x; }
  static Vector choose_value(Mask m, Vector a, Vector b) { return m ? a : b; }
  static Mask less(Vector a, Vector b) { return a < b; }
  static Mask equal(Vector a, Vector b) { return a == b; }
  static Mask both(Mask a, Mask b) { return a && b; }
  static Mask only(int) { return true; }
  static bool every(Mask m) { return m; }
  static unsigned bits(Mask m) { return m; }
  static Index choose(Mask m, Index a, Index b) { return m ? a : b; }
  static void store_where(int64_t* p, Mask m, Index x) {
    if (m) *p = x;
  }
};

// A vector of lanes. Comparisons give vectors of all ones or zeros. With AVX-512 they give bits in
// a mask register, which the compiler does not generate from vectors by itself.
template <class T>
struct WideLanes {
  static constexpr int kCount = kLanesBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(kLanesBytes)));
  typedef T Loose __attribute__((vector_size(kLanesBytes), aligned(8), may_alias));
  typedef int64_t Index __attribute__((vector_size(kLanesBytes)));
  static_assert(sizeof(T) == 8);

  static Vector load(const T* p) { return *reinterpret_cast<const Loose*>(p); }
  static void store(T* p, Vector x) { *reinterpret_cast<Loose*>(p) = x; }
  static Vector all(T x) { return x - Vector{}; }
  static Index all_index(int64_t x) { return x - Index{}; }
  static Index first_index() {
    Index index;
    for (int lane = 0; lane < kCount; ++lane) index[lane] = lane;
    return index;
  }
  static Vector min(Vector a, Vector b) { return b < a ? b : a; }
  static Vector max(Vector a, Vector b) { return b < a ? a : b; }
  // Every lane becomes the smallest. (The masks of all ones cost nothing; without them GCC 12 gives
  // a false warning.)
  static Vector smallest(Vector x) {
#if defined(__AVX512DQ__)
    const auto raw = reinterpret_cast<__m512i>(x);
    x = min(x, reinterpret_cast<Vector>(_mm512_maskz_shuffle_i64x2(0xff, raw, raw, 0x4e)));
    const auto half = reinterpret_cast<__m512i>(x);
    x = min(x, reinterpret_cast<Vector>(_mm512_maskz_shuffle_i64x2(0xff, half, half, 0xb1)));
    const auto pair = reinterpret_cast<__m512i>(x);
    return min(x, reinterpret_cast<Vector>(_mm512_maskz_shuffle_epi32(0xffff, pair, _MM_PERM_BADC)));
#elif defined(__AVX2__)
    x = min(x, reinterpret_cast<Vector>(_mm256_permute4x64_epi64(reinterpret_cast<__m256i>(x), 0x4e)));
    return min(x, reinterpret_cast<Vector>(_mm256_permute4x64_epi64(reinterpret_cast<__m256i>(x), 0xb1)));
#else
    T best = x[0];
    for (int lane = 1; lane < kCount; ++lane) best = x[lane] < best ? x[lane] : best;
    return all(best);
#endif
  }
  static T first(Vector x) { return x[0]; }
#if defined(__AVX512DQ__)
  typedef __mmask8 Mask;
  static __m512i raw(Index x) { return reinterpret_cast<__m512i>(x); }
  static Mask less(Vector a, Vector b) {
    if constexpr (std::is_same<T, double>::value) {
      return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), _CMP_LT_OQ);
    } else {
      return _mm512_cmplt_epi64_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
    }
  }
  static Mask equal(Vector a, Vector b) {
    if constexpr (std::is_same<T, double>::value) {
      return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), _CMP_EQ_OQ);
    } else {
      return _mm512_cmpeq_epi64_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
    }
  }
  static Mask only(int lane) { return static_cast<Mask>(1 << lane); }
  static unsigned bits(Mask m) { return m; }
  static Index choose(Mask m, Index a, Index b) {
    return reinterpret_cast<Index>(_mm512_mask_blend_epi64(m, raw(b), raw(a)));
  }
  static Vector choose_value(Mask m, Vector a, Vector b) {
    return reinterpret_cast<Vector>(choose(m, reinterpret_cast<Index>(a), reinterpret_cast<Index>(b)));
  }
  static void store_where(int64_t* p, Mask m, Index x) { _mm512_mask_storeu_epi64(p, m, raw(x)); }
#else
  typedef Index Mask;
  static Mask less(Vector a, Vector b) { return a < b; }
  static Mask equal(Vector a, Vector b) { return a == b; }
  static Mask only(int lane) { return first_index() == all_index(lane); }
  static unsigned bits(Mask m) {
#if defined(__AVX2__)
    return _mm256_movemask_pd(reinterpret_cast<__m256d>(m));
#else
    unsigned bits = 0;
    for (int lane = 0; lane < kCount; ++lane) bits |= (m[lane] & 1) << lane;
    return bits;
#endif
  }
  static Index choose(Mask m, Index a, Index b) { return m ? a : b; }
  static Vector choose_value(Mask m, Vector a, Vector b) { return m ? a : b; }
  static void store_where(int64_t* p, Mask m, Index x) {
    Index* to = reinterpret_cast<Index*>(p);
    *to = m ? x : *to;
  }
#endif
  static Mask both(Mask a, Mask b) { return a & b; }
  static bool every(Mask m) { return bits(m) == (1u << kCount) - 1; }
};

template <>
struct Lanes<double> : WideLanes<double> {};
template <>
struct Lanes<int64_t> : WideLanes<int64_t> {};

template <class T>
struct Limits;
template <>
struct Limits<double> {
  static constexpr double kFar = __builtin_inf();
  static constexpr double kClosed = -__builtin_inf();
  static constexpr double kLarge = kLargeCost;
  static bool finite(double x) { return x < kFar; }
};
template <>
struct Limits<int64_t> {
  static constexpr int64_t kFar = INT64_MAX;
  static constexpr int64_t kClosed = -(int64_t{1} << 62);
  static constexpr int64_t kLarge = kFar;  // the caller chose a type in which no sum overflows
  static bool finite(int64_t) { return true; }
};
template <>
struct Limits<__int128> {
  static constexpr __int128 kFar = static_cast<__int128>(INT64_MAX) << 63;
  static constexpr __int128 kClosed = -(static_cast<__int128>(1) << 125);
  static constexpr __int128 kLarge = kFar;
  static bool finite(__int128) { return true; }
};

// The state of one problem with rows <= cols; `width` is cols rounded up to whole vectors.
template <class T>
struct Matching {
  int32_t rows, cols, width;
  const T** cost;           // [rows]; each row is readable up to width
  T* price;                 // [width] v; kClosed past cols and, during a search, for columns already reached
  T* distance;              // [width] from the searching row; kFar for columns already reached
  int64_t* parent;          // [width] the row before the column on its path
  int32_t* row_of;          // [width] matched row or -1
  int32_t* col_of;          // [rows] matched column or -1
  int32_t* free_rows;       // [rows]
  int32_t* reached;         // [rows] columns in the order in which they were reached
  T* reached_distance;      // [rows]
  T* reached_price;         // [rows]
  int64_t* reached_parent;  // [width] by column
};

// Sets the distances of the columns from the first row of a search. Returns the smallest in every
// lane.
template <class T>
typename Lanes<T>::Vector scan_first(const Matching<T>& m, int32_t row) {
  using L = Lanes<T>;
  const T* cost = m.cost[row];
  const auto parent = L::all_index(row);
  auto best = L::all(Limits<T>::kFar);
#pragma GCC unroll 4
  for (int32_t j = 0; j < m.width; j += L::kCount) {
    const auto length = L::load(cost + j) - L::load(m.price + j);
    L::store(m.distance + j, length);
    *reinterpret_cast<typename L::Index*>(m.parent + j) = parent;
    best = L::min(best, length);
  }
  return L::smallest(best);
}

// Shortens distances by paths through `row`, whose distance is `base`. Returns the smallest of all
// open columns.
template <class T>
typename Lanes<T>::Vector scan(const Matching<T>& m, int32_t row, T base) {
  using L = Lanes<T>;
  const T* cost = m.cost[row];
  const auto parent = L::all_index(row);
  const auto start = L::all(base);
  auto best = L::all(Limits<T>::kFar);
#pragma GCC unroll 4
  for (int32_t j = 0; j < m.width; j += L::kCount) {
    const auto length = L::load(cost + j) - L::load(m.price + j) + start;
    const auto old = L::load(m.distance + j);
    L::store_where(m.parent + j, L::less(length, old), parent);
    const auto now = L::min(old, length);
    L::store(m.distance + j, now);
    best = L::min(best, now);
  }
  return L::smallest(best);
}

// Closes the open columns at distance `level`. Returns the first free one, or -1 if all are
// matched. Stores whole vectors: after a store to one lane, the next scan's load of the vector
// would wait.
template <class T>
int32_t reach(const Matching<T>& m, typename Lanes<T>::Vector level, int32_t& num_reached) {
  using L = Lanes<T>;
  for (int32_t j = 0; j < m.width; j += L::kCount) {
    const auto distance = L::load(m.distance + j);
    const auto at_level = L::equal(distance, level);
    unsigned hits = L::bits(at_level);
    if (!hits) continue;
    const auto price = L::load(m.price + j);
    do {
      const int32_t col = j + __builtin_ctz(hits);
      if (m.row_of[col] < 0) return col;
      m.reached[num_reached] = col;
      m.reached_distance[num_reached] = L::first(level);
      m.reached_price[num_reached] = m.price[col];
      m.reached_parent[col] = m.parent[col];
      ++num_reached;
      hits &= hits - 1;
    } while (hits);
    L::store(m.distance + j, L::choose_value(at_level, L::all(Limits<T>::kFar), distance));
    L::store(m.price + j, L::choose_value(at_level, L::all(Limits<T>::kClosed), price));
  }
  return -1;
}

// Matches one more row. Returns false if no path to a free column exists.
template <class T>
bool augment(const Matching<T>& m, int32_t free_row) {
  using L = Lanes<T>;
  int32_t num_reached = 0, next = 0;
  auto best = scan_first(m, free_row);
  T level = L::first(best);
  int32_t sink;
  for (;;) {
    if (next == num_reached || L::first(best) <= level) {
      level = L::first(best);
      if (!Limits<T>::finite(level)) return false;
      sink = reach(m, best, num_reached);
      if (sink >= 0) break;
    }
    const int32_t col = m.reached[next];
    const int32_t row = m.row_of[col];
    const T base = m.reached_distance[next] - (m.cost[row][col] - m.reached_price[next]);
    ++next;
    best = scan(m, row, base);
  }
  for (int32_t k = 0; k < num_reached; ++k) {
    const T lower = m.reached_distance[k] - level;
    m.price[m.reached[k]] = m.reached_price[k] + (lower < 0 ? lower : 0);
  }
  int64_t row = m.parent[sink];
  for (int32_t col = sink;;) {
    m.row_of[col] = static_cast<int32_t>(row);
    const int32_t before = m.col_of[row];
    m.col_of[row] = col;
    if (row == free_row) return true;
    col = before;
    row = m.reached_parent[col];
  }
}

// Initial prices of square problems, at which no reduced cost is negative and every column has a
// row with reduced cost 0. The minimum of each row is subtracted first; otherwise one very large
// row would determine prices. About two thirds of the rows of a random matrix get their column
// here.
template <class T>
void lower_columns(const Matching<T>& m, int32_t row, T least_of_row) {
  using L = Lanes<T>;
  const T* cost = m.cost[row];
  const auto owner = L::all_index(row);
  const auto lower = L::all(least_of_row);
#pragma GCC unroll 2
  for (int32_t j = 0; j < m.width; j += L::kCount) {
    const auto reduced = L::load(cost + j) - lower;
    const auto old = L::load(m.price + j);
    L::store_where(m.parent + j, L::less(reduced, old), owner);
    L::store(m.price + j, L::min(old, reduced));
  }
}

template <class T>
void match_lowered_columns(const Matching<T>& m) {
  for (int32_t j = 0; j < m.cols; ++j) {
    if (!Limits<T>::finite(m.price[j])) {  // a column of forbidden entries: the search will report it
      m.price[j] = 0;
      continue;
    }
    const int64_t row = m.parent[j];
    if (m.col_of[row] < 0) {
      m.col_of[row] = j;
      m.row_of[j] = static_cast<int32_t>(row);
    }
  }
}

template <class T>
struct TwoSmallest {
  T first, second;
  int32_t col;  // of the first
};

// The two smallest reduced costs of a row.
template <class T>
TwoSmallest<T> two_smallest(const Matching<T>& m, int32_t row) {
  using L = Lanes<T>;
  const T* cost = m.cost[row];
  auto first = L::all(Limits<T>::kFar), second = first;
  auto first_at = L::all_index(0), at = L::first_index();
#pragma GCC unroll 2
  for (int32_t j = 0; j < m.width; j += L::kCount) {
    const auto reduced = L::load(cost + j) - L::load(m.price + j);
    second = L::min(second, L::max(first, reduced));
    first_at = L::choose(L::less(reduced, first), at, first_at);
    first = L::min(first, reduced);
    at += L::kCount;
  }
  const auto least = L::smallest(first);
  const int lane = __builtin_ctz(L::bits(L::equal(first, least)));
  alignas(64) int64_t places[L::kCount];
  *reinterpret_cast<typename L::Index*>(places) = first_at;
  const auto others = L::choose_value(L::only(lane), second, first);
  return {L::first(least), L::first(L::smallest(others)), static_cast<int32_t>(places[lane])};
}

// A free column at which the row's reduced cost is `value`; -1 if there is none.
template <class T>
int32_t free_column_at(const Matching<T>& m, int32_t row, T value) {
  using L = Lanes<T>;
  const auto wanted = L::all(value);
  for (int32_t j = 0; j < m.width; j += L::kCount) {
    unsigned hits = L::bits(L::equal(L::load(m.cost[row] + j) - L::load(m.price + j), wanted));
    for (; hits; hits &= hits - 1) {
      const int32_t col = j + __builtin_ctz(hits);
      if (m.row_of[col] < 0) return col;
    }
  }
  return -1;
}

// Each free row takes its best column and changes that column's price until its second best is as
// good. A row that is displaced continues in the same way. On some matrices such chains make no
// progress, so their total length is limited.
template <class T>
int32_t compete(const Matching<T>& m, int32_t num_free, int32_t budget) {
  int32_t kept = 0;
  for (int32_t k = 0; k < num_free; ++k) {
    int32_t row = m.free_rows[k];
    while (row >= 0) {
      if (budget-- <= 0) {
        m.free_rows[kept++] = row;
        break;
      }
      const TwoSmallest<T> best = two_smallest(m, row);
      if (!Limits<T>::finite(best.second)) {
        m.free_rows[kept++] = row;
        break;
      }
      int32_t col = best.col;
      const T lower = m.price[col] - (best.second - best.first);
      if (lower < m.price[col]) {
        m.price[col] = lower;
      } else if (m.row_of[col] >= 0) {
        col = free_column_at(m, row, best.first);
        if (col < 0) {  // all columns at this cost are taken: nothing to gain
          m.free_rows[kept++] = row;
          break;
        }
      }
      const int32_t displaced = m.row_of[col];
      m.row_of[col] = row;
      m.col_of[row] = col;
      row = displaced;
      if (displaced >= 0) m.col_of[displaced] = -1;
    }
  }
  return kept;
}

// Divides the workspace into arrays.
struct Allotment {
  char* next;
  template <class U>
  U* take(int64_t count) {
    U* part = reinterpret_cast<U*>(next);
    next += (count * static_cast<int64_t>(sizeof(U)) + 63) / 64 * 64;
    return part;
  }
};

template <class T>
T converted(double x, const AssignmentProblem& p) {
  return x * p.factor;
}

template <class T>
T converted(int64_t x, const AssignmentProblem& p) {
  // Unsigned: the difference fits in 64 bits without a sign, but not always with one.
  const auto value = static_cast<uint64_t>(x), shift = static_cast<uint64_t>(p.shift);
  return static_cast<T>(p.maximize ? shift - value : value - shift);
}

// The smallest number of a row of whole vectors. `usual` is false for a NaN, for the infinity that
// would be preferred and for a number whose sums may overflow.
template <class T>
T least_of(const T* cost, int32_t width, bool& usual) {
  using L = Lanes<T>;
  const auto floor = L::all(-Limits<T>::kLarge), ceiling = L::all(Limits<T>::kLarge), far = L::all(Limits<T>::kFar);
  auto least = far, greatest = floor;
  auto above = L::equal(least, least);
#pragma GCC unroll 2
  for (int32_t j = 0; j < width; j += L::kCount) {
    const auto x = L::load(cost + j);
    above = L::both(above, L::less(floor, x));  // false for NaN too
    least = L::min(least, x);
    greatest = L::max(greatest, L::choose_value(L::less(x, far), x, floor));
  }
  usual = L::every(L::both(above, L::less(greatest, ceiling)));
  return L::first(L::smallest(least));
}

// What a row that is not usual holds: kInvalid for a NaN or the infinity that would be preferred,
// else kTooLarge for a number whose sums may overflow, else kSolved.
template <class T>
AssignmentStatus fault_of(const T* cost, int32_t width) {
  auto fault = AssignmentStatus::kSolved;
  for (int32_t j = 0; j < width; ++j) {
    const T x = cost[j];
    if (!(x > Limits<T>::kClosed)) return AssignmentStatus::kInvalid;
    if (Limits<T>::finite(x) && (x <= -Limits<T>::kLarge || x >= Limits<T>::kLarge)) {
      fault = AssignmentStatus::kTooLarge;
    }
  }
  return fault;
}

// Row i of the costs: in place, or a copy. In place, the last vector of a row reads into the next
// row, which the prices past cols make harmless. The last row has no next row and is copied.
template <class In, class T>
const T* row_of_costs(const Matching<T>& m, const AssignmentProblem& p, int32_t i, T* copies) {
  const In* source = static_cast<const In*>(p.data) + i * p.row_stride;
  if (p.in_place && i + 1 < m.rows) return reinterpret_cast<const T*>(source);
  T* copy = p.in_place ? copies : copies + static_cast<int64_t>(i) * m.width;
  if (p.col_stride == 1) {
    for (int32_t j = 0; j < m.cols; ++j) copy[j] = converted<T>(source[j], p);
  } else {
    for (int32_t j = 0; j < m.cols; ++j) copy[j] = converted<T>(source[j * p.col_stride], p);
  }
  for (int32_t j = m.cols; j < m.width; ++j) copy[j] = copy[0];
  return copy;
}

template <class In, class T>
AssignmentResult solve(const AssignmentProblem& p) {
  Allotment space{static_cast<char*>(p.workspace)};
  Matching<T> m;
  m.rows = p.rows;
  m.cols = p.cols;
  m.width = assignment_width(p.cols);
  m.cost = space.take<const T*>(m.rows);
  m.price = space.take<T>(m.width);
  m.distance = space.take<T>(m.width);
  m.parent = space.take<int64_t>(m.width);
  m.reached_parent = space.take<int64_t>(m.width);
  m.row_of = space.take<int32_t>(m.width);
  m.col_of = space.take<int32_t>(m.rows);
  m.free_rows = space.take<int32_t>(m.rows);
  m.reached = space.take<int32_t>(m.rows);
  m.reached_distance = space.take<T>(m.rows);
  m.reached_price = space.take<T>(m.rows);
  T* copies = space.take<T>(static_cast<int64_t>(p.in_place ? 1 : m.rows) * m.width);

  const bool square = m.rows == m.cols;
  for (int32_t j = 0; j < m.width; ++j) {
    m.price[j] = square ? Limits<T>::kFar : 0;
    m.row_of[j] = -1;
  }
  for (int32_t i = 0; i < m.rows; ++i) m.col_of[i] = -1;

  // A few rows at a time: vector loads right after the element stores of the same row would wait.
  constexpr int32_t kTogether = 16;
  for (int32_t begin = 0; begin < m.rows; begin += kTogether) {
    const int32_t end = begin + kTogether < m.rows ? begin + kTogether : m.rows;
    for (int32_t i = begin; i < end; ++i) m.cost[i] = row_of_costs<In>(m, p, i, copies);
    for (int32_t i = begin; i < end; ++i) {
      bool usual;
      const T least = least_of(m.cost[i], m.width, usual);
      if (!usual) {
        const auto fault = fault_of(m.cost[i], m.width);
        if (fault != AssignmentStatus::kSolved) return {fault, 0, nullptr};
      }
      if (square && Limits<T>::finite(least)) lower_columns(m, i, least);
    }
  }
  if (square) match_lowered_columns(m);
  for (int32_t j = m.cols; j < m.width; ++j) m.price[j] = Limits<T>::kClosed;

  int32_t num_free = 0;
  for (int32_t i = 0; i < m.rows; ++i) {
    if (m.col_of[i] < 0) m.free_rows[num_free++] = i;
  }
  num_free = compete(m, num_free, square && m.rows < 128 ? m.rows : 2 * m.rows);
  for (int32_t k = 0; k < num_free; ++k) {
    if (!augment(m, m.free_rows[k])) return {AssignmentStatus::kInfeasibleRow, m.free_rows[k], nullptr};
  }
  return {AssignmentStatus::kSolved, 0, m.col_of};
}

}  // namespace

IntegerRange range_of_costs(const AssignmentProblem& p) {
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (int32_t i = 0; i < p.rows; ++i) {
    const int64_t* row = static_cast<const int64_t*>(p.data) + i * p.row_stride;
    if (p.col_stride == 1) {
      for (int32_t j = 0; j < p.cols; ++j) {
        low = row[j] < low ? row[j] : low;
        high = row[j] > high ? row[j] : high;
      }
    } else {
      for (int32_t j = 0; j < p.cols; ++j) {
        const int64_t x = row[j * p.col_stride];
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
    }
  }
  return {low, high};
}

AssignmentResult solve_problem(const AssignmentProblem& p) {
  if (p.type == CostType::kFloat32) return solve<float, double>(p);
  if (p.type == CostType::kFloat64) return solve<double, double>(p);
  return p.wide ? solve<int64_t, __int128>(p) : solve<int64_t, int64_t>(p);
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
