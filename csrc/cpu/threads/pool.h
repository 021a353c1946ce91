// A queue of tasks over the threads of the caller's OpenMP runtime, or over a pool of our own,
// parked between calls and re-created after fork.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

#include "cpu/threads/host.h"

namespace noprop {

struct Worker {
  int32_t id;       // 0: the calling thread
  char* workspace;  // 64-byte aligned
};

// Runs task(0) .. task(count - 1), each once, on the host's threads, the calling one among them.
// Each thread has a workspace of `bytes`. Returns false if there was no memory and nothing ran, or
// if the process was forked; host.result has the reason.
bool run_tasks(int64_t count, int64_t bytes, Host& host,
               const std::function<void(int64_t task, const Worker&)>& run);

// Runs run(slice, first row, number of rows, workspace) for pieces of `rows` of each of n slices' B
// rows, which are independent.
template <class Run>
NopropResult run_rows(int64_t n, int64_t B, int64_t rows, int64_t bytes, Host& host, Run run) {
  const int64_t pieces = (B + rows - 1) / rows;
  return host.result(run_tasks(n * pieces, bytes, host, [&](int64_t at, const Worker& worker) {
    const int64_t first = at % pieces * rows;
    run(at / pieces, first, std::min(rows, B - first), worker.workspace);
  }));
}

// The threads that the system grants of `wanted` ones for a call, the calling one among them.
int32_t granted_threads(int32_t wanted);

// A team's members wait here for each other between stages. All of them have to be running.
class Barrier {
 public:
  explicit Barrier(int32_t size) : size_(size) {}
  void wait();

 private:
  const int32_t size_;
  std::atomic<int32_t> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

}  // namespace noprop
