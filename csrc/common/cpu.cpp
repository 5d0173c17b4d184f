#include "common/cpu.h"

#include <atomic>

namespace infoseg {

Isa best_isa() {
#if INFOSEG_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

namespace {

Isa fastest_isa() {
  const Isa best = best_isa();
#if INFOSEG_X86
  // A Sapphire or Emerald Rapids executes a quarter as many bfloat16 pair instructions as float32
  // multiplications a second, which is half as many numbers. On a Zen 4 the loss on pairs took
  // about as long as in float32.
  if (best == Isa::avx512bf16 && !__builtin_cpu_is("amd")) return Isa::avx512;
#endif
  return best;
}

std::atomic<int> current{-1};

}  // namespace

Isa current_isa() {
  int isa = current.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(fastest_isa());
    current.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

bool set_isa(Isa isa) {
  if (isa > best_isa()) return false;
  current.store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa isa) {
  static const char* const names[] = {"portable", "avx2", "avx512", "avx512bf16"};
  return names[static_cast<int>(isa)];
}

}  // namespace infoseg
