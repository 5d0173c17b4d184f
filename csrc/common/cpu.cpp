#include "common/cpu.h"

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "mutual_information_loss/mutual_information_loss.h"

namespace infoseg {

namespace {

constexpr Isa kBestFirst[] = {Isa::amx, Isa::avx512bf16, Isa::avx512, Isa::avx2, Isa::portable};

#if INFOSEG_X86 && defined(__linux__)
constexpr long kSupportedStates = 0x1021, kRequestState = 0x1023, kTileData = 18;  // of arch_prctl

// Whether this CPU multiplies bfloat16 in tile registers, and Linux can let a process use them.
bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;  // bits of edx
  unsigned a = 0, b = 0, c = 0, d = 0;
  uint64_t states = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTiles) &&
         syscall(SYS_arch_prctl, kSupportedStates, &states) == 0 && (states >> kTileData & 1);
}
#else
bool has_amx() { return false; }
#endif

bool cpu_has(Isa isa) {
#if INFOSEG_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool amx = avx512 && __builtin_cpu_supports("avx512bf16") && has_amx();
  if (isa == Isa::amx) return amx;
  if (isa == Isa::avx512bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx2) return avx2;
#endif
  return isa == Isa::portable;
}

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

bool is_compiled(Isa isa) {
#if INFOSEG_X86
  // The kernel that every instruction set has.
  switch (isa) {
    case Isa::amx:
      return amx::mutual_information_loss != nullptr;
    case Isa::avx512bf16:
      return avx512bf16::mutual_information_loss != nullptr;
    case Isa::avx512:
      return avx512::mutual_information_loss != nullptr;
    case Isa::avx2:
      return avx2::mutual_information_loss != nullptr;
    default:
      return portable::mutual_information_loss != nullptr;
  }
#else
  return isa == Isa::portable;
#endif
}

Isa best_isa() {
  std::string compiled;
  for (Isa isa : kBestFirst) {
    if (!is_compiled(isa)) continue;
    if (cpu_has(isa)) return isa;
    compiled += (compiled.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::runtime_error("its kernels were compiled for " + compiled + " alone, which this CPU cannot run");
}

Isa current_isa() {
  int isa = current.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(fastest_isa());
    current.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

bool set_isa(Isa isa) {
  if (!is_compiled(isa) || !cpu_has(isa)) return false;
  current.store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

bool may_use_amx() {
#if INFOSEG_X86 && defined(__linux__)
  static const bool granted = syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

const char* isa_name(Isa isa) {
  static const char* const names[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
  return names[static_cast<int>(isa)];
}

}  // namespace infoseg
