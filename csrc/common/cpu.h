// The instruction set that the kernels run on, and the dispatch to it.
//
// Every kernel.cpp is compiled once for each instruction set, with INFOSEG_ISA defined as its name
// (setup.py). Its code lies in the namespace of that name. Functions in headers are static: an
// inline function compiled for AVX-512 in one source must not become the copy that the linker keeps
// for all sources. For the same reason a kernel.cpp calls no inline function of the standard
// library. A build may leave out instruction sets: their kernels are weak symbols without an
// address.
#pragma once

// The sanitizers' build compiles one instruction set alone, under the name "portable".
#if defined(__x86_64__) && !defined(INFOSEG_ONE_ISA)
#define INFOSEG_X86 1
#define INFOSEG_WEAK __attribute__((weak))
#else
#define INFOSEG_X86 0
#define INFOSEG_WEAK
#endif

namespace infoseg {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3, amx = 4 };

// Whether this build has the kernels of an instruction set.
bool is_compiled(Isa isa);
// The best compiled instruction set that this CPU has. Throws std::runtime_error when there is
// none.
Isa best_isa();
// The instruction set in use: the fastest on this CPU, or the one that set_isa() chose.
Isa current_isa();
// Chooses an instruction set. Returns false, and changes nothing, when this CPU lacks it or it was
// not compiled.
bool set_isa(Isa isa);
// Asks Linux once for the tile registers of AMX. A process that has them needs larger stacks for
// signals, so it is asked when they are first used. Returns false where it is refused.
bool may_use_amx();
const char* isa_name(Isa isa);

}  // namespace infoseg

// The function of this name that was compiled for the instruction set in use.
#if INFOSEG_X86
#define INFOSEG_COMPILED(name) \
  (current_isa() >= Isa::avx512 ? avx512::name : current_isa() == Isa::avx2 ? avx2::name : portable::name)
#else
#define INFOSEG_COMPILED(name) portable::name
#endif

#define INFOSEG_DECLARED(Result, name, Arguments) \
  namespace portable {                            \
  INFOSEG_WEAK Result name(const Arguments& a);   \
  }                                               \
  namespace avx2 {                                \
  INFOSEG_WEAK Result name(const Arguments& a);   \
  }                                               \
  namespace avx512 {                              \
  INFOSEG_WEAK Result name(const Arguments& a);   \
  }

// Declares a kernel, a function of one struct, for each instruction set; kernel.cpp defines it.
// Also defines infoseg::name, which calls the kernel for the instruction set in use.
#define INFOSEG_KERNEL(Result, name, Arguments) \
  INFOSEG_DECLARED(Result, name, Arguments)     \
  static inline Result name(const Arguments& a) { return INFOSEG_COMPILED(name)(a); }

// The same for a kernel that setup.py may also compile with instructions that multiply bfloat16.
// Those kernels take bfloat16 features alone.
#if INFOSEG_X86
#define INFOSEG_BF16_KERNEL(Result, name, Arguments)                                        \
  INFOSEG_DECLARED(Result, name, Arguments)                                                 \
  namespace avx512bf16 {                                                                    \
  INFOSEG_WEAK Result name(const Arguments& a);                                             \
  }                                                                                         \
  namespace amx {                                                                           \
  INFOSEG_WEAK Result name(const Arguments& a);                                             \
  }                                                                                         \
  static inline Result name(const Arguments& a) {                                           \
    if (a.features.dtype == DType::bf16) {                                                  \
      if (current_isa() == Isa::amx && amx::name && may_use_amx()) return amx::name(a);     \
      if (current_isa() == Isa::avx512bf16 && avx512bf16::name) return avx512bf16::name(a); \
    }                                                                                       \
    return INFOSEG_COMPILED(name)(a);                                                       \
  }
#else
#define INFOSEG_BF16_KERNEL(Result, name, Arguments) INFOSEG_KERNEL(Result, name, Arguments)
#endif
