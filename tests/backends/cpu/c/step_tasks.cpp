// Slices' steps as tasks: how many steps each has, that threads take each step of a slice once, one
// after the other, and never two of a slice at the same time, and that slow and fast threads end
// together.
#include "cpu/threads/step_tasks.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <deque>
#include <thread>
#include <vector>

#include "cpu/threads/schedule.h"

namespace {

// the steps that were taken out of turn, twice, not at all, or beside another of the slice
int64_t faults(int64_t n, int64_t first, int64_t last, int64_t steps, int threads) {
  noprop::StepTasks tasks(n, first, last, steps, threads);
  std::atomic<int64_t> faults{0};
  struct Slice {
    std::atomic<int> holders{0};
    std::atomic<int64_t> next;
  };
  std::deque<Slice> slices(static_cast<size_t>(n));
  for (Slice& slice : slices) slice.next = first;
  std::deque<std::thread> workers;
  for (int worker = 0; worker < threads; ++worker)
    workers.emplace_back([&, worker] {
      for (noprop::StepTask task; tasks.take(task); tasks.finish(task, worker)) {
        Slice& slice = slices[static_cast<size_t>(task.slice)];
        faults += slice.holders.fetch_add(1) != 0;
        for (int64_t k = task.first; k < task.last; ++k) faults += slice.next.fetch_add(1) != k;
        std::this_thread::yield();
        slice.holders.fetch_sub(1);
      }
    });
  for (std::thread& worker : workers) worker.join();
  for (const Slice& slice : slices) faults += slice.next != last;
  return faults;
}

// When the last of workers ends that need so long for a step, and how many tasks they took.
struct Simulated {
  int64_t end, tasks;
};

Simulated simulated(int64_t n, int64_t steps, const std::vector<int64_t>& seconds_a_step) {
  struct Holder {
    noprop::StepTask task;
    int64_t until = 0;
    bool holds = false, over = false;
  };
  const auto workers = static_cast<int32_t>(seconds_a_step.size());
  noprop::StepTasks tasks(n, 0, steps, steps, workers);
  std::vector<Holder> holders(seconds_a_step.size());
  Simulated result = {};
  for (;;) {
    int32_t next = -1;
    for (int32_t i = 0; i < workers; ++i) {
      const Holder& holder = holders[static_cast<size_t>(i)];
      if (!holder.over && (next < 0 || holder.until < holders[static_cast<size_t>(next)].until))
        next = i;
    }
    if (next < 0) return result;
    Holder& holder = holders[static_cast<size_t>(next)];
    if (holder.holds) tasks.finish(holder.task, next);
    result.end = std::max(result.end, holder.until);
    holder.holds = tasks.take(holder.task);
    holder.over = !holder.holds;
    if (holder.over) continue;
    result.tasks += 1;
    holder.until +=
        (holder.task.last - holder.task.first) * seconds_a_step[static_cast<size_t>(next)];
  }
}

}  // namespace

int main() {
  int64_t wrong = 0;
  for (int64_t n : {1, 3, 10})
    for (int64_t steps : {1, 2, 5, 7, 100})
      for (int threads : {1, 2, 3, 8}) wrong += faults(n, 2, 22, steps, threads);
  std::printf("{\"faults\": %ld, \"steps\": [", static_cast<long>(wrong));
  const int64_t cases[][3] = {{10, 20, 2}, {10, 20, 8}, {10, 20, 4}, {10, 20, 3}, {3, 20, 2},
                              {5, 20, 2},  {10, 1, 8},  {3, 20, 8},  {8, 20, 8},  {3, 3, 2}};
  const char* before = "";
  for (const auto& [n, steps, threads] : cases) {
    const int64_t each = noprop::steps_a_task(n, steps, static_cast<int32_t>(threads));
    std::printf("%s%ld", before, static_cast<long>(each));
    before = ", ";
  }
  std::printf("], \"simulated\": [");
  const struct {
    int64_t n, steps;
    std::vector<int64_t> seconds_a_step;
  } simulations[] = {{10, 20, {1, 1}}, {10, 20, {1, 2}}, {10, 20, {2, 1}}, {16, 10, {1, 1, 1, 4}}};
  before = "";
  for (const auto& [n, steps, seconds_a_step] : simulations) {
    const auto [end, tasks] = simulated(n, steps, seconds_a_step);
    std::printf("%s[%ld, %ld]", before, static_cast<long>(end), static_cast<long>(tasks));
    before = ", ";
  }
  std::puts("]}");
  return 0;
}
