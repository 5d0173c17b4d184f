// Runs CUDA kernels on a CPU, unchanged: a stand-in for CUDA's header of the same name, for g++ or
// clang++ on x86-64.
//
// Each CUDA thread of a block is a fiber (a stack and a switch of some nanoseconds); the fibers of
// a block take turns on one OS thread, blocks run one after another. A fiber runs until a
// collective makes it wait, so a schedule is chosen by `set_schedule`. Mistakes that hang or
// corrupt silently on a GPU abort here with the state of every lane: collectives of one warp that
// do not match, a lane outside the mask, a barrier that some threads never reach.
//
// Under ThreadSanitizer each fiber is a thread of its own. As in CUDA's memory model only
// __syncthreads and __syncwarp order memory; shuffles, votes and reductions do not, so a missing
// __syncwarp is a race here too. The functions that keep the fibers' state are not instrumented and
// use no library types, whose inlines would be.
//
// Not modelled: warps that diverge into two collectives at once, more than one block at a time,
// streams.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
}
#define CUDA_HARNESS_QUIET __attribute__((no_sanitize("thread"), noinline))
#else
#define CUDA_HARNESS_QUIET __attribute__((noinline))
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ thread_local
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct int2 {
  int x, y;
};
using cudaStream_t = void*;
enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}

namespace cuda_harness {

constexpr int kMaxThreads = 1024, kWarp = 32;
constexpr size_t kStack = 128 * 1024;

enum class Op { kNone, kSync, kShuffle, kBallot, kMin, kMax, kAdd };
inline const char* name_of(Op op) {
  const char* names[] = {"nothing",           "__syncwarp",        "__shfl_sync",      "__ballot_sync or a vote",
                         "__reduce_min_sync", "__reduce_max_sync", "__reduce_add_sync"};
  return names[static_cast<int>(op)];
}

struct Fiber {
  void* stack_pointer;
  unsigned char* stack;
  void* tsan;
  dim3 index;
  int number;
  bool done;
  const unsigned* waits_for;  // runnable once *waits_for differs from `seen`
  unsigned seen;
  const char* at;
};

struct Warp {
  unsigned arrived, mask, generation;
  Op op;
  uint64_t given[kWarp], result[kWarp];
  int source[kWarp];
  char order[2];  // addresses for ThreadSanitizer, in turns
};

struct Machine {
  Fiber fibers[kMaxThreads];
  Warp warps[kMaxThreads / kWarp];
  int threads, running, unfinished, at_barrier;
  unsigned barrier_generation;
  char barrier_order[2], launch_order;
  void* host_stack_pointer;
  void* host_tsan;
  void (*entry)(void*);
  void* closure;
  dim3 block_index, block_size, grid_size;
  uint64_t schedule;  // 0: in order
};

inline Machine* machine() {
  static Machine* only = static_cast<Machine*>(std::calloc(1, sizeof(Machine)));
  return only;
}

// Threads take turns in their order (0), or in an order drawn from the seed.
inline void set_schedule(uint64_t seed) { machine()->schedule = seed; }

extern "C" void cuda_harness_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.type cuda_harness_switch, @function
cuda_harness_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_harness_switch, .-cuda_harness_switch
)");

[[noreturn]] CUDA_HARNESS_QUIET inline void fail(const char* what) {
  Machine* m = machine();
  std::fprintf(stderr, "cuda_harness: %s (thread %d of block %u)\n", what, m->running, m->block_index.x);
  for (int t = 0; t < m->threads; ++t) {
    const Fiber& f = m->fibers[t];
    const bool waits = f.waits_for && *f.waits_for == f.seen;
    std::fprintf(stderr, "  thread %d: %s%s\n", t,
                 f.done  ? "has returned"
                 : waits ? "waits at "
                         : "runs",
                 !f.done && waits ? f.at : "");
  }
  std::abort();
}

CUDA_HARNESS_QUIET inline void switch_to(void** save, int next) {
  Machine* m = machine();
  m->running = next;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(next < 0 ? m->host_tsan : m->fibers[next].tsan, 1);  // 1: does not order memory
#endif
  cuda_harness_switch(save, next < 0 ? m->host_stack_pointer : m->fibers[next].stack_pointer);
}

// The next fiber that can run; -1 if there is none.
CUDA_HARNESS_QUIET inline int choose_next() {
  Machine* m = machine();
  int start = m->running + 1;
  if (m->schedule) {
    m->schedule ^= m->schedule << 13;
    m->schedule ^= m->schedule >> 7;
    m->schedule ^= m->schedule << 17;
    start = static_cast<int>(m->schedule % static_cast<unsigned>(m->threads));
  }
  for (int step = 0; step < m->threads; ++step) {
    const int t = (start + step) % m->threads;
    const Fiber& f = m->fibers[t];
    if (!f.done && (!f.waits_for || *f.waits_for != f.seen)) return t;
  }
  return -1;
}

CUDA_HARNESS_QUIET inline void wait(const unsigned* generation, unsigned seen, const char* at) {
  Machine* m = machine();
  Fiber& self = m->fibers[m->running];
  self.waits_for = generation;
  self.seen = seen;
  self.at = at;
  const int next = choose_next();
  if (next < 0) fail("no thread can go on");
  if (next != self.number) switch_to(&self.stack_pointer, next);
  self.waits_for = nullptr;
}

CUDA_HARNESS_QUIET inline void release(char* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(address);
#endif
  (void)address;
}

CUDA_HARNESS_QUIET inline void acquire(char* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(address);
#endif
  (void)address;
}

CUDA_HARNESS_QUIET inline void run_thread() {
  Machine* m = machine();
  Fiber* self = &m->fibers[m->running];
  acquire(&m->launch_order);
  m->entry(m->closure);
  release(&m->launch_order);
  self->done = true;
  --m->unfinished;
  const int next = m->unfinished ? choose_next() : -1;
  if (m->unfinished && next < 0) fail("a thread returned that others wait for");
  switch_to(&self->stack_pointer, next);
  std::abort();
}

CUDA_HARNESS_QUIET inline void run_block() {
  Machine* m = machine();
  for (int t = 0; t < m->threads; ++t) {
    Fiber& f = m->fibers[t];
    if (!f.stack) {
      f.stack = static_cast<unsigned char*>(
          mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (f.stack == MAP_FAILED) fail("no memory for stacks");
#if defined(__SANITIZE_THREAD__)
      f.tsan = __tsan_create_fiber(0);
#endif
    }
    f.number = t;
    const auto number = static_cast<unsigned>(t);
    f.index = dim3(number % m->block_size.x, number / m->block_size.x % m->block_size.y,
                   number / (m->block_size.x * m->block_size.y));
    f.done = false;
    f.waits_for = nullptr;
    void** top = reinterpret_cast<void**>(f.stack + kStack) - 1;  // aligned as after a call
    *--top = reinterpret_cast<void*>(&run_thread);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    f.stack_pointer = top;
  }
  for (int w = 0; w * kWarp < m->threads; ++w) m->warps[w].arrived = 0;
  m->at_barrier = 0;
  m->unfinished = m->threads;
#if defined(__SANITIZE_THREAD__)
  m->host_tsan = __tsan_get_current_fiber();
#endif
  release(&m->launch_order);
  m->running = -1;
  switch_to(&m->host_stack_pointer, m->schedule ? choose_next() : 0);
  acquire(&m->launch_order);
}

CUDA_HARNESS_QUIET inline uint64_t collective(Op op, unsigned mask, uint64_t value, int source = 0) {
  Machine* m = machine();
  const int thread = m->running, lane = thread % kWarp;
  Warp& w = m->warps[thread / kWarp];
  const unsigned bit = 1u << lane;
  if (!(mask & bit)) fail("a lane is outside the mask it gives");
  if (w.arrived == 0) {
    w.mask = mask;
    w.op = op;
  } else if (w.mask != mask || w.op != op) {
    std::fprintf(stderr, "cuda_harness: %s with mask %08x meets %s with mask %08x\n", name_of(op), mask, name_of(w.op),
                 w.mask);
    fail("collectives of one warp do not match");
  }
  if (op == Op::kShuffle && !(mask >> (source & 31) & 1)) fail("a shuffle reads a lane outside the mask");
  w.given[lane] = value;
  w.source[lane] = source & 31;
  w.arrived |= bit;
  const unsigned generation = w.generation;
  if (op == Op::kSync) release(&w.order[generation & 1]);
  if (w.arrived == mask) {
    uint64_t ballot = 0, least = ~uint64_t{0}, greatest = 0, sum = 0;
    for (int i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1)) continue;
      ballot |= static_cast<uint64_t>(w.given[i] != 0) << i;
      least = w.given[i] < least ? w.given[i] : least;
      greatest = w.given[i] > greatest ? w.given[i] : greatest;
      sum += w.given[i];
    }
    for (int i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1)) continue;
      switch (op) {
        case Op::kShuffle:
          w.result[i] = w.given[w.source[i]];
          break;
        case Op::kBallot:
          w.result[i] = ballot;
          break;
        case Op::kMin:
          w.result[i] = least;
          break;
        case Op::kMax:
          w.result[i] = greatest;
          break;
        default:
          w.result[i] = sum;
          break;
      }
    }
    w.arrived = 0;
    ++w.generation;
  } else {
    wait(&w.generation, generation, name_of(op));
  }
  if (op == Op::kSync) acquire(&w.order[generation & 1]);
  return w.result[lane];
}

CUDA_HARNESS_QUIET inline void barrier() {
  Machine* m = machine();
  const unsigned generation = m->barrier_generation;
  char* order = &m->barrier_order[generation & 1];
  release(order);
  if (++m->at_barrier == m->threads) {
    m->at_barrier = 0;
    ++m->barrier_generation;
  } else {
    wait(&m->barrier_generation, generation, "__syncthreads");
  }
  acquire(order);
}

CUDA_HARNESS_QUIET inline dim3 thread_index() {
  Machine* m = machine();
  return m->fibers[m->running].index;
}
CUDA_HARNESS_QUIET inline dim3 block_index() { return machine()->block_index; }
CUDA_HARNESS_QUIET inline dim3 block_size() { return machine()->block_size; }
CUDA_HARNESS_QUIET inline dim3 grid_size() { return machine()->grid_size; }

template <dim3 (*ask)(), unsigned dim3::* axis>
struct Coordinate {
  operator unsigned() const { return ask().*axis; }
};
template <dim3 (*ask)()>
struct Coordinates {
  Coordinate<ask, &dim3::x> x;
  Coordinate<ask, &dim3::y> y;
  Coordinate<ask, &dim3::z> z;
};

}  // namespace cuda_harness

constexpr cuda_harness::Coordinates<cuda_harness::thread_index> threadIdx{};
constexpr cuda_harness::Coordinates<cuda_harness::block_index> blockIdx{};
constexpr cuda_harness::Coordinates<cuda_harness::block_size> blockDim{};
constexpr cuda_harness::Coordinates<cuda_harness::grid_size> gridDim{};

inline void __syncthreads() { cuda_harness::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_harness::collective(cuda_harness::Op::kSync, mask, 0); }
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_harness::collective(cuda_harness::Op::kShuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  return static_cast<unsigned>(cuda_harness::collective(cuda_harness::Op::kBallot, mask, vote));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(cuda_harness::collective(cuda_harness::Op::kMin, mask, value));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(cuda_harness::collective(cuda_harness::Op::kMax, mask, value));
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(cuda_harness::collective(cuda_harness::Op::kAdd, mask, value));
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline long long __double_as_longlong(double x) {
  long long bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
// Fibers change only at collectives, so nothing comes between; ThreadSanitizer is to see that it is
// atomic, and unordered.
template <class T>
T atomicAdd(T* address, T value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

template <class... Expected, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given&&... given) {
  using namespace cuda_harness;
  auto call = [&] { kernel(given...); };
  Machine* m = machine();
  m->entry = [](void* closure) { (*static_cast<decltype(call)*>(closure))(); };
  m->closure = &call;
  m->block_size = config->blockDim;
  m->grid_size = config->gridDim;
  m->threads = static_cast<int>(config->blockDim.x * config->blockDim.y * config->blockDim.z);
  if (m->threads > kMaxThreads) return cudaErrorInvalidValue;
  for (unsigned z = 0; z < config->gridDim.z; ++z) {
    for (unsigned y = 0; y < config->gridDim.y; ++y) {
      for (unsigned x = 0; x < config->gridDim.x; ++x) {
        m->block_index = dim3(x, y, z);
        run_block();
      }
    }
  }
  return cudaSuccess;
}
