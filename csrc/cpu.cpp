#include "cpu.h"

#include <atomic>

namespace infoseg {

Isa best_isa() {
#if INFOSEG_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa default_isa() {
  const Isa best = best_isa();
#if INFOSEG_X86
  // Measured on a Sapphire or Emerald Rapids: a quarter as many pair instructions a second as multiplications of float32,
  // so half as many numbers. On a Zen 4 the loss on pairs was about as fast as in float32.
  if (best == Isa::avx512bf16 && !__builtin_cpu_is("amd")) return Isa::avx512;
#endif
  return best;
}

namespace {
std::atomic<int> current{-1};
}

Isa current_isa() {
  int isa = current.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(default_isa());
    current.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

bool set_isa(Isa isa) {
  if (static_cast<int>(isa) < 0 || isa > best_isa()) return false;
  current.store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512bf16:
      return "avx512bf16";
    default:
      return "portable";
  }
}

}  // namespace infoseg
