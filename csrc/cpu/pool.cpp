#include "cpu/pool.h"

#include <sched.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cpu/workspace.h"

namespace noprop {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Numbers below 1e-38 count as zero while tasks run. The moments of a unit that has died shrink
// into that range and stay there, and a step on them takes three times as long.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t{1} << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

constexpr double kSpinSeconds = 50e-6;
constexpr double kPollSeconds = 0.05;

}  // namespace

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

bool Host::go_on(int32_t worker) {
  if (apart_ != nullptr) apart_->keep(worker);
  std::atomic_ref<int> stopped(stopped_);
  if (stopped.load(std::memory_order_relaxed)) return false;
  if (worker != 0 || host_.poll == nullptr) return true;
  const double time = now();
  if (time < next_poll_) return true;
  next_poll_ = time + kPollSeconds;
  if (host_.poll(host_.poll_data) == 0) return true;
  stopped.store(1, std::memory_order_relaxed);
  return false;
}

bool Host::stopped() const {
  return std::atomic_ref<int>(const_cast<int&>(stopped_)).load(std::memory_order_relaxed) != 0;
}

class Pool {
 public:
  static Pool& instance() {
    static std::atomic<Pool*> current{nullptr};
    Pool* pool = current.load();
    // a child process has none of its parent's threads; a pool is never destroyed, since its
    // threads outlive static destruction
    while (pool == nullptr || pool->process_ != getpid()) {
      auto fresh = std::unique_ptr<Pool>(new Pool);
      if (current.compare_exchange_strong(pool, fresh.get())) return *fresh.release();
    }
    return *pool;
  }

  bool run(int64_t count, int32_t threads, int64_t bytes, Host& host,
           const std::function<void(int64_t, const Worker&)>& task) {
    std::lock_guard<std::mutex> one_call(call_mutex_);  // a second caller's call waits
    const int32_t helpers =
        static_cast<int32_t>(std::min<int64_t>(std::max(threads, 1), std::max<int64_t>(count, 1))) -
        1;
    while (static_cast<int32_t>(threads_.size()) < helpers) {
      workspaces_.push_back(std::make_unique<Workspace>());
      const size_t id = threads_.size();
      threads_.emplace_back([this, id] { work(id); });
      threads_.back().detach();  // they end with the process
    }
    std::vector<char*> workspaces;
    for (int32_t i = 0; i <= helpers; ++i) {
      workspaces.push_back(workspaces_[static_cast<size_t>(i)]->get(bytes));
      if (workspaces.back() == nullptr) return false;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      next_task_.store(0, std::memory_order_relaxed);
      count_ = count;
      task_ = &task;
      current_ = &workspaces;
      helpers_ = helpers;
      generation_.fetch_add(1, std::memory_order_release);
    }
    apart_.call(helpers);
    host.apart_ = &apart_;
    if (helpers > 0) wake_.notify_all();
    drain(Worker{0, workspaces[0]});
    if (helpers > 0) {
      // those that have not come, since another process keeps them from running, are not needed
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_ = 0;
    }
    wait_for_helpers(host);
    return true;
  }

 private:
  Pool() : process_(getpid()) { workspaces_.push_back(std::make_unique<Workspace>()); }

  void drain(const Worker& worker) {
    const FlushDenormals flush;
    for (;;) {
      const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (task >= count_) return apart_.leave(worker.id);
      (*task_)(task, worker);
    }
  }

  void work(size_t id) {
    apart_.begin(static_cast<int32_t>(id) + 1);
    uint64_t seen = 0;
    for (;;) {
      const double parked_at = now() + kSpinSeconds;
      while (generation_.load(std::memory_order_acquire) == seen && now() < parked_at)
        std::this_thread::yield();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      }
      std::unique_lock<std::mutex> lock(mutex_);
      seen = generation_.load(std::memory_order_acquire);
      const bool takes_part = static_cast<int32_t>(id) < helpers_;
      if (takes_part) running_.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      if (!takes_part) continue;
      drain(Worker{static_cast<int32_t>(id) + 1, (*current_)[id + 1]});
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> done(mutex_);
        done_.notify_one();
      }
    }
  }

  void wait_for_helpers(Host& host) {
    const double parked_at = now() + kSpinSeconds;
    while (running_.load(std::memory_order_acquire) > 0 && now() < parked_at)
      std::this_thread::yield();
    while (running_.load(std::memory_order_acquire) > 0) {
      host.go_on(0);
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait_for(lock, std::chrono::duration<double>(kPollSeconds),
                     [&] { return running_.load(std::memory_order_acquire) == 0; });
    }
  }

  const pid_t process_;
  Apart apart_;
  std::mutex call_mutex_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // the calling thread's first
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_task_{0};
  std::atomic<int32_t> running_{0};  // helpers that have joined
  int64_t count_ = 0;
  int32_t helpers_ = 0;  // that may join the call
  const std::function<void(int64_t, const Worker&)>* task_ = nullptr;
  const std::vector<char*>* current_ = nullptr;
};

void Barrier::wait() {
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  // a stage takes microseconds; a member that waits longer may be waiting for this processor
  constexpr int kSpins = 2000;
  for (int spin = 0; round_.load(std::memory_order_acquire) == round; ++spin) {
    if (spin >= kSpins) {
      std::this_thread::yield();
      continue;
    }
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

bool run_tasks(int64_t count, int32_t threads, int64_t bytes, Host& host,
               const std::function<void(int64_t, const Worker&)>& run) {
  return Pool::instance().run(count, threads, bytes, host, run);
}

int32_t available_processors() {
  int32_t count = static_cast<int32_t>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  // cgroup v2: "quota period" or "max period"; v1: two files
  double quota = -1, period = -1;
  std::string text;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> text >> period && text != "max")
    quota = std::stod(text);
  if (std::ifstream file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"); quota < 0 && file >> quota)
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  if (quota > 0 && period > 0)
    count = std::min(count, static_cast<int32_t>(std::max(1.0, quota / period + 0.5)));
#endif
  return std::max(count, 1);
}

}  // namespace noprop
