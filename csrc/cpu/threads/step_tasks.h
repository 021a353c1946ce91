// The steps of slices as tasks, where a slice has several, one after the other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace noprop {

struct StepTask {
  int64_t slice, first, last;  // steps
};

// Steps first .. last of n slices, in tasks of at most `steps` ones, which so many workers take.
//
// Beside a busy process one worker may have half of its processor's time. Its last task would then
// end long after the others have nothing left to do. So once a worker is two tasks behind another,
// a task has at most its part of a third of the steps that are left.
class StepTasks {
 public:
  StepTasks(int64_t n, int64_t first, int64_t last, int64_t steps, int32_t workers)
      : last_(last),
        steps_(steps),
        left_(n * (last - first)),
        slices_(static_cast<size_t>(n), Slice{first, false}),
        done_(static_cast<size_t>(workers), 0) {}

  // The next steps of a slice that is nobody's, and has the most left. False: there is none, and
  // since whoever has a slice goes on with it, there will be none.
  bool take(StepTask& task) {
    std::lock_guard<std::mutex> lock(mutex_);
    Slice* found = nullptr;
    for (Slice& slice : slices_)
      if (!slice.taken && slice.next < last_ && (found == nullptr || slice.next < found->next))
        found = &slice;
    if (found == nullptr) return false;
    found->taken = true;
    task = {found - slices_.data(), found->next, std::min(found->next + steps_a_task(), last_)};
    left_ -= task.last - task.first;
    return true;
  }

  void finish(const StepTask& task, int32_t worker) {
    std::lock_guard<std::mutex> lock(mutex_);
    slices_[static_cast<size_t>(task.slice)] = {task.last, false};
    done_[static_cast<size_t>(worker)] += task.last - task.first;
  }

 private:
  struct Slice {
    int64_t next;
    bool taken;
  };

  int64_t steps_a_task() {
    const auto [least, most] = std::minmax_element(done_.begin(), done_.end());
    uneven_ = uneven_ || *most - *least >= 2 * steps_;
    if (!uneven_) return steps_;
    const auto parts = static_cast<int64_t>(3 * done_.size());
    return std::clamp<int64_t>(left_ / parts, 1, steps_);
  }

  const int64_t last_, steps_;
  std::mutex mutex_;
  bool uneven_ = false;
  int64_t left_;  // steps that nobody has taken
  std::vector<Slice> slices_;
  std::vector<int64_t> done_;  // steps, by worker
};

}  // namespace noprop
