// Joint counts of predicted clusters and target classes on a GPU. Each block counts a share of the
// pixels in shared memory and adds its counts to the result. Nothing waits for the host; values out
// of range have a counter of their own.
//
// Compiled by nvcc alone, and by a C++ compiler against tests/cuda_harness, which runs it without a
// GPU.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 256;
constexpr int64_t kPixelsPerThread = 16;  // at least, so that clearing and adding shared memory costs little
constexpr int64_t kMostBlocks = 2048;     // enough to keep any GPU busy
constexpr int kMostSharedCells = 48 * 1024 / sizeof(unsigned);

// As in infoseg_fast/ops/confusion_matrix.py.
enum LabelType : int { kUint8 = 0, kInt16 = 1, kInt32 = 2, kInt64 = 3 };

struct Labels {
  const void* data;
  int type;
};

struct Work {
  Labels pred, target;
  int64_t size, num_clusters, num_classes, ignore_index;
  bool has_ignore, shared;
  unsigned long long* counts;  // [num_clusters * num_classes + 1], the last for pixels out of range
};

// The type is the same for every thread, so this branch costs little compared with the load.
__device__ int64_t label_at(const Labels& labels, int64_t i) {
  switch (labels.type) {
    case kUint8:
      return static_cast<const uint8_t*>(labels.data)[i];
    case kInt16:
      return static_cast<const int16_t*>(labels.data)[i];
    case kInt32:
      return static_cast<const int32_t*>(labels.data)[i];
    default:
      return static_cast<const int64_t*>(labels.data)[i];
  }
}

// The cell of pixel i: the last one if it is out of range, -1 if it is ignored.
__device__ int64_t cell_at(const Work& work, int64_t i) {
  const int64_t target = label_at(work.target, i);
  if (work.has_ignore && target == work.ignore_index) return -1;
  const int64_t pred = label_at(work.pred, i);
  const bool inside = pred >= 0 && pred < work.num_clusters && target >= 0 && target < work.num_classes;
  return inside ? pred * work.num_classes + target : work.num_clusters * work.num_classes;
}

extern __shared__ unsigned cell_counts[];

__global__ void __launch_bounds__(kThreads) count_kernel(Work work) {
  const int64_t cells = work.num_clusters * work.num_classes + 1;
  const int thread = static_cast<int>(threadIdx.x);
  if (work.shared) {
    for (int64_t cell = thread; cell < cells; cell += kThreads) cell_counts[cell] = 0;
    __syncthreads();
  }

  const auto step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads; base < work.size; base += step) {
    const int64_t i = base + thread;
    const int64_t cell = i < work.size ? cell_at(work, i) : -1;
    // Neighbours mostly lie in one region. Then one addition serves the warp; 32 additions would
    // wait for one another.
    const int64_t first = __shfl_sync(kAllLanes, cell, 0);
    const bool together = __ballot_sync(kAllLanes, cell == first) == kAllLanes;
    const unsigned amount = !together ? 1 : thread % kWarp == 0 ? kWarp : 0;
    if (cell < 0 || amount == 0) continue;
    if (work.shared)
      atomicAdd(&cell_counts[cell], amount);
    else
      atomicAdd(&work.counts[cell], static_cast<unsigned long long>(amount));
  }

  if (work.shared) {
    __syncthreads();
    for (int64_t cell = thread; cell < cells; cell += kThreads) {
      const unsigned count = cell_counts[cell];
      if (count) atomicAdd(&work.counts[cell], static_cast<unsigned long long>(count));
    }
  }
}

}  // namespace

extern "C" {

// Adds the joint counts of `size` contiguous labels (types: 0 uint8, 1 int16, 2 int32, 3 int64) to
// counts[num_clusters * num_classes + 1]; the last one counts pixels with a value out of range.
// With has_ignore, pixels whose target is ignore_index are left out. All pointers are to memory of
// the device, which must be current. Returns a cudaError_t.
__attribute__((visibility("default"))) int infoseg_count_confusion(const void* pred, int pred_type, const void* target,
                                                                   int target_type, int64_t size, int64_t num_clusters,
                                                                   int64_t num_classes, int has_ignore,
                                                                   int64_t ignore_index, int64_t* counts,
                                                                   void* stream) {
  const auto known = [](int type) { return type >= kUint8 && type <= kInt64; };
  if (!known(pred_type) || !known(target_type) || size < 0) return cudaErrorInvalidValue;
  if (size == 0) return cudaSuccess;
  const int64_t cells = num_clusters * num_classes + 1;
  const bool shared = cells <= kMostSharedCells;
  const Work work{{pred, pred_type},
                  {target, target_type},
                  size,
                  num_clusters,
                  num_classes,
                  ignore_index,
                  has_ignore != 0,
                  shared,
                  reinterpret_cast<unsigned long long*>(counts)};
  constexpr int64_t kPixelsPerBlock = kThreads * kPixelsPerThread;
  const int64_t blocks = (size + kPixelsPerBlock - 1) / kPixelsPerBlock;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared ? static_cast<size_t>(cells) * sizeof(unsigned) : 0;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, count_kernel, work);
}
}
