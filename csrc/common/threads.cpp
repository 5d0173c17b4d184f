#include "common/threads.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#endif

namespace infoseg {
namespace {

struct Job {
  void (*fn)(void*, int);
  void* context;
  int threads;
};

// ---------------------------------------------------------------- own pool

class OwnPool {
 public:
  // Returns false when another thread uses the pool: the caller then works alone instead of
  // waiting.
  bool run(const Job& job) {
    std::unique_lock<std::mutex> inside(entry_, std::try_to_lock);
    if (!inside.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < job.threads - 1) {
        const int t = static_cast<int>(workers_.size()) + 1;
        workers_.emplace_back([this, t, seen = generation_] { work(t, seen); });
      }
      job_ = job;
      pending_ = job.threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    job.fn(job.context, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    return true;
  }

 private:
  void work(int t, uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (t >= job_.threads) continue;
      const Job job = job_;
      lock.unlock();
      job.fn(job.context, t);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex entry_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job job_{};
  int pending_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: its threads may outlive every static destructor. After a fork the child abandons
// the parent's pool, whose threads it does not have.
std::atomic<OwnPool*> own_pool{nullptr};

OwnPool* own() {
  OwnPool* pool = own_pool.load(std::memory_order_acquire);
  if (pool) return pool;
  OwnPool* fresh = new OwnPool;
  if (own_pool.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;
  return pool;
}

// ---------------------------------------------------------------- PyTorch's OpenMP pool
//
// libgomp's threads spin for a while after each parallel region. A second pool would share the
// cores with the spinning threads, so the kernels use the pool that PyTorch has loaded.

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OmpInt = int (*)();

struct OpenMp {
  GompParallel parallel = nullptr;
  OmpInt thread_num = nullptr, num_threads = nullptr, in_parallel = nullptr;
};

std::atomic<bool> forked{false};
std::atomic<int> chosen{static_cast<int>(Pool::automatic)};

#if defined(__linux__)
struct Found {
  char path[4096] = "";
  bool from_torch = false;
};

int look_at(dl_phdr_info* info, size_t, void* data) {
  auto* found = static_cast<Found*>(data);
  const char* name = info->dlpi_name;
  if (!name || !std::strstr(name, "libgomp")) return 0;
  const bool from_torch = std::strstr(name, "torch") != nullptr;
  if ((!found->path[0] || (from_torch && !found->from_torch)) && std::strlen(name) < sizeof(found->path)) {
    std::strcpy(found->path, name);
    found->from_torch = from_torch;
  }
  return 0;
}

OpenMp find_openmp() {
  OpenMp omp;
  Found found;
  dl_iterate_phdr(look_at, &found);
  if (!found.path[0]) return omp;
  void* library = dlopen(found.path, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return omp;
  omp.thread_num = reinterpret_cast<OmpInt>(dlsym(library, "omp_get_thread_num"));
  omp.num_threads = reinterpret_cast<OmpInt>(dlsym(library, "omp_get_num_threads"));
  omp.in_parallel = reinterpret_cast<OmpInt>(dlsym(library, "omp_in_parallel"));
  if (omp.thread_num && omp.num_threads && omp.in_parallel)
    omp.parallel = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  return omp;
}

void after_fork_in_child() {
  // libgomp hangs in a child whose parent had used it.
  forked.store(true);
  own_pool.store(nullptr);
}

const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork_in_child);
#else
OpenMp find_openmp() { return {}; }
#endif

const OpenMp& openmp() {
  // Searched for until it is found: PyTorch may be imported after this module.
  static OpenMp omp;
  static std::atomic<bool> ready{false};
  static std::mutex mutex;
  if (!ready.load(std::memory_order_acquire)) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!ready.load(std::memory_order_relaxed)) {
      OpenMp fresh = find_openmp();
      if (!fresh.parallel) {
        static const OpenMp none;
        return none;
      }
      omp = fresh;
      ready.store(true, std::memory_order_release);
    }
  }
  return omp;
}

struct OmpJob {
  const Job* job;
  const OpenMp* omp;
};

void omp_region(void* data) {
  const auto* region = static_cast<const OmpJob*>(data);
  // When the team is smaller than requested, one thread does the work of several.
  const int team = region->omp->num_threads();
  for (int t = region->omp->thread_num(); t < region->job->threads; t += team) region->job->fn(region->job->context, t);
}

bool use_openmp() {
  return chosen.load(std::memory_order_relaxed) != static_cast<int>(Pool::own) &&
         !forked.load(std::memory_order_relaxed) && openmp().parallel;
}

}  // namespace

void set_pool(Pool pool) { chosen.store(static_cast<int>(pool)); }

const char* pool_name() { return use_openmp() ? "openmp" : "own"; }

void parallel(int threads, void (*fn)(void*, int), void* context) {
  const Job job{fn, context, threads};
  if (threads > 1) {
    if (use_openmp()) {
      const OpenMp& omp = openmp();
      if (!omp.in_parallel()) {
        OmpJob region{&job, &omp};
        omp.parallel(omp_region, &region, static_cast<unsigned>(threads), 0);
        return;
      }
    } else {
      try {
        if (own()->run(job)) return;
      } catch (...) {
        // No thread could be started. The caller does all the parts below. None ran before: run()
        // throws only before the first part starts.
      }
    }
  }
  for (int t = 0; t < threads; ++t) fn(context, t);
}

}  // namespace infoseg
