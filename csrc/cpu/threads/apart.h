// Keeps the threads of a call on different processors, and its last ones running.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <ctime>

#include "cpu/threads/clock.h"
#include "cpu/threads/relax.h"

namespace noprop {

// Beside a busy process the system may leave two of our threads on one processor for as long as a
// call lasts, since moving one would only make two on the other. A share of the other processor is
// still worth more than half of this one. So a worker that finds an earlier one on its processor
// moves, and the caller moves helpers that wait behind it and have not even begun. For a while they
// may not come back: the system would bring them again and again, each time for milliseconds.
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
        if (place(other) == here) return move_from(worker, worker);
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
      if (move(worker, kFree, only_here)) return true;
    }
    return false;
  }

  // Gives a worker the affinity that it had before it was moved: at once, or if that is a while
  // ago, so that a loop of calls need not move it again in each.
  enum class When { kNow, kLater };
  void release(int32_t worker, When when) {
    constexpr double kHeldSeconds = 1;
    Affinity& own = affinity_[at(worker)];
    if (!own.held || (when == When::kLater && now() < own.since + kHeldSeconds)) return;
    while (moving().test_and_set(std::memory_order_acquire)) {
      if (when == When::kLater) return;  // whoever is moving may wait for a processor
      relax();
    }
    if (own.held) set_free(tid_[at(worker)].load(std::memory_order_relaxed), own);
    moving().clear(std::memory_order_release);
  }

 private:
  static constexpr int kAway = -1, kCalled = -2, kJoined = -3, kMost = 256;

  struct Affinity {
    std::atomic<bool> held{false};  // it is as chosen, since then, and was as allowed
    std::atomic<double> since;
    cpu_set_t allowed, chosen;
  };

  static size_t at(int32_t worker) { return static_cast<size_t>(std::min(worker, kMost - 1)); }

  int place(int32_t worker) const { return place_[at(worker)].load(std::memory_order_relaxed); }
  void set_place(int32_t worker, int place) {
    place_[at(worker)].store(place, std::memory_order_relaxed);
  }

  // to a processor that none of the first `others` workers is on
  void move_from(int32_t worker, int32_t others) {
    move(worker, kHold, [&](cpu_set_t& allowed) {
      for (int32_t other = 0; other < others; ++other)
        if (const int cpu = place(other); cpu >= 0) CPU_CLR(static_cast<size_t>(cpu), &allowed);
    });
  }

  // Moves a worker at once to a processor of those that choose(allowed) leaves. Its affinity ends
  // as it was, or is held until then; so nobody else may read it meanwhile, to write it back later.
  enum Held : bool { kFree, kHold };
  template <class Choose>
  bool move(int32_t worker, Held held, Choose choose) {
    const pid_t tid = tid_[at(worker)].load(std::memory_order_relaxed);
    if (worker >= kMost - 1) return false;  // which has no place of its own
    if (tid == 0 || moving().test_and_set(std::memory_order_acquire)) return false;
    const bool moved = move_now(tid, affinity_[at(worker)], held, choose);
    moving().clear(std::memory_order_release);
    return moved;
  }

  template <class Choose>
  static bool move_now(pid_t tid, Affinity& own, Held held, Choose choose) {
    cpu_set_t current;
    if (sched_getaffinity(tid, sizeof current, &current) != 0) return false;
    const bool still_held = is_still_held(own, current);
    if (!still_held) own.allowed = current;
    cpu_set_t chosen = own.allowed;
    choose(chosen);
    if (still_held && CPU_EQUAL(&chosen, &current)) return true;
    if (CPU_COUNT(&chosen) == 0 || sched_setaffinity(tid, sizeof chosen, &chosen) != 0)
      return false;
    if (!still_held) own.since = now();
    own.chosen = chosen;
    own.held = true;
    if (held == kFree) set_free(tid, own);
    return true;
  }

  // whether nobody else has set it meanwhile
  static bool is_still_held(const Affinity& own, const cpu_set_t& current) {
    return own.held && CPU_EQUAL(&current, &own.chosen);
  }

  static void set_free(pid_t tid, Affinity& own) {
    cpu_set_t current;
    if (sched_getaffinity(tid, sizeof current, &current) == 0 && is_still_held(own, current))
      sched_setaffinity(tid, sizeof own.allowed, &own.allowed);
    own.held = false;
  }

  static std::atomic_flag& moving() {
    static std::atomic_flag flag;
    return flag;
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
  Affinity affinity_[kMost];
  int32_t helpers_ = 0;
};

}  // namespace noprop
