// A queue of tasks over a pool of threads of our own, parked between calls, re-created after fork.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "noprop.h"

namespace noprop {

class Apart;

// Asked by tasks between steps. On the calling thread, worker 0, it runs the caller's poll, several
// times a second; the others see to it that no two workers share a processor.
class Host {
 public:
  explicit Host(const NopropHost& host) : host_(host) {}
  bool go_on(int32_t worker);
  bool stopped() const;

 private:
  const NopropHost& host_;
  double next_poll_ = 0;
  int stopped_ = 0;
  Apart* apart_ = nullptr;
  friend class Pool;
};

struct Worker {
  int32_t id;       // 0: the calling thread
  char* workspace;  // 64-byte aligned
};

// Runs task(0) .. task(count - 1), each once, on `threads` threads, the calling one among them.
// Each thread has a workspace of `bytes`. False: no memory; nothing ran.
bool run_tasks(int64_t count, int32_t threads, int64_t bytes, Host& host,
               const std::function<void(int64_t task, const Worker&)>& run);

// Where a team's members wait for each other between stages; all of them have to be running.
class Barrier {
 public:
  explicit Barrier(int32_t size) : size_(size) {}
  void wait();

 private:
  const int32_t size_;
  std::atomic<int32_t> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

// affinity and cgroup quota, at least 1
int32_t available_processors();

}  // namespace noprop
