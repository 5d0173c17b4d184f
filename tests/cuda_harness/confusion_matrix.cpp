// csrc/confusion_matrix/confusion_matrix.cu as a CPU library with the same C interface: "device"
// pointers are the host's.
#include "../../csrc/confusion_matrix/confusion_matrix.cu"

namespace {
__shared__ unsigned cell_counts[kMostSharedCells];
}  // namespace
