// The steps of slices as tasks, where a slice has several, one after the other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/threads/relax.h"

namespace noprop {

struct StepTask {
  int64_t slice, first, last;  // steps
};

// Steps first .. last of n slices, in tasks of at most `steps` ones.
class StepTasks {
 public:
  StepTasks(int64_t n, int64_t first, int64_t last, int64_t steps)
      : last_(last),
        steps_(steps),
        count_(n * ((last - first + steps - 1) / steps)),
        slices_(static_cast<size_t>(n), Slice{first, false}) {}

  int64_t count() const { return count_; }

  // The next steps of a slice that is nobody's, and has the most left. As many tasks as there are
  // may be taken. idle() is called now and then while the slices with steps left are all taken.
  template <class Idle>
  StepTask take(Idle idle) {
    constexpr int kSpins = 2000;  // the system alone keeps another so long behind
    StepTask task;
    for (int spin = 0; !try_take(task); ++spin) {
      if (spin < kSpins) {
        relax();
        continue;
      }
      idle();
      std::this_thread::yield();
    }
    return task;
  }

  void finish(const StepTask& task) {
    std::lock_guard<std::mutex> lock(mutex_);
    slices_[static_cast<size_t>(task.slice)] = {task.last, false};
  }

 private:
  struct Slice {
    int64_t next;
    bool taken;
  };

  bool try_take(StepTask& task) {
    std::lock_guard<std::mutex> lock(mutex_);
    Slice* found = nullptr;
    for (Slice& slice : slices_)
      if (!slice.taken && slice.next < last_ && (found == nullptr || slice.next < found->next))
        found = &slice;
    if (found == nullptr) return false;
    found->taken = true;
    task = {found - slices_.data(), found->next, std::min(found->next + steps_, last_)};
    return true;
  }

  const int64_t last_, steps_, count_;
  std::mutex mutex_;
  std::vector<Slice> slices_;
};

}  // namespace noprop
