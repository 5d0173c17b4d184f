// Runs the kernels of csrc/linear_sum_assignment/linear_sum_assignment.cu and
// csrc/confusion_matrix/confusion_matrix.cu, and one that needs its __syncwarp, for ThreadSanitizer
// to watch. A program of its own, since the sanitizer must be there from the start.
// INFOSEG_ASSIGNMENT and INFOSEG_CONFUSION name the sources, so that a test can give a copy with a
// barrier removed and see it found.
#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

namespace assignment {
#include INFOSEG_ASSIGNMENT
namespace {
__shared__ __align__(16) unsigned char dynamic_shared[99 * 1024];
}
}  // namespace assignment

namespace confusion {
#include INFOSEG_CONFUSION
namespace {
__shared__ unsigned cell_counts[kMostSharedCells];
}
}  // namespace confusion

namespace {

// Each lane hands its value to its neighbour through shared memory.
__global__ void neighbours_kernel(const int* given, int* taken) {
  __shared__ int slots[32];
  const int lane = static_cast<int>(threadIdx.x);
  slots[lane] = given[lane];
#ifndef INFOSEG_WITHOUT_SYNCWARP
  __syncwarp();
#endif
  const unsigned all = __ballot_sync(0xffffffffu, true);  // a vote makes the lanes meet but does not order memory
  taken[lane] = slots[(lane + 1) % 32] + static_cast<int>(all & 1);
}

}  // namespace

int main() {
  uint64_t state = 88172645463325252ull;
  const auto next = [&] {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<double>(state >> 40);
  };
  const int64_t sizes[][2] = {{5, 7}, {20, 13}, {31, 31}, {33, 70}, {90, 40}, {64, 64}};
  for (int round = 0; round < 2; ++round) {
    cuda_harness::set_schedule(round ? 977 : 0);
    for (const auto& size : sizes) {
      const int64_t rows = size[0], cols = size[1], batch = 2, least = rows < cols ? rows : cols;
      std::vector<double> cost(batch * rows * cols);
      for (double& x : cost) x = next();
      std::vector<int64_t> row_indices(batch * least), col_indices(batch * least);
      std::vector<int32_t> status(2 * batch);
      const int failed =
          assignment::infoseg_assign(cost.data(), assignment::kFloat64, batch, rows, cols, rows * cols, cols, 1, 0,
                                     row_indices.data(), col_indices.data(), status.data(), nullptr);
      if (failed) return 2;
      for (int64_t b = 0; b < batch; ++b) {
        if (status[2 * b] != assignment::kSolved) return 3;
      }
    }
    constexpr int64_t kPixels = 9000, kClusters = 7, kClasses = 5;
    std::vector<uint8_t> pred(kPixels), target(kPixels);
    for (int64_t i = 0; i < kPixels; ++i) {
      pred[i] = static_cast<uint8_t>(static_cast<int64_t>(next()) % kClusters);
      target[i] = static_cast<uint8_t>(static_cast<int64_t>(next()) % kClasses);
    }
    std::vector<int64_t> counts(kClusters * kClasses + 1);
    confusion::infoseg_count_confusion(pred.data(), 0, target.data(), 0, kPixels, kClusters, kClasses, 0, 0,
                                       counts.data(), nullptr);
    int64_t counted = 0;
    for (const int64_t count : counts) counted += count;
    if (counted != kPixels) return 5;
    std::vector<int> given(32, 1), taken(32);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(2);
    config.blockDim = dim3(32);
    cudaLaunchKernelEx(&config, neighbours_kernel, given.data(), taken.data());
    for (const int value : taken) {
      if (value != 2) return 4;
    }
  }
  std::puts("checked");
  return 0;
}
