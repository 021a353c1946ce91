// A thread that holds a task, and waits for its processor behind a busy one, is fetched to the
// processor of the thread that asks; one that holds none, or may not run there, is left alone. A
// worker leaves the processor of an earlier one, and may not come back until it is released, unless
// the user has said meanwhile where it may run.
#include "cpu/threads/apart.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kLong = std::chrono::seconds(60);  // on a machine that is busy with others too

std::atomic<bool> over{false};

void hold(pid_t tid, const cpu_set_t& cpus) {
  if (sched_setaffinity(tid, sizeof cpus, &cpus) != 0) std::perror("sched_setaffinity");
}

cpu_set_t only(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(cpu), &one);
  return one;
}

// what done() says in the end, or false after a long time
template <class Done>
bool in_the_end(Done done) {
  const auto begin = Clock::now();
  while (!done())
    if (Clock::now() > begin + kLong) return false;
  return true;
}

bool is_held(pid_t tid, const cpu_set_t& cpus) {
  cpu_set_t now;
  return sched_getaffinity(tid, sizeof now, &now) == 0 && CPU_EQUAL(&now, &cpus);
}

// what keeps a worker on, and then off, the processor of an earlier one, as bits that are 1 if
// right
int keeps_apart(int here, const cpu_set_t& all) {
  using When = noprop::Apart::When;
  static noprop::Apart apart;
  cpu_set_t others = all;
  CPU_CLR(static_cast<size_t>(here), &others);
  apart.begin(0);
  apart.keep(0);  // this thread is held there
  int right = 0;
  std::thread([&] {
    const pid_t me = gettid();
    apart.begin(1);
    const auto moved = [&] {
      hold(0, only(here));
      hold(0, all);
      apart.keep(1);
      return is_held(me, others);
    };
    right |= in_the_end(moved) && sched_getcpu() != here ? 1 : 0;
    apart.release(1, When::kLater);
    right |= is_held(me, others) ? 2 : 0;
    apart.release(1, When::kNow);
    right |= is_held(me, all) ? 4 : 0;
    in_the_end(moved);
    hold(0, only(here));
    apart.release(1, When::kNow);
    right |= is_held(me, only(here)) ? 8 : 0;
  }).join();
  return right;
}

}  // namespace

int main() {
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return 1;
  int here = -1, there = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE && there < 0; ++cpu)
    if (CPU_ISSET(static_cast<size_t>(cpu), &all)) (here < 0 ? here : there) = cpu;
  if (there < 0) {
    std::puts("{\"processors\": 1}");
    return 0;
  }
  static noprop::Apart apart;
  std::atomic<pid_t> worker{0};
  std::atomic<int> seen{-1};
  std::thread busy([&] {
    hold(0, only(there));
    while (!over) {
    }
  });
  std::thread working([&] {
    apart.begin(1);
    hold(0, only(there));
    worker = gettid();
    while (!over) seen = sched_getcpu();
  });
  hold(0, only(here));
  in_the_end([&] { return worker != 0; });

  const auto fetched = [&] { return apart.fetch(1, 1); };
  // tried often enough to find it waiting at times
  const auto tries = [&] {
    int times = 0;
    for (int turn = 0; turn < 200; ++turn) {
      times += fetched();
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    return times;
  };
  apart.join(1);
  int wrong = tries();  // it may run there alone
  wrong += !is_held(worker, only(there));
  hold(worker, all);
  apart.leave(1);
  wrong += tries();
  apart.join(1);
  const bool moved = in_the_end(fetched), kept = is_held(worker, all);
  const bool ran_here = in_the_end([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // its processor is free
    return seen == here;
  });
  over = true;
  working.join();
  busy.join();
  std::printf("{\"processors\": 2, \"wrong\": %d, \"moved\": %d, \"kept\": %d, \"ran_here\": %d, ",
              wrong, moved, kept, ran_here);
  std::printf("\"apart\": %d}\n", keeps_apart(here, all));
  return 0;
}
