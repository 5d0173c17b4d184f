// Aligned scratch memory that frees itself. Allocation happens before a parallel region starts, never inside one,
// so that bad_alloc reaches the caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infoseg {

// Defined in scratch.cpp, compiled for the plain instruction set.
void* scratch_allocate(size_t bytes);
void scratch_free(void* p) noexcept;

}  // namespace infoseg
