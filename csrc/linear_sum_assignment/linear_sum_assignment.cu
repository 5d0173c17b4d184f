// Minimum-cost assignment of rows to columns on a GPU, batched. A problem of up to 32 columns is
// solved by one warp, one of up to 2,048 columns by one block. Nothing is allocated and nothing
// waits for the host. `status`, on the device, reports problems without an answer.
//
// Method: shortest augmenting paths, a row at a time. Each thread has one or a few columns. In
// every step of a search a reduction over the warp or the block finds the nearest column not yet
// reached. Sums have scipy's order and ties are broken as in scipy's solver. So for floating-point
// costs the assignments are the same as scipy's, which takes float32 costs as float64.
//
// Compiled by nvcc alone, and by a C++ compiler against tests/cuda_harness, which runs it without a
// GPU.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarpsPerBlock = 4;  // of the kernel with one warp for each problem
constexpr int kMaxColumns = 2048;
constexpr int kMaxThreads = 512;  // of the kernel with one block for each problem

// As in infoseg_fast/ops/linear_sum_assignment.py.
enum Status : int32_t { kSolved = 0, kInvalid = 1, kInfeasible = 2, kTooLarge = 3 };
enum Type : int32_t { kFloat32 = 0, kFloat64 = 1, kInt64 = 2 };

// A batch of matrices turned so that rows <= cols; strides count elements.
struct Batch {
  const void* cost;
  int64_t batch, batch_stride, row_stride, col_stride;
  int rows, cols;
  bool maximize;
  bool turned;           // rows and cols are the caller's columns and rows
  int64_t* row_indices;  // [batch, rows]
  int64_t* col_indices;  // [batch, rows]
  int32_t* status;       // [batch, 2]: Status and its row (after turning)
};

// Maps values of either type to unsigned integers of the same order, so that reductions over warps
// need one type of key. Adding zero turns -0.0 into 0.0, which it equals but would precede.
__device__ uint64_t key_of(double x) {
  const auto bits = static_cast<uint64_t>(__double_as_longlong(x + 0.0));
  return bits >> 63 ? ~bits : bits | (uint64_t{1} << 63);
}
__device__ uint64_t key_of(int64_t x) { return static_cast<uint64_t>(x) ^ (uint64_t{1} << 63); }

__device__ void value_of(uint64_t key, double& x) {
  x = __longlong_as_double(static_cast<long long>(key >> 63 ? key ^ (uint64_t{1} << 63) : ~key));
}
__device__ void value_of(uint64_t key, int64_t& x) { x = static_cast<int64_t>(key ^ (uint64_t{1} << 63)); }

template <class T>
struct Number;
template <>
struct Number<double> {
  static constexpr bool kInteger = false;
  __device__ static double far() { return __longlong_as_double(0x7ff0000000000000ll); }
  // Whether x is NaN or the infinity that would always be preferred.
  __device__ static bool invalid(double cost) { return !(cost > -far()); }
};
template <>
struct Number<int64_t> {
  static constexpr bool kInteger = true;
  __device__ static int64_t far() { return INT64_MAX; }
  __device__ static bool invalid(int64_t) { return false; }
};

// The cost that the solver minimises. Integers are shifted so that the best is 0.
__device__ double cost_of(float x, bool maximize, int64_t) { return maximize ? -static_cast<double>(x) : x; }
__device__ double cost_of(double x, bool maximize, int64_t) { return maximize ? -x : x; }
__device__ int64_t cost_of(int64_t x, bool maximize, int64_t shift) {
  const auto value = static_cast<uint64_t>(x), from = static_cast<uint64_t>(shift);
  return static_cast<int64_t>(maximize ? from - value : value - from);
}

// The shift of integers, and whether sums along a path, which are below 2 * rows + 4 spreads, fit
// in 64 bits.
struct Range {
  int64_t shift;
  bool fits;
};

__device__ Range range_of(uint64_t least, uint64_t greatest, int rows, bool maximize) {
  Range range;
  value_of(maximize ? greatest : least, range.shift);
  range.fits = greatest - least < (uint64_t{1} << 60) / static_cast<uint64_t>(2 * rows + 4);
  return range;
}

template <class In>
__device__ const In* matrix_of(const Batch& batch, int64_t problem) {
  return static_cast<const In*>(batch.cost) + problem * batch.batch_stride;
}

// The order in which scipy takes columns at the same distance: the last free one in its list of
// open columns, else the first. The smallest number is taken; its lowest part is the column.
__device__ unsigned preference(bool is_free, int order, int col) {
  return (is_free ? static_cast<unsigned>(kMaxColumns - 1 - order) : static_cast<unsigned>(kMaxColumns + order)) << 12 |
         static_cast<unsigned>(col);
}
constexpr unsigned kNoPreference = 0xffffffffu;
constexpr unsigned kTakenBit = static_cast<unsigned>(kMaxColumns) << 12;  // set when the column is not free

// The nearest column of a warp or block.
struct Nearest {
  uint64_t key;
  unsigned preferred;
  __device__ int col() const { return static_cast<int>(preferred & 0xfffu); }
  __device__ int order() const {
    const int rank = static_cast<int>(preferred >> 12);
    return rank < kMaxColumns ? kMaxColumns - 1 - rank : rank - kMaxColumns;
  }
  __device__ bool is_free() const { return !(preferred & kTakenBit); }
};

__device__ uint64_t warp_min(uint64_t key) {
  const auto high = static_cast<unsigned>(key >> 32);
  const unsigned least_high = __reduce_min_sync(kAllLanes, high);
  const unsigned low = high == least_high ? static_cast<unsigned>(key) : 0xffffffffu;
  return static_cast<uint64_t>(least_high) << 32 | __reduce_min_sync(kAllLanes, low);
}

__device__ Nearest warp_nearest(uint64_t key, unsigned preferred) {
  const uint64_t least = warp_min(key);
  return {least, __reduce_min_sync(kAllLanes, key == least ? preferred : kNoPreference)};
}

// ----------------------------------------------------------------------------------- one warp for each problem
// Lane j holds column j and row j. All state is in registers; lanes exchange it by shuffles and
// votes only.

struct Answer {
  int32_t status, place;
  int col_of;  // of the lane's row
  int row_of;  // of the lane's column, -1 when free
};

template <class In, class T>
__device__ Answer solve_in_warp(const In* cost, const Batch& batch, int lane) {
  using N = Number<T>;
  const int rows = batch.rows, cols = batch.cols;
  const bool has_column = lane < cols;
  const In* column =
      cost + (has_column ? lane * batch.col_stride : 0);  // reading column 0 twice changes no check below

  unsigned invalid_row = rows;
  uint64_t least = ~uint64_t{0}, greatest = 0;
  for (int i = rows - 1; i >= 0; --i) {
    const T x = cost_of(column[i * batch.row_stride], batch.maximize && !N::kInteger, 0);
    if (N::invalid(x)) invalid_row = i;
    const uint64_t key = key_of(x);
    least = key < least ? key : least;
    greatest = key > greatest ? key : greatest;
  }
  invalid_row = __reduce_min_sync(kAllLanes, invalid_row);
  if (invalid_row < static_cast<unsigned>(rows)) return {kInvalid, static_cast<int32_t>(invalid_row), -1, -1};
  int64_t shift = 0;
  if constexpr (N::kInteger) {
    const Range range = range_of(warp_min(least), ~warp_min(~greatest), rows, batch.maximize);
    if (!range.fits) return {kTooLarge, 0, -1, -1};
    shift = range.shift;
  }

  T row_price = 0;  // u of the lane's row
  T price = 0;      // v of the lane's column
  int row_of = -1, col_of = -1;
  for (int free_row = 0; free_row < rows; ++free_row) {
    T distance = N::far(), level = 0;
    int parent = -1;
    bool open = has_column, row_reached = false;
    int order = cols - 1 - lane;  // place in scipy's list of open columns
    int num_open = cols, row = free_row, sink = -1;
    while (sink < 0) {
      row_reached = row_reached || lane == row;
      const T price_of_row = __shfl_sync(kAllLanes, row_price, row);
      if (open) {
        const T here = cost_of(column[row * batch.row_stride], batch.maximize, shift);
        const T length = level + here - price_of_row - price;
        if (length < distance) {
          distance = length;
          parent = row;
        }
      }
      const Nearest nearest = warp_nearest(open ? key_of(distance) : ~uint64_t{0},
                                           open ? preference(row_of < 0, order, lane) : kNoPreference);
      if (nearest.key >= key_of(N::far())) return {kInfeasible, free_row, -1, -1};
      value_of(nearest.key, level);
      const int col = nearest.col();
      --num_open;
      if (lane == col)
        open = false;
      else if (order == num_open)
        order = nearest.order();  // scipy moves the last entry of its list into the gap
      row = __shfl_sync(kAllLanes, row_of, col);
      if (nearest.is_free()) sink = col;
    }

    // Prices of the reached rows and columns. A reached row other than the first was reached
    // through its matched column.
    const T distance_of_row = __shfl_sync(kAllLanes, distance, col_of < 0 ? 0 : col_of);
    if (lane == free_row)
      row_price += level;
    else if (row_reached)
      row_price += level - distance_of_row;
    if (has_column && !open) price -= level - distance;

    for (int col = sink; col >= 0;) {
      const int from = __shfl_sync(kAllLanes, parent, col);
      const int next = __shfl_sync(kAllLanes, col_of, from);
      if (lane == col) row_of = from;
      if (lane == from) col_of = col;
      col = from == free_row ? -1 : next;
    }
  }
  return {kSolved, 0, col_of, row_of};
}

template <class In, class T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, 8) warp_kernel(Batch batch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t problem = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (problem >= batch.batch) return;  // the whole warp
  const Answer answer = solve_in_warp<In, T>(matrix_of<In>(batch, problem), batch, lane);

  const bool solved = answer.status == kSolved;
  int64_t* row_indices = batch.row_indices + problem * batch.rows;
  int64_t* col_indices = batch.col_indices + problem * batch.rows;
  if (!batch.turned || !solved) {
    if (lane < batch.rows) {
      row_indices[lane] = lane;
      col_indices[lane] = answer.col_of;
    }
  }
  const bool writes = batch.turned && solved && answer.row_of >= 0;
  const unsigned writers = __ballot_sync(kAllLanes, writes);
  if (writes) {
    const int place = __popc(writers & ((1u << lane) - 1));
    row_indices[place] = lane;
    col_indices[place] = answer.row_of;
  }
  if (lane == 0) {
    batch.status[2 * problem] = answer.status;
    batch.status[2 * problem + 1] = answer.place;
  }
}

// ---------------------------------------------------------------------------------- one block for each problem
// Thread t owns columns t, t + threads, ...: only it reads and writes their state, except at the
// end of a search.

template <class T>
struct Shared {
  T* row_price;         // [rows]
  T* price;             // [cols]
  T* distance;          // [cols]
  uint64_t* keys;       // [2, warps] of a reduction over the block; calls alternate between the halves
  unsigned* preferred;  // [2, warps]
  int16_t* parent;      // [cols]
  int16_t* row_of;      // [cols]
  int16_t* col_of;      // [rows]
  int16_t* order;       // [cols] place in scipy's list of open columns, -1 when reached
  int16_t* listed;      // [cols] scipy's list of open columns
};

constexpr int kMaxWarps = kMaxThreads / kWarp;

template <class T>
__host__ __device__ size_t shared_bytes(int rows, int cols) {
  const size_t wide = (static_cast<size_t>(rows) + 2 * static_cast<size_t>(cols)) * sizeof(T);
  const size_t slots = 2 * kMaxWarps * (sizeof(uint64_t) + sizeof(unsigned));
  return wide + slots + (static_cast<size_t>(rows) + 4 * static_cast<size_t>(cols)) * sizeof(int16_t);
}

template <class T>
__device__ Shared<T> divide(unsigned char* memory, int rows, int cols) {
  Shared<T> s;
  s.keys = reinterpret_cast<uint64_t*>(memory);
  s.row_price = reinterpret_cast<T*>(s.keys + 2 * kMaxWarps);
  s.price = s.row_price + rows;
  s.distance = s.price + cols;
  s.preferred = reinterpret_cast<unsigned*>(s.distance + cols);
  s.parent = reinterpret_cast<int16_t*>(s.preferred + 2 * kMaxWarps);
  s.row_of = s.parent + cols;
  s.order = s.row_of + cols;
  s.listed = s.order + cols;
  s.col_of = s.listed + cols;
  return s;
}

// The nearest column of the block, returned to every thread. One barrier for each call: calls
// alternate between the two halves of the slots, so a half is written again only after a barrier
// that its readers have reached.
template <class T>
__device__ Nearest block_nearest(const Shared<T>& s, int& turn, uint64_t key, unsigned preferred) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  uint64_t* keys = s.keys + turn * kMaxWarps;
  unsigned* preferences = s.preferred + turn * kMaxWarps;
  turn ^= 1;
  const Nearest mine = warp_nearest(key, preferred);
  if (lane == 0) {
    keys[warp] = mine.key;
    preferences[warp] = mine.preferred;
  }
  __syncthreads();
  return warp_nearest(lane < warps ? keys[lane] : ~uint64_t{0}, lane < warps ? preferences[lane] : kNoPreference);
}

template <class In, class T>
__device__ int2 solve_in_block(const In* cost, const Batch& batch, const Shared<T>& s) {
  using N = Number<T>;
  const int rows = batch.rows, cols = batch.cols;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int turn = 0;

  unsigned invalid_row = rows;
  uint64_t least = ~uint64_t{0}, greatest = 0;
  for (int i = rows - 1; i >= 0; --i) {
    for (int j = thread; j < cols; j += threads) {
      const T x = cost_of(cost[i * batch.row_stride + j * batch.col_stride], batch.maximize && !N::kInteger, 0);
      if (N::invalid(x)) invalid_row = i;
      const uint64_t key = key_of(x);
      least = key < least ? key : least;
      greatest = key > greatest ? key : greatest;
    }
  }
  invalid_row = static_cast<unsigned>(block_nearest(s, turn, invalid_row, 0).key);
  if (invalid_row < static_cast<unsigned>(rows)) return {kInvalid, static_cast<int>(invalid_row)};
  int64_t shift = 0;
  if constexpr (N::kInteger) {
    least = block_nearest(s, turn, least, 0).key;
    greatest = ~block_nearest(s, turn, ~greatest, 0).key;
    const Range range = range_of(least, greatest, rows, batch.maximize);
    if (!range.fits) return {kTooLarge, 0};
    shift = range.shift;
  }

  for (int j = thread; j < cols; j += threads) {
    s.price[j] = 0;
    s.row_of[j] = -1;
  }
  for (int i = thread; i < rows; i += threads) {
    s.row_price[i] = 0;
    s.col_of[i] = -1;
  }

  for (int free_row = 0; free_row < rows; ++free_row) {
    for (int j = thread; j < cols; j += threads) {
      s.distance[j] = N::far();
      s.order[j] = static_cast<int16_t>(cols - 1 - j);
      s.listed[cols - 1 - j] = static_cast<int16_t>(j);
    }
    __syncthreads();  // completes the prices and matches of the previous search, and the list
    T level = 0;
    int num_open = cols, row = free_row, sink = -1;
    while (sink < 0) {
      const T price_of_row = s.row_price[row];
      const In* row_cost = cost + row * batch.row_stride;
      uint64_t key = ~uint64_t{0};
      unsigned preferred = kNoPreference;
      for (int j = thread; j < cols; j += threads) {
        const int order = s.order[j];
        if (order < 0) continue;
        const T here = cost_of(row_cost[j * batch.col_stride], batch.maximize, shift);
        const T length = level + here - price_of_row - s.price[j];
        T distance = s.distance[j];
        if (length < distance) {
          distance = length;
          s.distance[j] = length;
          s.parent[j] = static_cast<int16_t>(row);
        }
        const uint64_t candidate = key_of(distance);
        const unsigned rank = preference(s.row_of[j] < 0, order, j);
        if (candidate < key || (candidate == key && rank < preferred)) {
          key = candidate;
          preferred = rank;
        }
      }
      const Nearest nearest = block_nearest(s, turn, key, preferred);
      if (nearest.key >= key_of(N::far())) return {kInfeasible, free_row};
      value_of(nearest.key, level);
      const int col = nearest.col();
      --num_open;
      // scipy moves the last entry of its list into the gap. Every thread reads the last entry,
      // none writes it now.
      const int moved = s.listed[num_open];
      if (col % threads == thread) s.order[col] = -1;
      if (moved != col && moved % threads == thread) {
        s.order[moved] = static_cast<int16_t>(nearest.order());
        s.listed[nearest.order()] = static_cast<int16_t>(moved);
      }
      if (nearest.is_free())
        sink = col;
      else
        row = s.row_of[col];
    }

    // Prices of the reached columns, and of each reached row but the first through its matched
    // column.
    for (int j = thread; j < cols; j += threads) {
      if (s.order[j] >= 0) continue;
      const T lower = level - s.distance[j];
      s.price[j] -= lower;
      if (j != sink) s.row_price[s.row_of[j]] += lower;
    }
    if (thread == 0) s.row_price[free_row] += level;
    __syncthreads();  // completes the parents, and the reads of row_of before it changes
    if (thread == 0) {
      for (int col = sink; col >= 0;) {
        const int from = s.parent[col];
        const int next = s.col_of[from];
        s.row_of[col] = static_cast<int16_t>(from);
        s.col_of[from] = static_cast<int16_t>(col);
        col = from == free_row ? -1 : next;
      }
    }
  }
  __syncthreads();  // completes the last matches
  return {kSolved, 0};
}

extern __shared__ __align__(16) unsigned char dynamic_shared[];

template <class In, class T>
__global__ void __launch_bounds__(kMaxThreads, 2) block_kernel(Batch batch) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t problem = blockIdx.x;
  const Shared<T> s = divide<T>(dynamic_shared, batch.rows, batch.cols);
  const int2 answer = solve_in_block<In, T>(matrix_of<In>(batch, problem), batch, s);

  const bool solved = answer.x == kSolved;
  int64_t* row_indices = batch.row_indices + problem * batch.rows;
  int64_t* col_indices = batch.col_indices + problem * batch.rows;
  if (!batch.turned || !solved) {
    for (int i = thread; i < batch.rows; i += threads) {
      row_indices[i] = i;
      col_indices[i] = solved ? s.col_of[i] : -1;
    }
  } else if (thread < kWarp) {
    int written = 0;
    for (int base = 0; base < batch.cols; base += kWarp) {
      const int row_of = base + thread < batch.cols ? s.row_of[base + thread] : -1;
      const unsigned writers = __ballot_sync(kAllLanes, row_of >= 0);
      if (row_of >= 0) {
        const int place = written + __popc(writers & ((1u << thread) - 1));
        row_indices[place] = base + thread;
        col_indices[place] = row_of;
      }
      written += __popc(writers);
    }
  }
  if (thread == 0) {
    batch.status[2 * problem] = answer.x;
    batch.status[2 * problem + 1] = answer.y;
  }
}

// --------------------------------------------------------------------------------------------------- interface

template <class In, class T>
cudaError_t launch(const Batch& batch, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.stream = stream;
  if (batch.cols <= kWarp) {
    config.gridDim = dim3(static_cast<unsigned>((batch.batch + kWarpsPerBlock - 1) / kWarpsPerBlock));
    config.blockDim = dim3(kWarp * kWarpsPerBlock);
    return cudaLaunchKernelEx(&config, warp_kernel<In, T>, batch);
  }
  // Four columns for each thread: with fewer, barriers take most of the time, with more the loop.
  int threads = (batch.cols + 4 * kWarp - 1) / (4 * kWarp) * kWarp;
  threads = threads < 2 * kWarp ? 2 * kWarp : threads > kMaxThreads ? kMaxThreads : threads;
  config.gridDim = dim3(static_cast<unsigned>(batch.batch));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes<T>(batch.rows, batch.cols);
  if (config.dynamicSmemBytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(block_kernel<In, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(config.dynamicSmemBytes));
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, block_kernel<In, T>, batch);
}

}  // namespace

extern "C" {

// The largest number of rows or columns that infoseg_assign takes.
__attribute__((visibility("default"))) int infoseg_assign_max_columns() { return kMaxColumns; }

// Solves on `stream`. cost: batch matrices [rows, cols] of `type` (0 float32, 1 float64, 2 int64),
// strides in elements. row_indices, col_indices: [batch, min(rows, cols)], rows ascending; a
// problem without an answer has columns -1. status: [batch, 2], a Status and its row (with more
// rows than columns: its column). All pointers are to memory of the device, which must be current.
// Returns a cudaError_t.
__attribute__((visibility("default"))) int infoseg_assign(const void* cost, int type, int64_t batch, int64_t rows,
                                                          int64_t cols, int64_t batch_stride, int64_t row_stride,
                                                          int64_t col_stride, int maximize, int64_t* row_indices,
                                                          int64_t* col_indices, int32_t* status, void* stream) {
  const bool turned = rows > cols;
  const int64_t longer = turned ? rows : cols;
  if (longer > kMaxColumns || batch > INT32_MAX || rows < 0 || cols < 0 || batch < 0) return cudaErrorInvalidValue;
  if (batch == 0 || rows == 0 || cols == 0) return cudaSuccess;
  Batch work{cost,
             batch,
             batch_stride,
             turned ? col_stride : row_stride,
             turned ? row_stride : col_stride,
             static_cast<int>(turned ? cols : rows),
             static_cast<int>(longer),
             maximize != 0,
             turned,
             row_indices,
             col_indices,
             status};
  const auto on = static_cast<cudaStream_t>(stream);
  switch (type) {
    case kFloat32:
      return launch<float, double>(work, on);
    case kFloat64:
      return launch<double, double>(work, on);
    case kInt64:
      return launch<int64_t, int64_t>(work, on);
    default:
      return cudaErrorInvalidValue;
  }
}
}
