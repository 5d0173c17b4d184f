// Chooses the instruction set.
#include "mutual_information.h"

#include "cpu.h"

namespace infoseg {

namespace portable {
extern const LossKernels loss_kernels;
}
#if INFOSEG_X86
namespace avx2 {
extern const LossKernels loss_kernels;
}
namespace avx512 {
extern const LossKernels loss_kernels;
}
namespace avx512bf16 {
extern const LossKernels loss_kernels;
}
#endif

namespace {

const LossKernels& kernels(DType type) {
  (void)type;
  switch (current_isa()) {
#if INFOSEG_X86
    case Isa::avx2:
      return avx2::loss_kernels;
    case Isa::avx512bf16:
      if (type == DType::bf16) return avx512bf16::loss_kernels;
      return avx512::loss_kernels;
    case Isa::avx512:
      return avx512::loss_kernels;
#endif
    default:
      return portable::loss_kernels;
  }
}

}  // namespace

double mutual_information_loss(const LossArguments& a) { return kernels(a.dtype).loss(a); }

}  // namespace infoseg
