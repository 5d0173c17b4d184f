// Chooses the instruction set.
#include "segmentation.h"

#include "cpu.h"

namespace infoseg {

namespace portable {
extern const SegmentationKernels segmentation_kernels;
}
#if INFOSEG_X86
namespace avx2 {
extern const SegmentationKernels segmentation_kernels;
}
namespace avx512 {
extern const SegmentationKernels segmentation_kernels;
}
#endif

namespace {

const SegmentationKernels& kernels() {
  switch (current_isa()) {
#if INFOSEG_X86
    case Isa::avx2:
      return avx2::segmentation_kernels;
    case Isa::avx512:
    case Isa::avx512bf16:
      return avx512::segmentation_kernels;
#endif
    default:
      return portable::segmentation_kernels;
  }
}

}  // namespace

int64_t segment(const SegmentationArguments& a) { return kernels().segment(a); }

}  // namespace infoseg
