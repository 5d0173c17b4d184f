// The confusion count compiled for every CPU.
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <cstdint>

#include "confusion_matrix_cells.h"

namespace infoseg {
namespace confusion_portable {
#include "confusion_matrix_kernel.h"
}  // namespace confusion_portable

void count_cells_portable(Labels pred, Labels target, std::int64_t begin, std::int64_t size,
                          const ConfusionCells& cells, std::uint32_t* tables) {
  confusion_portable::count_cells(pred, target, begin, size, cells, tables);
}

}  // namespace infoseg
