// Keeps the threads of a call on different processors, and its last ones running.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <ctime>

namespace noprop {

// Beside a busy process the system may leave two of our threads on one processor for as long as a
// call lasts, since moving one would only make two on the other. A share of the other processor is
// still worth more than half of this one. So a worker that finds an earlier one on its processor
// moves, and the caller moves helpers that wait behind it and have not even begun.
//
// At the end of a call the system may leave one of our threads waiting behind the busy process,
// for milliseconds, beside the idle processor of another that has nothing left to do. So the other
// fetches it.
class Apart {
 public:
  Apart() {
    for (auto& place : place_) place.store(kAway);
  }

  void begin(int32_t worker) { tid_[at(worker)].store(gettid(), std::memory_order_relaxed); }
  void call(int32_t helpers) {
    for (int32_t i = 1; i <= helpers; ++i) set_place(i, kCalled);
    helpers_ = helpers;
  }
  void join(int32_t worker) { set_place(worker, kJoined); }
  void leave(int32_t worker) { set_place(worker, kAway); }

  void keep(int32_t worker) {
    const int here = sched_getcpu();
    set_place(worker, here);
    if (worker > 0) {
      for (int32_t other = 0; other < worker; ++other)
        if (place(other) == here) {
          move_from(worker, worker);
          return;
        }
      return;
    }
    for (int32_t helper = 1; helper <= helpers_; ++helper) {
      int called =
          kCalled;  // moved once a call, in which it may have to wait for its new processor
      if (place_[at(helper)].compare_exchange_strong(called, kAway)) move_from(helper, helper);
    }
  }

  // Moves a worker of first .. last that has joined, and does not run, to the processor of the
  // thread that asks, which is about to wait. False: there is none.
  bool fetch(int32_t first, int32_t last) {
    const int here = sched_getcpu();
    for (int32_t worker = first; here >= 0 && worker <= last; ++worker) {
      const int there = place(worker);
      if (there == kAway || there == kCalled || runs(worker)) continue;
      const auto only_here = [here](cpu_set_t& allowed) {
        const bool may = CPU_ISSET(static_cast<size_t>(here), &allowed);
        CPU_ZERO(&allowed);
        if (may) CPU_SET(static_cast<size_t>(here), &allowed);
      };
      if (move(worker, only_here)) return true;
    }
    return false;
  }

 private:
  static constexpr int kAway = -1, kCalled = -2, kJoined = -3, kMost = 256;
  static size_t at(int32_t worker) { return static_cast<size_t>(std::min(worker, kMost - 1)); }

  int place(int32_t worker) const { return place_[at(worker)].load(std::memory_order_relaxed); }
  void set_place(int32_t worker, int place) {
    place_[at(worker)].store(place, std::memory_order_relaxed);
  }

  // to a processor that none of the first `others` workers is on
  void move_from(int32_t worker, int32_t others) {
    move(worker, [&](cpu_set_t& allowed) {
      for (int32_t other = 0; other < others; ++other)
        if (const int cpu = place(other); cpu >= 0) CPU_CLR(static_cast<size_t>(cpu), &allowed);
    });
  }

  // Moves a worker at once to a processor of those that choose(allowed) leaves. Its affinity ends
  // as it was; so nobody else may read it meanwhile, to write it back later.
  template <class Choose>
  bool move(int32_t worker, Choose choose) {
    static std::atomic_flag moving;
    const pid_t tid = tid_[at(worker)].load(std::memory_order_relaxed);
    if (tid == 0 || moving.test_and_set(std::memory_order_acquire)) return false;
    cpu_set_t allowed;
    bool moved = sched_getaffinity(tid, sizeof allowed, &allowed) == 0;
    if (moved) {
      cpu_set_t chosen = allowed;
      choose(chosen);
      moved = CPU_COUNT(&chosen) > 0 && sched_setaffinity(tid, sizeof chosen, &chosen) == 0;
      if (moved) sched_setaffinity(tid, sizeof allowed, &allowed);
    }
    moving.clear(std::memory_order_release);
    return moved;
  }

  // Whether the clock of a worker's thread moves within some microseconds.
  bool runs(int32_t worker) const {
    constexpr int64_t kLook = 5'000;
    const auto tid = static_cast<uint32_t>(tid_[at(worker)].load(std::memory_order_relaxed));
    // what pthread_getcpuclockid gives, for which Linux has no other way from a thread's number
    const auto of_thread = static_cast<clockid_t>(~tid << 3 | 6);
    const int64_t before = nanoseconds(of_thread), begin = nanoseconds(CLOCK_MONOTONIC);
    while (nanoseconds(CLOCK_MONOTONIC) < begin + kLook) {
    }
    return before < 0 || nanoseconds(of_thread) != before;
  }

  static int64_t nanoseconds(clockid_t clock) {  // -1: there is no such clock
    timespec time;
    if (clock_gettime(clock, &time) != 0) return -1;
    return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  }

  std::atomic<int> place_[kMost];  // a processor, or one of the constants
  std::atomic<pid_t> tid_[kMost] = {};
  int32_t helpers_ = 0;
};

}  // namespace noprop
