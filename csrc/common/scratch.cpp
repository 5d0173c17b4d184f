#include <cstdlib>
#include <new>

namespace infoseg {

void* scratch_allocate(size_t bytes) {
  void* p = std::aligned_alloc(64, (bytes + 127) / 64 * 64);
  if (!p) throw std::bad_alloc();
  return p;
}

void scratch_free(void* p) noexcept { std::free(p); }

}  // namespace infoseg
