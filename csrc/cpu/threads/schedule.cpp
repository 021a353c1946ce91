#include "cpu/threads/schedule.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "cpu/motion.h"
#include "cpu/threads/pool.h"

namespace noprop {
namespace {

// The bytes of packed rows. They are few steps' rows, so that they are still in the last cache when
// the last slice reads them, beside the state of the slices at work.
int64_t shared_bytes() {
  constexpr int64_t kLeast = int64_t{4} << 20, kMost = int64_t{16} << 20;
  static const int64_t cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::clamp(cache / 4, kLeast, kMost);
}

// The multiply-adds of one row in forward, over all layers, and the weights.
struct Work {
  int64_t multiply_adds = 0, weights = 0;
};

Work work_of(const NopropPlan& plan) {
  Work work;
  for (int32_t l = 0; l < plan.num_layers; ++l) {
    const NopropLayer& layer = plan.layers[l];
    int64_t in = 0;
    for (int32_t s = 0; s < layer.num_sources; ++s) {
      const int32_t source = layer.sources[s], j = source - plan.num_inputs;
      in += j < 0 ? plan.input_widths[source] : plan.layers[j].width;
    }
    work.multiply_adds += multiply_adds_of(layer, in);
    work.weights += weights_of(layer, in);
  }
  return work;
}

int64_t multiply_adds(const NopropPlan& plan) { return work_of(plan).multiply_adds; }

// the threads of each of n tasks, such that each thread has at least flop_a_member of a task's work
int32_t shared_by(int64_t n, int64_t flop, int64_t flop_a_member, int32_t threads) {
  constexpr int64_t kMost = 64;
  return static_cast<int32_t>(std::max<int64_t>(
      1, std::min({threads / std::max<int64_t>(n, 1), flop / flop_a_member, kMost})));
}

}  // namespace

bool is_shared(const NopropInput& input, int64_t n) {
  return n > input.replicas && (input.indices || input.stride_slice == 0);
}

namespace {

int64_t packed_step_bytes(const Isa& isa, const NopropPlan& plan, const NopropInput* inputs,
                          int64_t n, int64_t B) {
  int64_t bytes = 0;
  for (int32_t j = 0; j < plan.num_inputs; ++j)
    if (j != plan.z && is_shared(inputs[j], n))
      bytes += inputs[j].replicas * isa.packed_bytes(&plan, j, B);
  return bytes;
}

}  // namespace

Schedule choose_schedule(const Isa& isa, const NopropPlan& plan, const NopropInput* inputs,
                         int64_t n, int64_t B, int64_t K) {
  const int64_t step_bytes = packed_step_bytes(isa, plan, inputs, n, B);
  if (step_bytes == 0) return {K, false};
  const int64_t fit = shared_bytes() / step_bytes;
  if (K <= fit) return {K, true};
  // a task of one step would fetch the state anew for each
  return fit > 1 ? Schedule{fit, true} : Schedule{K, false};
}

int64_t steps_a_task(int64_t n, int64_t steps, int32_t threads) {
  if (n <= threads) return steps;  // of one slice, none run at once
  constexpr double kLoad = 0.5;    // to fetch a slice's state, in steps
  int64_t best = steps;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t tasks = 1; tasks <= std::min<int64_t>(steps, threads); ++tasks) {
    const int64_t each = (steps + tasks - 1) / tasks, rounds = (n * tasks + threads - 1) / threads;
    const double time = static_cast<double>(rounds) * (static_cast<double>(each) + kLoad);
    if (time < least) {
      least = time;
      best = each;
    }
  }
  return best;
}

int64_t packed_bytes(const Isa& isa, const NopropPlan& plan, int64_t n, int64_t B, int64_t K) {
  NopropInput same = {};
  same.replicas = 1;
  const std::vector<NopropInput> inputs(static_cast<size_t>(plan.num_inputs), same);
  const Schedule schedule = choose_schedule(isa, plan, inputs.data(), n, B, K);
  return schedule.packs ? schedule.steps * packed_step_bytes(isa, plan, inputs.data(), n, B) : 0;
}

int32_t team_size(const NopropPlan& plan, int64_t n, int64_t B, int32_t threads) {
  return shared_by(n, 6 * B * multiply_adds(plan), 4'000'000, threads);
}

int32_t parts_team_size(const NopropPlan& plan, int64_t tasks, int64_t rows, int32_t threads) {
  return shared_by(tasks, 2 * rows * multiply_adds(plan), 1'500'000, threads);
}

int32_t update_team_size(const NopropPlan& plan, int64_t n, int32_t threads) {
  // an element takes as long as some fifty operations of a product
  return shared_by(n, 50 * work_of(plan).weights, 1'500'000, threads);
}

int64_t rows_a_task(int64_t n, int64_t B, int64_t width, int32_t threads) {
  constexpr int64_t kUnit = 16, kElements = 16'000;  // whole vectors; some ten microseconds' work
  constexpr int64_t kMost = 32 * 1024;  // elements of which all arrays stay in a second cache
  const int64_t tasks = shared_by(n, B * width, kElements, threads);
  const int64_t rows = (B + tasks * kUnit - 1) / (tasks * kUnit) * kUnit;
  return std::clamp(kMost / width / kUnit * kUnit, kUnit, std::max(kUnit, rows));
}

ChainWork chain_work(const PredictTask& task, int64_t rows) {
  const NopropPlan& plan = *task.slices->plan;
  const bool one_block = task.blocks == 1;
  const int64_t evaluations = one_block ? task.chain->evaluations : 1;
  const Motion motion(plan, one_block ? task.chain->t_input : -1, one_block);
  int64_t of_t = 0, by_pace[3] = {};
  const auto add = [&](Pace pace, bool is_of_t, int64_t multiply_adds) {
    (is_of_t ? of_t : by_pace[static_cast<size_t>(pace)]) += multiply_adds;
  };
  for (int32_t l = 0; l < plan.num_layers; ++l) {
    const NopropLayer& layer = plan.layers[l];
    const int32_t r = plan.num_inputs + l, own = layer.num_sources - motion.trailing[l];
    int64_t left = 0;  // features that are multiplied at the layer's own pace
    for (int32_t s = 0; s < layer.num_sources; ++s) {
      const int32_t source = layer.sources[s], j = source - plan.num_inputs;
      const int64_t width = j < 0 ? plan.input_widths[source] : plan.layers[j].width;
      if (s < motion.leading[l] || s >= own)
        add(Pace::kStill, s >= own, multiply_adds_of(layer, width));
      else
        left += width;
    }
    if (left > 0) add(motion.pace[r], motion.of_t[r], multiply_adds_of(layer, left));
  }
  const int64_t still = by_pace[0], timed = by_pace[1], moving = by_pace[2];
  return {
      .once = rows * still + evaluations * (of_t + rows * timed),
      .a_sample = std::max<int64_t>(1, evaluations * rows * moving),
      .an_evaluation = still / evaluations + timed + moving,
      .rows = rows,
      .one_block = one_block,
  };
}

int64_t samples_a_task(const ChainWork& work, int64_t S, int64_t chains, int32_t threads) {
  if (work.one_block && work.once < work.a_sample / 10) return 1;
  if (work.once >= S * work.a_sample) return S;
  const int64_t groups = std::clamp<int64_t>(threads / chains, 1, S);
  return (S + groups - 1) / groups;
}

int32_t crew_size(int64_t multiply_adds, int64_t chains, int64_t B, int32_t threads) {
  // one row of a product takes as long as four do, since the weights must be read
  return shared_by(chains, 2 * std::max<int64_t>(B, 4) * multiply_adds, 1'000'000, threads);
}

int32_t crew_size(const NopropPlan& plan, int64_t chains, int64_t B, int32_t threads) {
  return crew_size(multiply_adds(plan), chains, B, threads);
}

NopropStatus pack_input(char*& data, const Isa& isa, const NopropPlan& plan,
                        const NopropInput& input, int32_t j, int64_t B, int64_t k_first,
                        int64_t k_last, Host& host) {
  const int64_t runs = (k_last - k_first) * input.replicas;
  data = host.packed(j).get(runs * isa.packed_bytes(&plan, j, B));
  if (data == nullptr) return NOPROP_NO_MEMORY;
  constexpr int64_t kRows = 64;
  const int64_t pieces = (B + kRows - 1) / kRows;
  std::atomic<bool> finite{true};
  const bool ran = run_tasks(runs * pieces, 0, host, [&](int64_t task, const Worker& worker) {
    if (!host.go_on(worker.id)) return;
    const int64_t run = task / pieces, first = task % pieces * kRows;
    const PackTask job = {
        .data = data,
        .plan = &plan,
        .j = j,
        .input = &input,
        .B = B,
        .slot = run,
        .k = k_first + run / input.replicas,
        .replica = run % input.replicas,
        .first_row = first,
        .last_row = std::min(first + kRows, B),
    };
    if (!isa.pack_rows(job)) finite.store(false);
  });
  if (!ran) return host.result(ran).status;
  return finite ? NOPROP_OK : NOPROP_BAD_INPUT;
}

}  // namespace noprop
