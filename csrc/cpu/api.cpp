// The C interface on the CPU: contents are checked, then slices (or rows of a chain) become tasks
// for the pool.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/threads/host.h"
#include "cpu/threads/pool.h"
#include "cpu/threads/schedule.h"
#include "cpu/threads/step_tasks.h"
#include "cpu/threads/teams.h"
#include "noprop.h"

using namespace noprop;

namespace {

// whether an array of addresses, or null, has one
bool has_any(float* const* addresses, int32_t count) {
  for (int32_t j = 0; addresses != nullptr && j < count; ++j)
    if (addresses[j] != nullptr) return true;
  return false;
}

}  // namespace

extern "C" {

NopropResult noprop_train_cpu(const NopropSlices* slices, const NopropNoise* noise,
                              const NopropNoising* noising, const NopropObjective* objective,
                              const NopropEmbedding* embedding, const NopropInput* inputs,
                              const float* z, const NopropLabels* y, const NopropUpdateRule* rule,
                              int64_t B, int64_t K, const NopropTrainOut* out,
                              const NopropHost* caller) {
  const NopropPlan& plan = *slices->plan;
  const int64_t n = slices->n, M = plan.layers[plan.num_layers - 1].width;
  Host host(*caller, slices, rule->kind != NOPROP_NONE);
  if (host.status()) return host.result(false);
  if (const auto bad = check_labels(*y, K, n, B, M); bad.status) return bad;
  const Schedule schedule = choose_schedule(present_isa(), plan, inputs, n, B, K);
  const auto packs = [&](int32_t j) {
    return j != plan.z && schedule.packs && is_shared(inputs[j], n);
  };
  for (int32_t j = 0; j < plan.num_inputs; ++j) {
    if (j == plan.z) continue;
    const NopropInput& input = inputs[j];
    const int64_t gathered = input.indices ? K * input.replicas * B : 0;
    NopropResult bad = check_indices(input.indices, gathered, input.rows);
    // where a slice has one task, rows are checked as they are packed, before its first step
    if (!bad.status && !(packs(j) && schedule.steps == K))
      bad = check_input(present_isa(), input, j, plan.input_widths[j], K, n, B, host);
    if (bad.status) return bad;
  }
  const int32_t size = team_size(plan, n, B, host.threads());
  StepNeeds needs = {.loads_inputs = false,
                     .input_gradients = has_any(out->d_inputs, plan.num_inputs) || out->d_signal ||
                                        out->d_noise || out->d_W_embed,
                     .radial = objective->head == NOPROP_RADIAL,
                     .embedding_grad = out->d_W_embed != nullptr};
  for (int32_t j = 0; j < plan.num_inputs; ++j) needs.loads_inputs |= j != plan.z && !packs(j);
  const int64_t bytes = present_isa().train_bytes(&plan, B, embedding->D, needs, size);

  bool ran = true;
  for (int64_t first = 0; ran && first < K && !host.stopped(); first += schedule.steps) {
    const int64_t last = std::min(first + schedule.steps, K);
    char* packed[kMaxResults] = {};
    for (int32_t j = 0; j < plan.num_inputs; ++j) {
      if (!packs(j)) continue;
      if (const auto bad =
              pack_input(packed[j], present_isa(), plan, inputs[j], j, B, first, last, host))
        return {bad, 0, j};
    }
    const auto run = [&](const StepTask& steps, const Team& team, const Worker& worker) {
      Poll poll = {&host, worker.id};
      const TrainTask task = {
          .slices = slices,
          .noise = noise,
          .noising = noising,
          .objective = objective,
          .embedding = embedding,
          .inputs = inputs,
          .z = z,
          .y = y,
          .rule = rule,
          .B = B,
          .k_first = steps.first,
          .k_last = steps.last,
          .packed = packed,
          .k_packed = first,
          .needs = needs,
          .out = out,
          .go_on = Poll::go_on,
          .host = &poll,
          .team = team,
      };
      present_isa().train_slice(task, steps.slice, worker.workspace);
    };
    if (size > 1) {
      ran = run_teams(n, size, bytes, host, [&](int64_t i, const Team& team, const Worker& worker) {
        run({i, first, last}, team, worker);
      });
      continue;
    }
    const int64_t steps = steps_a_task(n, last - first, host.threads());
    StepTasks tasks(n, first, last, steps, host.threads());
    const auto until_none_is_left = [&](int64_t, const Worker& worker) {
      for (StepTask task; tasks.take(task); tasks.finish(task, worker.id)) run(task, {}, worker);
    };
    ran = run_tasks(std::min<int64_t>(n, host.threads()), bytes, host, until_none_is_left);
  }
  return host.result(ran);
}

NopropResult noprop_add_noise_cpu(float* z, float* eps, const int64_t* seeds,
                                  const NopropNoise* noise, const NopropNoising* noising,
                                  const NopropEmbedding* embedding, const NopropLabels* y,
                                  int64_t n, int64_t B, int64_t M, const NopropHost* caller) {
  Host host(*caller, nullptr, false);
  if (host.status()) return host.result(false);
  if (const auto bad = check_labels(*y, 1, n, B, M); bad.status) return bad;
  const int64_t most = y->indices ? B : rows_a_task(n, B, embedding->D, host.threads());
  const int64_t bytes = present_isa().noise_bytes(std::min(most, B), embedding->D);
  return run_rows(n, B, most, bytes, host,
                  [&](int64_t i, int64_t first, int64_t rows, char* workspace) {
                    const NoiseTask task = {
                        .z = z,
                        .eps = eps,
                        .seeds = seeds,
                        .noise = noise,
                        .noising = noising,
                        .embedding = embedding,
                        .y = y,
                        .first_row = first,
                        .rows = rows,
                        .B = B,
                        .M = M,
                    };
                    present_isa().noise_slice(task, i, workspace);
                  });
}

NopropResult noprop_draw_times_cpu(double* t, const int64_t* seeds, const NopropNoise* noise,
                                   int64_t n, int64_t B, int64_t K, int64_t strata,
                                   const NopropHost* caller) {
  Host host(*caller, nullptr, false);
  if (host.status()) return host.result(false);
  return host.result(run_tasks(K, 0, host, [&](int64_t k, const Worker&) {
    for (int64_t i = 0; i < n; ++i)
      present_isa().draw_times(t + (k * n + i) * B, seeds, *noise, k, i, B, strata);
  }));
}

NopropResult noprop_embed_times_cpu(float* out, const double* t, int64_t count,
                                    const double* frequencies, int64_t n,
                                    const NopropHost* caller) {
  constexpr int64_t kRows = 1024;  // of a task, which handing out should not outweigh
  Host host(*caller, nullptr, false);
  if (host.status()) return host.result(false);
  const auto run = [&](int64_t task, const Worker&) {
    const int64_t first = task * kRows;
    present_isa().embed_times(out + first * 2 * n, t + first, std::min(kRows, count - first),
                              frequencies, n);
  };
  return host.result(run_tasks((count + kRows - 1) / kRows, 0, host, run));
}

int64_t noprop_saved_bytes_cpu(const NopropPlan* plan, int64_t B) {
  return present_isa().saved_bytes(plan, B);
}

int64_t noprop_workspace_bytes_cpu(const NopropPlan* plan, int64_t n, int64_t B, int64_t D,
                                   int64_t K) {
  const StepNeeds needs = {.loads_inputs = packed_bytes(present_isa(), *plan, n, B, K) == 0,
                           .input_gradients = false};
  return present_isa().train_bytes(plan, B, D, needs, 1);
}

int64_t noprop_packed_bytes_cpu(const NopropPlan* plan, int64_t n, int64_t B, int64_t K) {
  return packed_bytes(present_isa(), *plan, n, B, K);
}

NopropResult noprop_forward_cpu(float* logits, void* saved, const NopropSlices* slices,
                                const NopropInput* inputs, const int64_t* seeds,
                                const NopropNoise* noise, int64_t B, int32_t training,
                                const NopropHost* caller) {
  const NopropPlan& plan = *slices->plan;
  // rows are independent without batch statistics; saved results have one layout for the whole
  // batch
  const int64_t piece = training || saved ? B : 256;
  const int64_t pieces = (B + piece - 1) / piece;
  const int64_t slice_bytes = present_isa().saved_bytes(&plan, B);
  Host host(*caller, slices, training != 0);
  if (host.status()) return host.result(false);
  const int64_t count = slices->n * pieces, most_rows = std::min(piece, B);
  const int32_t size = parts_team_size(plan, count, most_rows, host.threads());
  const int64_t bytes = present_isa().forward_bytes(&plan, most_rows, saved != nullptr, size);
  const auto run = [&](int64_t task, const Team& team, const Worker& worker) {
    const int64_t i = task / pieces, first = task % pieces * piece;
    const ForwardTask job = {
        .seeds = seeds,
        .noise = noise,
        .logits = logits,
        .saved = saved ? static_cast<char*>(saved) + i * slice_bytes : nullptr,
        .slices = slices,
        .inputs = inputs,
        .first_row = first,
        .rows = std::min(piece, B - first),
        .B = B,
        .training = training != 0,
        .team = team,
    };
    present_isa().forward_slice(job, i, worker.workspace);
  };
  return host.result(run_teams(count, size, bytes, host, run));
}

NopropResult noprop_head_cpu(float* loss, float* error, float* d_logits, float* u_hat,
                             const float* logits, const float* eps,
                             const NopropObjective* objective, const NopropEmbedding* embedding,
                             const NopropLabels* y, int64_t n, int64_t B, int64_t M,
                             const NopropHost* caller) {
  Host host(*caller, nullptr, false);
  if (host.status()) return host.result(false);
  if (const auto bad = check_labels(*y, 1, n, B, M); bad.status) return bad;
  // the loss is a sum over all rows, in their order
  const bool whole = loss || y->indices;
  const int64_t most = whole ? B : rows_a_task(n, B, M + embedding->D, host.threads());
  const int64_t bytes = present_isa().head_bytes(std::min(most, B), M, embedding->D);
  return run_rows(n, B, most, bytes, host,
                  [&](int64_t i, int64_t first, int64_t rows, char* workspace) {
                    const HeadTask task = {
                        .loss = loss,
                        .error = error,
                        .d_logits = d_logits,
                        .u_hat = u_hat,
                        .logits = logits,
                        .eps = eps,
                        .objective = objective,
                        .embedding = embedding,
                        .y = y,
                        .first_row = first,
                        .rows = rows,
                        .B = B,
                        .M = M,
                    };
                    present_isa().head_slice(task, i, workspace);
                  });
}

NopropResult noprop_backward_cpu(const NopropSlices* slices, const void* saved,
                                 const float* d_logits, float* const* d_inputs,
                                 const NopropUpdateRule* rule, uint8_t* applied, int64_t B,
                                 int32_t training, const NopropHost* caller) {
  const int64_t slice_bytes = present_isa().saved_bytes(slices->plan, B);
  Host host(*caller, slices, rule->kind != NOPROP_NONE);
  if (host.status()) return host.result(false);
  const int32_t size = parts_team_size(*slices->plan, slices->n, B, host.threads());
  const bool input_gradients = has_any(d_inputs, slices->plan->num_inputs);
  const auto run = [&](int64_t i, const Team& team, const Worker& worker) {
    const BackwardTask task = {
        .slices = slices,
        .saved = static_cast<const char*>(saved) + i * slice_bytes,
        .d_logits = d_logits,
        .d_inputs = d_inputs,
        .rule = rule,
        .applied = applied,
        .B = B,
        .training = training != 0,
        .input_gradients = input_gradients,
        .team = team,
    };
    present_isa().backward_slice(task, i, worker.workspace);
  };
  const int64_t bytes = present_isa().backward_bytes(slices->plan, B, input_gradients, size);
  return host.result(run_teams(slices->n, size, bytes, host, run));
}

NopropResult noprop_update_cpu(const NopropSlices* slices, const uint8_t* apply, uint8_t* applied,
                               const NopropUpdateRule* rule, const NopropHost* caller) {
  Host host(*caller, slices, true);
  if (host.status()) return host.result(false);
  const int32_t size = update_team_size(*slices->plan, slices->n, host.threads());
  std::vector<uint8_t> own(static_cast<size_t>(slices->n));
  uint8_t* const moved = applied ? applied : own.data();
  const auto run = [&](int64_t i, const Team& team, const Worker& worker) {
    const UpdateTask task = {slices, rule, apply[i] != 0, applied != nullptr, moved, team};
    present_isa().update_slice(task, i, worker.workspace);
  };
  const auto bytes = static_cast<int64_t>(sizeof(int32_t)) * size;
  const bool ran = run_teams(slices->n, size, bytes, host, run);
  for (int64_t i = 0; ran && i < slices->n; ++i)
    if (moved[i]) slices->updates[slices->index[i]] += 1;
  return host.result(ran);
}

NopropResult noprop_predict_cpu(float* logits, float* u_hat, float* z, const NopropSlices* slices,
                                const int64_t* seeds, const NopropInput* inputs,
                                const NopropChain* chain, int32_t head,
                                const NopropEmbedding* embedding, int64_t S, int64_t R, int64_t B,
                                int64_t first_row, int32_t add_noise, int64_t kept,
                                const NopropHost* caller) {
  constexpr int64_t kRows = 128;
  const int64_t pieces = (B + kRows - 1) / kRows, most_rows = std::min(kRows, B);
  Host host(*caller, slices, false);
  if (host.status()) return host.result(false);
  const PredictTask task = {
      .logits = logits,
      .u_hat = u_hat,
      .z = z,
      .slices = slices,
      .seeds = seeds,
      .inputs = inputs,
      .chain = chain,
      .head = head,
      .embedding = embedding,
      .S = S,
      .R = R,
      .B = B,
      .first_row = first_row,
      .kept = kept,
      .blocks = slices->n / R,
      .add_noise = add_noise != 0,
  };
  const ChainWork work = chain_work(task, most_rows);
  const int64_t samples = samples_a_task(work, S, R * pieces, host.threads());
  const int64_t groups = (S + samples - 1) / samples, count = groups * R * pieces;
  const int32_t size = crew_size(work.an_evaluation, count, most_rows, host.threads());
  std::vector<Crew> crews(static_cast<size_t>(size > 1 ? count : 0),
                          Crew{.size = size, .yield = [] { sched_yield(); }});
  const auto run = [&](int64_t at, const Team& team, const Worker& worker) {
    // a member of a crew does not stop early, since the others wait for it
    if (!host.go_on(worker.id) && team.size == 1) return;
    Crew alone;
    Crew& crew = team.size > 1 ? crews[static_cast<size_t>(at)] : alone;
    const int64_t first = at % pieces * kRows, sample = at / pieces / R * samples;
    Poll poll = {&host, worker.id};
    const PredictPart part = {
        .replica = at / pieces % R,
        .first_sample = sample,
        .last_sample = std::min(sample + samples, S),
        .first_row = first,
        .rows = std::min(kRows, B - first),
        .go_on = Poll::go_on,
        .host = &poll,
    };
    present_isa().predict_rows(task, part, crew, worker.workspace);
  };
  const int64_t bytes = present_isa().predict_bytes(task, most_rows, samples, size);
  return host.result(run_teams(count, size, bytes, host, run));
}

int32_t noprop_team_size_cpu(const NopropPlan* plan, int64_t n, int64_t B, int32_t threads) {
  return team_size(*plan, n, B, threads);
}

int32_t noprop_crew_size_cpu(const NopropPlan* plan, int64_t chains, int64_t B, int32_t threads) {
  return crew_size(*plan, chains, B, threads);
}

}  // extern "C"
