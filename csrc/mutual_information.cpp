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

Keeps loss_keeps(int64_t B, int64_t C, int64_t K, const LossSettings& settings) {
  const int64_t scores = (1 + settings.partners) * K;
  // Operations a position and channel, over 6: (1 + n) K with each partner's K scores, B + 2 K with the assigned
  // feature of every image, whose products load two vectors where the others load one.
  if (settings.estimator == Estimator::jsd && settings.negatives == Negatives::same_position)
    return 3 * (B + 2 * K) < 2 * scores ? Keeps::gradients : Keeps::coefficients;
  return scores >= C ? Keeps::gradients : Keeps::coefficients;
}

double loss_forward(const LossArguments& a) { return kernels(a.dtype).forward(a); }
void loss_backward(const LossArguments& a) { kernels(a.dtype).backward(a); }

}  // namespace infoseg
