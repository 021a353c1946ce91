// The parts of a step as separate calls, for autograd and for a caller's own loss: noise, forward,
// head, backward and update, each for one slice.
#pragma once

#include "cpu/passes/step.h"

namespace noprop {
namespace {

// a call that makes z and eps alone
inline int64_t noise_bytes(int64_t B, int64_t D) {
  const Panels panels = make_panels(B);
  Pieces counted = {nullptr};
  for (int j = 0; j < 4; ++j) counted.take<float>(D * panels.padded());
  counted.take<int32_t>(panels.padded());
  return counted.used;
}

inline void noise_slice(const NoiseTask& task, int64_t i, char* workspace) {
  const Panels panels = make_panels(task.B);
  const int64_t D = task.embedding->D, size = D * panels.padded();
  Pieces pieces = {workspace};
  float *z = pieces.take<float>(size), *second = pieces.take<float>(size);
  float *u_y = pieces.take<float>(size), *eps = pieces.take<float>(size);
  int32_t* y = pieces.take<int32_t>(panels.padded());
  load_labels(y, *task.y, 0, i, panels);
  embed(u_y, y, task.embedding->W, D, panels);
  const uint64_t seed = task.seeds[i];
  draw_normal(eps, noise_key(*task.noise, seed, task.noise->stream, 0, i), D, panels);
  mix_noise(z, second, u_y, eps, *task.noise, seed, *task.noising, D, 0, i, panels);
  if (task.z) panels_to_exact_rows(task.z + i * task.B * D, z, D, panels);
  if (task.eps) panels_to_exact_rows(task.eps + i * task.B * D, eps, D, panels);
}

int64_t saved_bytes(const NopropPlan* plan, int64_t B) {
  Saved saved;
  Pieces counted = {nullptr};
  const Panels panels = make_panels(B);
  take_saved(saved, counted, *plan, panels, {}, has_few_rows(panels));
  return counted.used;
}

void forward_slice(const ForwardTask& task, int64_t i, char* workspace) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const Panels panels = make_panels(task.rows);
  const Share whole;
  Saved saved;
  Pieces pieces = {task.saved ? task.saved : workspace};
  take_saved(saved, pieces, plan, panels, {}, has_few_rows(panels));
  for (int j = 0; j < plan.num_inputs; ++j) {
    load_input(saved.strips[j], saved.value[j], task.inputs[j], plan, j, 0, i, task.first_row, 0,
               panels.vectors(), task.B, panels);
    if (keeps_value(plan, j)) round_operand(saved, plan, j, panels, whole);
    narrow_operand(saved, plan, j, panels, whole);
  }
  walk_forward(saved, plan, slices.layers, slices.index[i], task.training, panels, whole);
  if (task.training) commit_statistics(saved, plan, slices.layers, slices.index[i]);
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last);
  panels_to_exact_rows(task.logits + (i * task.B + task.first_row) * M, saved.value[last], M,
                       panels);
}

inline int64_t head_bytes(int64_t B, int64_t M, int64_t D) {
  const Panels panels = make_panels(B);
  Pieces counted = {nullptr};
  for (int j = 0; j < 3; ++j) counted.take<float>(M * panels.padded());
  for (int j = 0; j < 4; ++j) counted.take<float>(D * panels.padded());
  counted.take<float>(panels.padded());
  counted.take<int32_t>(panels.padded());
  return counted.used;
}

inline void head_slice(const HeadTask& task, int64_t i, char* workspace) {
  const NopropEmbedding& embedding = *task.embedding;
  const Panels panels = make_panels(task.B);
  const int64_t B = task.B, M = task.M, D = embedding.D, size = D * panels.padded();
  Pieces pieces = {workspace};
  float* logits = pieces.take<float>(M * panels.padded());
  float* p = pieces.take<float>(M * panels.padded());
  float* d_logits = pieces.take<float>(M * panels.padded());
  float *u_y = pieces.take<float>(size), *eps = pieces.take<float>(size);
  float *u_hat = pieces.take<float>(size), *d_u_hat = pieces.take<float>(size);
  float* error = pieces.take<float>(panels.padded());
  int32_t* y = pieces.take<int32_t>(panels.padded());
  load_labels(y, *task.y, 0, i, panels);
  embed(u_y, y, embedding.W, D, panels);
  exact_rows_to_panels(logits, task.logits + i * B * M, M, panels);
  if (task.eps) exact_rows_to_panels(eps, task.eps + i * B * D, D, panels);
  const HeadInput in = head_input(*task.objective, embedding, M, 0, i, logits, u_y, eps, y);
  const HeadOutput out = {
      .p = p,
      .u_hat = embedding.W ? u_hat : p,
      .d_u_hat = d_u_hat,
      .error = error,
      .d_logits = d_logits,
  };
  const float loss = head_step(in, out, panels);
  if (task.loss) task.loss[i] = loss;
  if (task.error) __builtin_memcpy(task.error + i * B, error, sizeof(float) * B);
  if (task.d_logits) panels_to_exact_rows(task.d_logits + i * B * M, d_logits, M, panels);
  if (!task.u_hat) return;
  if (in.head == NOPROP_CROSS_ENTROPY)
    head_estimate(p, out.u_hat, in.head, logits, embedding.W, M, D, panels);
  panels_to_exact_rows(task.u_hat + i * B * D, out.u_hat, D, panels);
}

int64_t backward_bytes(const NopropPlan* plan, int64_t B) {
  Grads grads;
  Pieces counted = {nullptr};
  take_grads(grads, counted, *plan, make_panels(B), {});
  return counted.used;
}

void backward_slice(const BackwardTask& task, int64_t i, char* workspace) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const Panels panels = make_panels(task.B);
  Saved saved;
  Pieces pieces = {const_cast<char*>(task.saved)};  // backward only reads it
  take_saved(saved, pieces, plan, panels, {}, false);
  Grads grads;
  Pieces scratch = {workspace};
  take_grads(grads, scratch, plan, panels, {});
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last), slice = slices.index[i];
  const float* d_logits = task.d_logits + i * task.B * M;
  exact_rows_to_panels(grads.value[last], d_logits, M, panels);

  bool input_wanted[kMaxResults];
  for (int j = 0; j < plan.num_inputs; ++j) input_wanted[j] = task.d_inputs[j] != nullptr;
  bool apply = task.rule->kind != NOPROP_NONE;
  if (apply) {
    for (int64_t at = 0; at < task.B * M; ++at) apply = apply && is_finite(d_logits[at]);
    task.applied[i] = apply;
  }
  UpdateScalars scalars = {};
  if (apply)
    scalars = make_scalars(*task.rule, task.rule->lr[i * task.rule->lr_stride_slice],
                           task.rule->weight_decay[i * task.rule->decay_stride_slice],
                           slices.updates[slice]);
  const BackwardPlan job = {
      .plan = plan,
      .states = slices.layers,
      .slice = slice,
      .i = i,
      .input_wanted = input_wanted,
      .scalars = apply ? &scalars : nullptr,
      .training = task.training,
  };
  walk_backward(job, saved, grads, panels, Share{});
  for (int j = 0; j < plan.num_inputs; ++j)
    if (task.d_inputs[j])
      panels_to_exact_rows(task.d_inputs[j] + i * task.B * plan.input_widths[j], grads.value[j],
                           plan.input_widths[j], panels);
  if (apply) slices.updates[slice] += 1;
}

inline void update_slice(const NopropSlices& slices, int64_t i, const NopropUpdateRule& rule) {
  const int64_t slice = slices.index[i];
  const NopropPlan& plan = *slices.plan;
  const UpdateScalars scalars =
      make_scalars(rule, rule.lr[i * rule.lr_stride_slice],
                   rule.weight_decay[i * rule.decay_stride_slice], slices.updates[slice]);
  const auto update = [&](const NopropParam& param, int64_t size) {
    update_rows(run_at(param, slice * size), 0, param.grad + i * size, 0, 1, size, scalars);
  };
  for (int l = 0; l < plan.num_layers; ++l) {
    const int64_t H = plan.layers[l].width;
    const NopropState& state = slices.layers[l];
    update(state.weight, H * in_width(plan, plan.layers[l]));
    update(state.bias, H);
    if (!plan.layers[l].norm) continue;
    update(state.norm_weight, H);
    update(state.norm_bias, H);
  }
  slices.updates[slice] += 1;
}

}  // namespace
}  // namespace noprop
