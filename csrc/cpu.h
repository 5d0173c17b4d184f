// Which instruction set the kernels run on: the fastest on this CPU, or one chosen for tests.
#pragma once

// The sanitizers' build compiles one instruction set alone, under the name "portable".
#if defined(__x86_64__) && !defined(INFOSEG_ONE_ISA)
#define INFOSEG_X86 1
#else
#define INFOSEG_X86 0
#endif

namespace infoseg {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

Isa best_isa();  // of those this CPU has
Isa default_isa();
Isa current_isa();
// False when this CPU cannot run it; nothing changes then.
bool set_isa(Isa isa);
const char* isa_name(Isa isa);

}  // namespace infoseg
