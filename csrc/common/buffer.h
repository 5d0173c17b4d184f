// Scratch memory, aligned to a cache line, that frees itself. It is allocated before a parallel
// region starts, never inside one, so that bad_alloc reaches the caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infoseg {

// Defined in scratch.cpp, which is compiled for the plain instruction set.
void* scratch_allocate(size_t bytes);
void scratch_free(void* p) noexcept;

namespace INFOSEG_ISA {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n)
      : data_(n > 0 ? static_cast<T*>(scratch_allocate(sizeof(T) * static_cast<size_t>(n))) : nullptr) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_) scratch_free(data_);
  }
  operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace INFOSEG_ISA
}  // namespace infoseg
