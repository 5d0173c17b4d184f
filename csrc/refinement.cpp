// Chooses the instruction set.
#include "refinement.h"

#include "cpu.h"

namespace infoseg {

namespace portable {
extern const RefinementKernels refinement_kernels;
}
#if INFOSEG_X86
namespace avx2 {
extern const RefinementKernels refinement_kernels;
}
namespace avx512 {
extern const RefinementKernels refinement_kernels;
}
#endif

namespace {

const RefinementKernels& kernels() {
  switch (current_isa()) {
#if INFOSEG_X86
    case Isa::avx2:
      return avx2::refinement_kernels;
    case Isa::avx512:
    case Isa::avx512bf16:
      return avx512::refinement_kernels;
#endif
    default:
      return portable::refinement_kernels;
  }
}

}  // namespace

void refined_labels(const RefinementArguments& a) { kernels().labels(a); }
void refined_probs(const RefinementArguments& a) { kernels().probs(a); }

}  // namespace infoseg
