// Slices' steps as tasks: how many steps each has, and that threads take each step of a slice once,
// one after the other, and never two of a slice at the same time.
#include "cpu/threads/step_tasks.h"

#include <atomic>
#include <cstdio>
#include <deque>

#include "cpu/threads/schedule.h"

namespace {

// the steps that were taken out of turn, twice, not at all, or beside another of the slice
int64_t faults(int64_t n, int64_t first, int64_t last, int64_t steps, int threads) {
  noprop::StepTasks tasks(n, first, last, steps);
  std::atomic<int64_t> faults{0}, left{tasks.count()};
  struct Slice {
    std::atomic<int> holders{0};
    std::atomic<int64_t> next;
  };
  std::deque<Slice> slices(static_cast<size_t>(n));
  for (Slice& slice : slices) slice.next = first;
  std::deque<std::thread> workers;
  for (int worker = 0; worker < threads; ++worker)
    workers.emplace_back([&] {
      while (left.fetch_sub(1) > 0) {
        const noprop::StepTask task = tasks.take([] {});
        Slice& slice = slices[static_cast<size_t>(task.slice)];
        faults += slice.holders.fetch_add(1) != 0;
        for (int64_t k = task.first; k < task.last; ++k) faults += slice.next.fetch_add(1) != k;
        std::this_thread::yield();
        slice.holders.fetch_sub(1);
        tasks.finish(task);
      }
    });
  for (std::thread& worker : workers) worker.join();
  for (const Slice& slice : slices) faults += slice.next != last;
  return faults;
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
  std::puts("]}");
  return 0;
}
