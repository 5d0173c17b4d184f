// Chooses the instruction set.
#include "appearance.h"

#include "cpu.h"

namespace infoseg {

namespace portable {
extern const AppearanceKernels appearance_kernels;
}
#if INFOSEG_X86
namespace avx2 {
extern const AppearanceKernels appearance_kernels;
}
namespace avx512 {
extern const AppearanceKernels appearance_kernels;
}
#endif

namespace {

const AppearanceKernels& kernels() {
  switch (current_isa()) {
#if INFOSEG_X86
    case Isa::avx2:
      return avx2::appearance_kernels;
    case Isa::avx512:
    case Isa::avx512bf16:
      return avx512::appearance_kernels;
#endif
    default:
      return portable::appearance_kernels;
  }
}

}  // namespace

void local_appearance(const AppearanceArguments& a) { kernels().local(a); }
void appearance_statistics(const StatisticsArguments& a) { kernels().statistics(a); }

}  // namespace infoseg
