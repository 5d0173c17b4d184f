// Walks over the images of a tile, for terms of pairs of images. Image b's partners are b + 1 .. b + n, so the images
// are taken in their order and each waits for its last partner. The images of a tile are cut into runs, which are what
// the threads share: a run needs besides its own images the n behind it, and for gradients the n before it.
#pragma once

#include "mutual_information_kernel.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Images first .. end - 1 of a tile. They are numbered on beyond B - 1, and before 0.
struct Run {
  int64_t tile, first, end;
  bool whole;  // all images there are
  bool holds(int64_t b) const { return first <= b && b < end; }
};

// Calls walk(thread, run, coming) for each of a loss's runs; `coming` is the thread's next one, or this one again.
template <class E, class A, class F>
static inline void for_each_run(const Loss<E, A>& loss, const F& walk) {
  const int64_t B = loss.B, tiles = loss.tiles;
  // Runs a tile: as many as share the work best, counted in images.
  int64_t runs = 1, least = -1;
  for (int64_t more = 1; more <= B && more <= loss.threads; ++more) {
    const int64_t turns = (tiles * more + loss.threads - 1) / loss.threads;
    const int64_t work = turns * ((B + more - 1) / more + loss.n);
    if (least < 0 || work < least) runs = more, least = work;
  }
  const auto run_of = [&](int64_t u) {
    const int64_t i = u % runs;
    return Run{u / runs, B * i / runs, B * (i + 1) / runs, runs == 1};
  };
  auto body = [&](int t) {
    const Range part = share(tiles * runs, loss.threads, t);
    for (int64_t u = part.begin; u < part.end; ++u) walk(t, run_of(u), run_of(u + 1 < part.end ? u + 1 : u));
  };
  parallel_for_floats(loss.threads, body);
}

}  // namespace INFOSEG_ISA
}  // namespace infoseg
