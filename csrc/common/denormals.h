// Makes denormal numbers (below 1e-38 in float32) count as 0 in the floating-point kernels. The
// probabilities of confident assignments and their products are that small, and a processor
// multiplies them up to a hundred times slower.
#pragma once

#include "common/threads.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace infoseg {

// Holds for the calling thread while the object lives.
class DenormalsAreZero {
 public:
#if defined(__SSE2__)
  DenormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushResults | kReadAsZero); }
  ~DenormalsAreZero() { _mm_setcsr(before_); }
#else
  DenormalsAreZero() {}
#endif
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
#if defined(__SSE2__)
  static constexpr unsigned kFlushResults = 0x8000, kReadAsZero = 0x0040;
  const unsigned before_;
#endif
};

// parallel_for() without denormal numbers.
template <class F>
static inline void parallel_for_floats(int threads, const F& body) {
  parallel_for(threads, [&](int t) {
    const DenormalsAreZero here;
    body(t);
  });
}

}  // namespace infoseg
