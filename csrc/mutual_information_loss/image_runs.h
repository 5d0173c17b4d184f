// A walk over the images of a tile, for terms of pairs of images. The partners of image b are b + 1
// .. b + n, so the walk takes the images in order and each waits for its last partner. Threads
// share the work by runs of consecutive images of a tile. A run also needs the n images after it,
// and for gradients the n images before it.
#pragma once

#include "mutual_information_loss/loss.h"

namespace infoseg {
namespace INFOSEG_ISA {

// Images first .. end - 1 of a tile. Image numbers are modulo B and may be negative or exceed B -
// 1.
struct Run {
  int64_t tile, first, end;
  bool whole;  // holds the whole batch
  bool holds(int64_t b) const { return first <= b && b < end; }
};

// Calls walk(thread, run, coming) for each run of a loss; `coming` is the thread's next run, or
// this one at the end.
template <class A, class F>
static inline void for_each_run(const Loss<A>& loss, const F& walk) {
  const int64_t B = loss.B, tiles = loss.tiles;
  // The number of runs in a tile that divides the work best, counted in images.
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
