// Work shared among threads that live for one call.
#pragma once

#include <system_error>
#include <thread>
#include <vector>

namespace infoseg {

// Calls work(0) .. work(threads - 1), each in a thread, the first in the caller's. Where the system grants fewer
// threads, the caller's thread does the rest. `work` must not throw.
template <class Work>
void run_in_threads(int threads, const Work& work) {
  std::vector<std::thread> others;
  int started = 1;
  try {
    others.reserve(threads - 1);
    for (; started < threads; ++started) others.emplace_back(work, started);
  } catch (const std::system_error&) {
  }
  work(0);
  for (int index = started; index < threads; ++index) work(index);
  for (std::thread& other : others) other.join();
}

}  // namespace infoseg
