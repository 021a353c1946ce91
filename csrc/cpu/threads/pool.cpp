#include "cpu/threads/pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/threads/apart.h"
#include "cpu/threads/clock.h"
#include "cpu/threads/denormals.h"
#include "cpu/threads/relax.h"
#include "cpu/threads/workspace.h"

namespace noprop {
namespace {

constexpr double kSpinSeconds = 50e-6;
// Of OpenMP's threads: an idle one comes sooner; a later one had to wait for a processor. How long
// it is not asked again, which doubles each time that it is late.
constexpr double kLateSeconds = 0.5e-3, kLeastCrowdedSeconds = 0.25, kMostCrowdedSeconds = 4;
constexpr double kFetchSeconds = 0.2e-3;  // from one look at threads that do not run to the next
constexpr int kPauseSoft = 1;             // of omp_pause_resource_t
constexpr int32_t kNoLimit = std::numeric_limits<int32_t>::max();

}  // namespace

class Pool {
 public:
  using Task = std::function<void(int64_t, const Worker&)>;

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

  bool is_of_this_process() const { return process_ == getpid(); }

  // The host's turn, if it comes soon, and the threads that it may use.
  bool begin(Host& host) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto me = std::this_thread::get_id();
    ++waiting_;
    // whoever had the last turn lets another thread go first, so that a loop of calls starves none
    const bool mine = turn_.wait_for(lock, std::chrono::duration<double>(kPollSeconds),
                                     [&] { return !busy_ && (waiting_ == 1 || last_ != me); });
    --waiting_;
    if (!mine) return false;
    last_ = me;
    busy_ = true;
    host.threads_ = grow(host.caller_.threads);
    host.pool_ = this;
    return true;
  }

  void end() {
    if (!is_of_this_process()) return;  // what a fork left of it
    std::lock_guard<std::mutex> lock(mutex_);
    for (int32_t i = 1; i <= helpers(); ++i) apart_.release(i, Apart::When::kLater);
    busy_ = false;
    turn_.notify_all();
  }

  int32_t granted(int32_t wanted) {
    std::lock_guard<std::mutex> lock(mutex_);
    return busy_ ? std::min(wanted, limit_) : grow(wanted);
  }

  static bool run(int64_t count, int64_t bytes, Host& host, const Task& task) {
    if (host.pool_ == nullptr) return run_alone(count, bytes, task);
    try {
      return host.pool_->run_together(count, bytes, host, task);
    } catch (const Forked&) {
      host.status_ = NOPROP_FORKED;
      return false;
    }
  }

 private:
  Pool() : process_(getpid()) { workspaces_.push_back(std::make_unique<Workspace>()); }

  // under mutex_, while no call runs
  int32_t grow(int32_t wanted) {
    limit_ = kNoLimit;
    while (helpers() + 1 < std::min(wanted, limit_)) {
      workspaces_.push_back(std::make_unique<Workspace>());
      try {
        const size_t id = workspaces_.size() - 2;
        std::thread([this, id] { work(id); }).detach();  // ends with the process
      } catch (const std::system_error&) {               // as under RLIMIT_NPROC: fewer do the same
        workspaces_.pop_back();
        limit_ = helpers() + 1;
      }
    }
    return std::max(1, std::min(wanted, limit_));
  }

  int32_t helpers() const { return static_cast<int32_t>(workspaces_.size()) - 1; }

  // by a thread whose other call has the pool
  static bool run_alone(int64_t count, int64_t bytes, const Task& task) {
    Workspace own;
    const Worker worker = {0, own.get(bytes)};
    if (worker.workspace == nullptr) return false;
    const FloatMode flush(float_mode() | kFlush);
    for (int64_t i = 0; i < count; ++i) task(i, worker);
    return true;
  }

  bool run_together(int64_t count, int64_t bytes, Host& host, const Task& task) {
    const int32_t helpers =
        static_cast<int32_t>(std::min<int64_t>(host.threads_, std::max<int64_t>(count, 1))) - 1;
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
    }
    if (helpers == 0) {
      drain(0, apart_);
      return true;
    }
    if (host.caller_.openmp != nullptr && run_on_openmp(*host.caller_.openmp, host)) return true;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_ = helpers;
      generation_.fetch_add(1, std::memory_order_release);
    }
    apart_.begin(0);
    apart_.call(helpers);
    host.apart_ = &apart_;
    wake_.notify_all();
    drain(0, apart_);
    {
      // those that have not come, since another process keeps them from running, are not needed
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_ = 0;
    }
    wait_for_helpers(host);
    return true;
  }

  // On the threads of the caller's OpenMP runtime. Those have all to come before it returns: where
  // another process keeps one from running, the next calls are on our own. False: nothing ran.
  bool run_on_openmp(const NopropOpenMP& openmp, Host& host) {
    struct Region {
      Pool& pool;
      Host& host;
      const NopropOpenMP& openmp;
      const std::thread::id caller = std::this_thread::get_id();
      const double begin = now();
      std::atomic<int32_t> helpers{0};
      std::atomic<bool> late{false};
      bool ran = false;
    } region{*this, host, openmp};
    theirs_apart_.begin(0);
    host.apart_ = &theirs_apart_;
    if (region.begin >= crowded_until_)
      openmp.parallel(
          [](void* data) {
            Region& here = *static_cast<Region*>(data);
            if (here.openmp.num_threads() < here.host.threads_) return;  // as by OMP_THREAD_LIMIT
            if (std::this_thread::get_id() != here.caller) {
              if (now() > here.begin + kLateSeconds) here.late.store(true);
              return here.pool.help(1 + here.helpers.fetch_add(1));
            }
            here.pool.drain(0, here.pool.theirs_apart_);
            here.pool.wait_for_helpers(here.host);
            here.ran = true;
          },
          &region, static_cast<unsigned>(host.threads_), 0);
    if (region.late.load()) {
      crowded_until_ = now() + crowded_seconds_;
      crowded_seconds_ = std::min(2 * crowded_seconds_, kMostCrowdedSeconds);
    } else if (region.ran) {  // by chance, or since the other process has ended
      crowded_seconds_ = std::max(0.98 * crowded_seconds_, kLeastCrowdedSeconds);
    }
    if (!region.ran) openmp.pause(kPauseSoft);
    return region.ran;
  }

  void drain(int32_t id, Apart& apart) {
    const Worker worker = {id, (*current_)[static_cast<size_t>(id)]};
    const FloatMode flush(float_mode() | kFlush);
    apart.join(id);
    for (;;) {
      const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (task >= count_) return apart.leave(id);
      (*task_)(task, worker);
    }
  }

  // by a thread of OpenMP
  void help(int32_t id) {
    if (static_cast<size_t>(id) >= current_->size()) return;
    theirs_apart_.begin(id);
    running_.fetch_add(1, std::memory_order_relaxed);
    drain(id, theirs_apart_);
    theirs_apart_.release(id, Apart::When::kNow);
    leave(theirs_apart_);
  }

  void leave(Apart& apart) {
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> done(mutex_);
      done_.notify_one();
    }
    apart.fetch(0, 0);
  }

  void work(size_t id) {
    apart_.begin(static_cast<int32_t>(id) + 1);
    uint64_t seen = 0;
    for (;;) {
      const double parked_at = now() + kSpinSeconds;
      // to yield beside a busy process is to wait for milliseconds
      while (generation_.load(std::memory_order_acquire) == seen && now() < parked_at) relax();
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
      drain(static_cast<int32_t>(id) + 1, apart_);
      leave(apart_);
    }
  }

  void wait_for_helpers(Host& host) {
    const double parked_at = now() + kSpinSeconds;
    while (running_.load(std::memory_order_acquire) > 0 && now() < parked_at)
      std::this_thread::yield();
    for (bool fetched = false; running_.load(std::memory_order_acquire) > 0;) {
      host.go_on(0);
      host.apart_->leave(0);  // it has no task that another could fetch it for
      fetched = fetched || host.apart_->fetch(1, helpers());
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait_for(lock, std::chrono::duration<double>(fetched ? kPollSeconds : kFetchSeconds),
                     [&] { return running_.load(std::memory_order_acquire) == 0; });
    }
  }

  const pid_t process_;
  Apart apart_, theirs_apart_;  // of our own threads, and of OpenMP's
  std::mutex mutex_;
  std::condition_variable wake_, done_, turn_;
  bool busy_ = false;                                   // a call has its turn
  int32_t waiting_ = 0;                                 // threads, for theirs
  std::thread::id last_;                                // that had one
  double crowded_until_ = 0;                            // with OpenMP's threads
  double crowded_seconds_ = kLeastCrowdedSeconds;       // from the next that is late
  int32_t limit_ = kNoLimit;                            // of the system, met by the last call
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // the calling thread's first
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_task_{0};
  std::atomic<int32_t> running_{0};  // helpers that have joined
  int64_t count_ = 0;
  int32_t helpers_ = 0;  // that may join the call
  const Task* task_ = nullptr;
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
    relax();
  }
}

bool Host::take_turn() { return Pool::instance().begin(*this); }

void Host::end_turn() { pool_->end(); }

bool Host::forked() const { return !pool_->is_of_this_process(); }

bool run_tasks(int64_t count, int64_t bytes, Host& host,
               const std::function<void(int64_t, const Worker&)>& run) {
  return Pool::run(count, bytes, host, run);
}

int32_t granted_threads(int32_t wanted) { return Pool::instance().granted(wanted); }

}  // namespace noprop
