// The parts of a step as separate calls, for autograd and for a caller's own loss: noise, forward,
// head, backward and update, each for one slice, which a team may share.
#pragma once

#include "cpu/passes/step.h"

namespace noprop {
namespace {

// a call that makes z and eps alone
inline int64_t noise_bytes(int64_t rows, int64_t D) {
  const Panels panels = make_panels(rows);
  Pieces counted = {nullptr};
  for (int j = 0; j < 4; ++j) counted.take<float>(D * panels.padded());
  counted.take<int32_t>(panels.padded());
  return counted.used;
}

inline void noise_slice(const NoiseTask& task, int64_t i, char* workspace) {
  const Panels panels = make_panels(task.rows);
  const int64_t D = task.embedding->D, size = D * panels.padded();
  NopropNoise noise = *task.noise;
  noise.first_row += task.first_row;
  const NopropNoising noising = {
      .signal = rows_from(task.noising->signal, task.first_row),
      .noise = rows_from(task.noising->noise, task.first_row),
      .sigma = task.noising->sigma,
  };
  Pieces pieces = {workspace};
  float *z = pieces.take<float>(size), *second = pieces.take<float>(size);
  float *u_y = pieces.take<float>(size), *eps = pieces.take<float>(size);
  int32_t* y = pieces.take<int32_t>(panels.padded());
  load_labels(y, rows_from(*task.y, task.first_row), 0, i, panels);
  embed(u_y, y, task.embedding->W, D, panels);
  const uint64_t seed = task.seeds[i];
  draw_normal(eps, noise_key(noise, seed, noise.stream, 0, i), D, panels);
  mix_noise(z, second, u_y, eps, noise, seed, noising, D, 0, i, panels);
  const int64_t first = i * task.B + task.first_row;
  if (task.z) panels_to_rows(task.z + first * D, z, D, panels);
  if (task.eps) panels_to_rows(task.eps + first * D, eps, D, panels);
}

int64_t saved_bytes(const NopropPlan* plan, int64_t B) {
  Saved saved;
  Pieces counted = {nullptr};
  take_saved(saved, counted, *plan, make_panels(*plan, B));
  return counted.used;
}

int64_t forward_bytes(const NopropPlan* plan, int64_t rows, bool saves, int32_t team_size) {
  Saved saved;
  const auto count = [&](const Panels& panels) {
    Pieces counted = {nullptr};
    if (!saves) take_saved(saved, counted, *plan, panels);
    take_forward(saved, counted, *plan, panels, {.size = team_size}, has_few_rows(panels));
    return counted.used;
  };
  // of either kind of pass
  return larger(count(make_panels(*plan, rows)), count(make_inference_panels(*plan, rows)));
}

void forward_slice(const ForwardTask& task, int64_t i, char* workspace) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const Panels panels = task.saved || task.training ? make_panels(plan, task.rows)
                                                    : make_inference_panels(plan, task.rows);
  const Share share = {task.team};
  Saved saved;
  Pieces scratch = {workspace}, kept = {task.saved};
  take_saved(saved, task.saved ? kept : scratch, plan, panels);
  take_forward(saved, scratch, plan, panels, task.team, has_few_rows(panels));
  const Range own = own_part(share, panels.vectors(), 1);
  bool narrows[kMaxResults];  // by input: the products read its few rows alone
  for (int j = 0; j < plan.num_inputs; ++j) {
    narrows[j] = saved.few[j] && narrows_rows(plan, j, task.inputs[j]);
    float* const values = task.logits && !narrows[j] ? saved.value[j] : nullptr;
    float* const strips = task.saved ? saved.strips[j] : nullptr;
    if (strips || values)
      load_input(strips, values, task.inputs[j], plan, j, 0, i, task.first_row, own.first, own.last,
                 task.B, panels);
  }
  if (!task.logits) return;
  wait_for_team(share);
  for (int j = 0; j < plan.num_inputs; ++j) {
    if (narrows[j]) {
      narrow_rows(saved.few[j], task.inputs[j], plan, j, i, task.first_row, panels, share);
      continue;
    }
    if (keeps_value(plan, j)) round_operand(saved, plan, j, panels, share);
    narrow_operand(saved, plan, j, panels, share);
    make_images(saved, plan, j, panels, share);
  }
  wait_for_team(share);
  NoiseKey dropout = {};
  if (task.noise) dropout = noise_key(*task.noise, (uint64_t)task.seeds[i], 0, 0, i);
  walk_forward(saved, plan, slices.layers, slices.index[i], task.training,
               task.training ? &dropout : nullptr, panels, share);
  if (task.training && task.team.rank == 0)
    commit_statistics(saved, plan, slices.layers, slices.index[i]);
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last);
  panels_to_rows(task.logits + (i * task.B + task.first_row) * M, saved.value[last], M, panels,
                 share);
}

inline int64_t head_bytes(int64_t rows, int64_t M, int64_t D) {
  const Panels panels = make_panels(rows);
  Pieces counted = {nullptr};
  for (int j = 0; j < 4; ++j) counted.take<float>(M * panels.padded());
  for (int j = 0; j < 4; ++j) counted.take<float>(D * panels.padded());
  counted.take<float>(panels.padded());
  counted.take<int32_t>(panels.padded());
  return counted.used;
}

inline void head_slice(const HeadTask& task, int64_t i, char* workspace) {
  const NopropEmbedding& embedding = *task.embedding;
  const Panels panels = make_panels(task.rows);
  const int64_t M = task.M, D = embedding.D, size = D * panels.padded();
  const int64_t first = i * task.B + task.first_row;
  NopropObjective objective = *task.objective;
  objective.weight = rows_from(objective.weight, task.first_row);
  Pieces pieces = {workspace};
  float* logits = pieces.take<float>(M * panels.padded());
  float* p = pieces.take<float>(M * panels.padded());
  float* d_logits = pieces.take<float>(M * panels.padded());
  float* d_r = pieces.take<float>(M * panels.padded());
  float *u_y = pieces.take<float>(size), *eps = pieces.take<float>(size);
  float *u_hat = pieces.take<float>(size), *d_u_hat = pieces.take<float>(size);
  float* error = pieces.take<float>(panels.padded());
  int32_t* y = pieces.take<int32_t>(panels.padded());
  load_labels(y, rows_from(*task.y, task.first_row), 0, i, panels);
  embed(u_y, y, embedding.W, D, panels);
  rows_to_panels(logits, task.logits + first * M, M, panels);
  if (task.eps) rows_to_panels(eps, task.eps + first * D, D, panels);
  const HeadInput in = head_input(objective, embedding, M, 0, i, logits, u_y, eps, y);
  const HeadOutput out = {
      .p = p,
      .u_hat = embedding.W ? u_hat : p,
      .d_u_hat = d_u_hat,
      .d_r = d_r,
      .error = error,
      .d_logits = d_logits,
  };
  const float loss = head_step(in, out, panels);
  if (task.loss) task.loss[i] = loss;
  if (task.error) __builtin_memcpy(task.error + first, error, sizeof(float) * task.rows);
  if (task.d_logits) panels_to_rows(task.d_logits + first * M, d_logits, M, panels);
  if (!task.u_hat) return;
  if (in.head == NOPROP_CROSS_ENTROPY)
    head_estimate(p, out.u_hat, in.head, logits, embedding.W, M, D, panels);
  panels_to_rows(task.u_hat + first * D, out.u_hat, D, panels);
}

int64_t backward_bytes(const NopropPlan* plan, int64_t B, bool input_gradients, int32_t team_size) {
  Grads grads;
  Pieces counted = {nullptr};
  take_grads(grads, counted, *plan, input_gradients, make_panels(*plan, B), {.size = team_size});
  counted.take<int32_t>(team_size);
  return counted.used;
}

void backward_slice(const BackwardTask& task, int64_t i, char* workspace) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const Panels panels = make_panels(plan, task.B);
  const Share share = {task.team};
  Saved saved;
  Pieces kept = {const_cast<char*>(task.saved)};  // backward only reads it
  take_saved(saved, kept, plan, panels);
  Grads grads;
  Pieces scratch = {workspace};
  take_grads(grads, scratch, plan, task.input_gradients, panels, task.team);
  int32_t* finite = scratch.take<int32_t>(task.team.size);  // by member: its rows are
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last), slice = slices.index[i];
  const float* d_logits = task.d_logits + i * task.B * M;
  finite[task.team.rank] = rows_to_panels(grads.value[last], d_logits, M, panels, share);
  wait_for_team(share);

  const bool updates = task.rule->kind != NOPROP_NONE, is_first = task.team.rank == 0;
  bool apply = updates;
  for (int member = 0; member < task.team.size; ++member) apply = apply && finite[member];
  if (updates && is_first) task.applied[i] = apply;
  UpdateScalars scalars = {};
  if (apply)
    scalars = make_scalars(*task.rule, task.rule->lr[i * task.rule->lr_stride_slice],
                           task.rule->weight_decay[i * task.rule->decay_stride_slice],
                           slices.updates[slice]);
  bool input_wanted[kMaxResults];
  for (int j = 0; j < plan.num_inputs; ++j) input_wanted[j] = task.d_inputs[j] != nullptr;
  float* input_rows[kMaxResults];
  rows_of_inputs(input_rows, plan, task.d_inputs, i, task.B);
  const NoiseKey any_noise = {};  // what was kept is known from the results
  const BackwardPlan job = {
      .plan = plan,
      .states = slices.layers,
      .slice = slice,
      .i = i,
      .input_wanted = input_wanted,
      .input_rows = input_rows,
      .scalars = apply ? &scalars : nullptr,
      .training = task.training,
      .noise = task.training ? &any_noise : nullptr,
  };
  walk_backward(job, saved, grads, panels, share);
  wait_for_team(share);
  for (int j = 0; j < plan.num_inputs; ++j)
    if (task.d_inputs[j] && !input_rows[j])
      panels_to_rows(task.d_inputs[j] + i * task.B * plan.input_widths[j], grads.value[j],
                     plan.input_widths[j], panels, share);
  if (apply && is_first) slices.updates[slice] += 1;
}

// This member's part of each parameter, once the gradients of all parts are found to be finite. The
// caller counts the update.
inline void update_slice(const UpdateTask& task, int64_t i, char* workspace) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const int64_t slice = slices.index[i];
  const auto for_params =
      [&](auto visit) {  // param, its own part of this slice's numbers, how many
        const auto of = [&](const NopropParam& param, int64_t size) {
          visit(param, own_part({task.team}, size, kLineFloats), size);
        };
        for (int l = 0; l < plan.num_layers; ++l) {
          const int64_t H = outputs_of(plan.layers[l]);
          const NopropState& state = slices.layers[l];
          of(state.weight, weights_of(plan.layers[l], in_width(plan, plan.layers[l])));
          of(state.bias, H);
          if (!plan.layers[l].norm) continue;
          of(state.norm_weight, H);
          of(state.norm_bias, H);
        }
      };
  bool apply = task.apply;
  if (apply && task.checks) {
    int32_t* const finite = reinterpret_cast<int32_t*>(workspace);  // by member
    bool is_finite = true;
    for_params([&](const NopropParam& param, const Range& own, int64_t size) {
      is_finite = is_finite && all_finite(param.grad + i * size + own.first, own.last - own.first);
    });
    finite[task.team.rank] = is_finite;
    wait_for_team({task.team});
    for (int member = 0; member < task.team.size; ++member) apply = apply && finite[member];
  }
  if (task.team.rank == 0) task.applied[i] = apply;
  if (!apply) return;
  const NopropUpdateRule& rule = *task.rule;
  const UpdateScalars scalars =
      make_scalars(rule, rule.lr[i * rule.lr_stride_slice],
                   rule.weight_decay[i * rule.decay_stride_slice], slices.updates[slice]);
  for_params([&](const NopropParam& param, const Range& own, int64_t size) {
    update_run(run_at(param, slice * size + own.first), param.grad + i * size + own.first,
               own.last - own.first, scalars);
  });
}

}  // namespace
}  // namespace noprop
