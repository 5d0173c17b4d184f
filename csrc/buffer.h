// An array of scratch memory that frees itself.
#pragma once

#include "scratch.h"

namespace infoseg {
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
