// The confusion count compiled for AVX2.
#include <immintrin.h>

#include <cstdint>

#include "confusion_matrix_cells.h"

namespace infoseg {
namespace confusion_avx2 {
#include "confusion_matrix_kernel.h"
}  // namespace confusion_avx2

void count_cells_avx2(Labels pred, Labels target, std::int64_t begin, std::int64_t size, const ConfusionCells& cells,
                      std::uint32_t* tables) {
  confusion_avx2::count_cells(pred, target, begin, size, cells, tables);
}

}  // namespace infoseg
