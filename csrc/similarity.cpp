// Chooses the instruction set.
#include "similarity.h"

#include "cpu.h"

namespace infoseg {

namespace portable {
extern const SimilarityKernels similarity_kernels;
}
#if INFOSEG_X86
namespace avx2 {
extern const SimilarityKernels similarity_kernels;
}
namespace avx512 {
extern const SimilarityKernels similarity_kernels;
}
#endif

namespace {

const SimilarityKernels& kernels() {
  switch (current_isa()) {
#if INFOSEG_X86
    case Isa::avx2:
      return avx2::similarity_kernels;
    case Isa::avx512:
    case Isa::avx512bf16:
      return avx512::similarity_kernels;
#endif
    default:
      return portable::similarity_kernels;
  }
}

}  // namespace

void similarity_forward(const SimilarityArguments& a) { kernels().forward(a); }
void similarity_backward(const SimilarityArguments& a) { kernels().backward(a); }

}  // namespace infoseg
