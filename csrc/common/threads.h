// Runs one function on several threads. Every kernel divides its work by thread number only, so the
// same number of threads always gives the same bits, on either pool.
#pragma once

#include <cstdint>

namespace infoseg {

// Calls fn(context, t) for every t in 0..threads-1 and returns when all are done. The functions
// must not throw.
void parallel(int threads, void (*fn)(void*, int), void* context);

enum class Pool : int { automatic = 0, own = 1 };
void set_pool(Pool pool);
// The pool that the next parallel region would use: "openmp" (the pool that PyTorch has loaded) or
// "own".
const char* pool_name();

struct Range {
  int64_t begin, end;
};

// Part t of n units, divided evenly into consecutive parts.
static inline Range share(int64_t n, int threads, int t) { return {n * t / threads, n * (t + 1) / threads}; }

template <class F>
static inline void parallel_for(int threads, const F& body) {
  parallel(threads, [](void* context, int t) { (*static_cast<const F*>(context))(t); }, const_cast<F*>(&body));
}

}  // namespace infoseg
