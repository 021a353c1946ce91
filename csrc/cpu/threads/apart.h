// Keeps the threads of a call on different processors.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace noprop {

// Beside a busy process the system may leave two of our threads on one processor for as long as a
// call lasts, since moving one would only make two on the other. A share of the other processor is
// still worth more than half of this one. So a worker that finds an earlier one on its processor
// moves, and the caller moves helpers that wait behind it and have not even begun.
class Apart {
 public:
  Apart() {
    for (auto& place : place_) place.store(kAway);
  }

  void begin(int32_t worker) { tid_[at(worker)].store(gettid(), std::memory_order_relaxed); }
  void call(int32_t helpers) {
    for (int32_t i = 1; i <= helpers; ++i) place_[at(i)].store(kCalled, std::memory_order_relaxed);
    helpers_ = helpers;
  }
  void leave(int32_t worker) { place_[at(worker)].store(kAway, std::memory_order_relaxed); }

  void keep(int32_t worker) {
    const int here = sched_getcpu();
    place_[at(worker)].store(here, std::memory_order_relaxed);
    if (worker > 0) {
      for (int32_t other = 0; other < worker; ++other)
        if (place_[at(other)].load(std::memory_order_relaxed) == here) return move(worker, worker);
      return;
    }
    for (int32_t helper = 1; helper <= helpers_; ++helper) {
      int called =
          kCalled;  // moved once a call, in which it may have to wait for its new processor
      if (place_[at(helper)].compare_exchange_strong(called, kAway)) move(helper, helper);
    }
  }

 private:
  static constexpr int kAway = -1, kCalled = -2, kMost = 256;
  static size_t at(int32_t worker) { return static_cast<size_t>(std::min(worker, kMost - 1)); }

  // to a processor that none of the first `others` workers is on; its affinity ends as it was
  void move(int32_t worker, int32_t others) {
    const pid_t tid = tid_[at(worker)].load(std::memory_order_relaxed);
    cpu_set_t allowed;
    if (tid == 0 || sched_getaffinity(tid, sizeof allowed, &allowed) != 0) return;
    cpu_set_t free = allowed;
    for (int32_t other = 0; other < others; ++other)
      if (const int cpu = place_[at(other)].load(std::memory_order_relaxed); cpu >= 0)
        CPU_CLR(static_cast<size_t>(cpu), &free);
    if (CPU_COUNT(&free) == 0 || sched_setaffinity(tid, sizeof free, &free) != 0) return;
    sched_setaffinity(tid, sizeof allowed, &allowed);
  }

  std::atomic<int> place_[kMost];  // a processor, kAway, or kCalled
  std::atomic<pid_t> tid_[kMost] = {};
  int32_t helpers_ = 0;
};

}  // namespace noprop
