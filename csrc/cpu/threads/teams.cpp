#include "cpu/threads/teams.h"

#include <deque>

#include "cpu/threads/workspace.h"

namespace noprop {

bool run_teams(int64_t count, int32_t size, int64_t bytes, Host& host,
               const std::function<void(int64_t, const Team&, const Worker&)>& run) {
  if (size == 1)
    return run_tasks(count, bytes, host,
                     [&](int64_t task, const Worker& worker) { run(task, Team{}, worker); });
  static thread_local std::deque<Workspace> kept;
  std::deque<char*> workspaces;
  std::deque<Barrier> barriers;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    if (kept.size() <= at) kept.emplace_back();
    workspaces.push_back(kept[at].get(bytes));
    if (workspaces.back() == nullptr) return false;
    barriers.emplace_back(size);
  }
  const auto wait = [](void* barrier) { static_cast<Barrier*>(barrier)->wait(); };
  // members of a team are neighbours in the queue, and no more of them than threads
  return run_tasks(count * size, 0, host, [&](int64_t number, const Worker& worker) {
    const auto at = static_cast<size_t>(number / size);
    const Team team = {static_cast<int32_t>(number % size), size, wait, &barriers[at]};
    run(number / size, team, {worker.id, workspaces[at]});
  });
}

}  // namespace noprop
