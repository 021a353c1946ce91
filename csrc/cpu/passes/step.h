// A task: K steps of one slice in a row, whose weights and moments stay in this core's cache. A
// step is noise, forward, head, backward and update in one pass. The loss is complete before the
// first write, so that a step that is not finite leaves no trace.
#pragma once

#include "cpu/passes/layers.h"

namespace noprop {
namespace {

// a packed input holds, for each step and replica, its panels and then its strips
inline int64_t packed_floats(const NopropPlan& plan, int32_t j, const Panels& panels) {
  const int64_t width = plan.input_widths[j];
  const int64_t strips = needs_strips(plan, j) ? panels.B * round_up(width) : 0;
  return (width * panels.padded() + strips + 15) / 16 * 16;
}

struct PackedInput {
  float *values, *strips;  // strips: null where no weight gradient reads them
};

inline PackedInput packed_input(const NopropPlan& plan, int32_t j, char* data, int64_t slot,
                                const Panels& panels) {
  float* values = reinterpret_cast<float*>(data) + slot * packed_floats(plan, j, panels);
  float* strips = values + plan.input_widths[j] * panels.padded();
  return {values, needs_strips(plan, j) ? strips : nullptr};
}

int64_t packed_bytes(const NopropPlan* plan, int32_t j, int64_t B) {
  return (int64_t)sizeof(float) * packed_floats(*plan, j, make_panels(*plan, B));
}

bool pack_rows(const PackTask& task) {
  const Panels panels = make_panels(*task.plan, task.B);
  const PackedInput packed = packed_input(*task.plan, task.j, task.data, task.slot, panels);
  NopropInput input = *task.input;
  input.replica = &task.replica;  // of "slice 0"
  const int64_t first = task.first_row / kLanes;
  // the last piece has the missing rows too
  const int64_t last = task.last_row == task.B ? panels.vectors() : task.last_row / kLanes;
  return load_input(packed.strips, packed.values, input, *task.plan, task.j, task.k, 0, 0, first,
                    last, task.B, panels);
}

struct StepBuffers {
  Saved saved;
  Grads grads;
  float *u_y, *eps, *p, *u_hat, *d_u_hat, *d_r, *error, *rows;
  int32_t* y;
  int32_t *goes_on, *applied;  // the first member writes them for the whole team
};

inline void take_step(StepBuffers& work, Pieces& pieces, const NopropPlan& plan, int64_t D,
                      const StepNeeds& needs, const Panels& panels, const Team& team) {
  const int64_t M = plan.layers[plan.num_layers - 1].width;
  take_saved(work.saved, pieces, plan, panels, {.loads_inputs = needs.loads_inputs});
  take_forward(work.saved, pieces, plan, panels, team, false);
  take_grads(work.grads, pieces, plan, needs.input_gradients, panels, team);
  work.u_y = pieces.take<float>(D * panels.padded());
  work.eps = pieces.take<float>(D * panels.padded());
  work.p = pieces.take<float>(M * panels.padded());
  work.u_hat = pieces.take<float>(D * panels.padded());
  work.d_u_hat = pieces.take<float>(D * panels.padded());
  work.d_r = pieces.take<float>(needs.radial ? M * panels.padded() : 0);
  work.error = pieces.take<float>(panels.padded());
  work.rows = pieces.take<float>(needs.embedding_grad ? kEmbeddingRows : 0);
  work.y = pieces.take<int32_t>(panels.padded());
  work.goes_on = pieces.take<int32_t>(1);
  work.applied = pieces.take<int32_t>(1);
}

int64_t train_bytes(const NopropPlan* plan, int64_t B, int64_t D, const StepNeeds& needs,
                    int32_t team_size) {
  StepBuffers work;
  Pieces counted = {nullptr};
  take_step(work, counted, *plan, D, needs, make_panels(*plan, B), {.size = team_size});
  return counted.used;
}

inline bool is_finite(float x) { return x - x == 0; }

// The gradients of signal and noise: per row, the sum over D of d_z times u_y or eps. They are 0 if
// the caller gave z.
inline void level_grad(float* out, const float* d_z, const float* factor, int64_t D,
                       const Panels& panels) {
  for (int64_t b = 0; b < panels.B; b += kLanes) {
    Vec sum = {};
    for (int64_t d = 0; d_z && d < D; ++d) {
      const int64_t at = panels.at(D, d, b / kLanes);
      sum += load(d_z + at) * load(factor + at);
    }
    if (const int64_t left = panels.B - b; left < kLanes)
      store_partial(out + b, sum, (int)left);
    else
      store(out + b, sum);
  }
}

inline void write_train_outputs(const TrainTask& task, int64_t i, const StepBuffers& work,
                                const HeadInput& head, const HeadOutput& result,
                                float* const* input_rows, const Panels& panels) {
  const NopropPlan& plan = *task.slices->plan;
  const NopropTrainOut& out = *task.out;
  const NopropPerRow& signal = task.noising->signal;
  const int64_t B = task.B, D = head.D, M = head.M;
  for (int j = 0; j < plan.num_inputs; ++j)
    if (out.d_inputs && out.d_inputs[j] && !input_rows[j])
      panels_to_rows(out.d_inputs[j] + i * B * plan.input_widths[j], work.grads.value[j],
                     plan.input_widths[j], panels);
  const float* d_z = task.z ? nullptr : work.grads.value[plan.z];
  if (out.d_signal) level_grad(out.d_signal + i * B, d_z, work.u_y, D, panels);
  if (out.d_noise) level_grad(out.d_noise + i * B, d_z, work.eps, D, panels);
  if (out.d_W_embed)
    embedding_grad(out.d_W_embed + i * M * D, work.rows, head, result, d_z,
                   signal.data + i * signal.stride_slice, signal.stride_row, panels);
}

// makes labels, noise and z of a step, which is too little work to divide
inline void draw_step(const TrainTask& task, int64_t k, int64_t i, StepBuffers& work,
                      const Panels& panels) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const int64_t D = task.embedding->D, z_width = plan.input_widths[plan.z];
  const uint64_t seed = slices.seeds[slices.index[i]];
  load_labels(work.y, *task.y, k, i, panels);
  embed(work.u_y, work.y, task.embedding->W, D, panels);
  float* z = work.saved.value[plan.z];
  draw_normal(work.eps, noise_key(*task.noise, seed, task.noise->stream, k, i), D, panels);
  if (task.z)
    rows_to_panels(z, task.z + i * task.B * z_width, z_width, panels);
  else
    mix_noise(z, work.d_u_hat, work.u_y, work.eps, *task.noise, seed, *task.noising, D, k, i,
              panels);
  const Share whole;
  round_operand(work.saved, plan, plan.z, panels, whole);
  if (!work.saved.strips[plan.z]) return;
  with_pairs(plan, [&](auto pairs) {
    panels_to_strips<pairs.value>(work.saved.strips[plan.z],
                                  pairs.value ? z : work.saved.operand[plan.z], z_width, panels,
                                  whole);
  });
}

// loads this member's part of the inputs' rows
inline void load_inputs(const TrainTask& task, int64_t k, int64_t i, StepBuffers& work,
                        const Panels& panels, const Share& share) {
  const NopropPlan& plan = *task.slices->plan;
  const Range own = own_part(share, panels.vectors(), 1);
  for (int j = 0; j < plan.num_inputs; ++j) {
    const NopropInput& input = task.inputs[j];
    if (j == plan.z) continue;
    if (char* data = task.packed[j]) {
      const int64_t replica = input.replica ? input.replica[i] : 0;
      const int64_t slot = (k - task.k_packed) * input.replicas + replica;
      const PackedInput packed = packed_input(plan, j, data, slot, panels);
      work.saved.value[j] = packed.values;
      work.saved.strips[j] = packed.strips;
      if (!rounds(plan) || !keeps_value(plan, j)) work.saved.operand[j] = work.saved.value[j];
    } else {
      load_input(work.saved.strips[j], work.saved.value[j], input, plan, j, k, i, 0, own.first,
                 own.last, task.B, panels);
    }
  }
}

// writes batch statistics to the caller, in place of moving the running ones
inline void write_statistics(const Saved& saved, const NopropPlan& plan, const NopropState* states,
                             int64_t i) {
  for (int l = 0; l < plan.num_layers; ++l) {
    const NopropState& state = states[l];
    const int64_t H = plan.layers[l].width;
    const int r = plan.num_inputs + l;
    if (!plan.layers[l].norm || !state.batch_mean) continue;
    __builtin_memcpy(state.batch_mean + i * H, saved.batch_mean[r], sizeof(float) * H);
    __builtin_memcpy(state.batch_var + i * H, saved.batch_var[r], sizeof(float) * H);
  }
}

// returns false if the call was asked to stop before the step began
inline bool train_step(const TrainTask& task, int64_t k, int64_t i, StepBuffers& work,
                       const bool* input_wanted, float* const* input_rows, const Panels& panels,
                       const Share& share) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const NopropTrainOut& out = *task.out;
  const int64_t slice = slices.index[i], B = task.B;
  const bool updates = task.rule->kind != NOPROP_NONE, is_first = share.team.rank == 0;

  const bool goes_on = task.go_on(task.host);
  if (is_first) *work.goes_on = goes_on;
  load_inputs(task, k, i, work, panels, share);
  if (is_first && goes_on) draw_step(task, k, i, work, panels);
  wait_for_team(share);
  if (!*work.goes_on) return false;
  for (int j = 0; rounds(plan) && j < plan.num_inputs; ++j)
    if (j != plan.z && keeps_value(plan, j)) round_operand(work.saved, plan, j, panels, share);
  if (rounds(plan)) wait_for_team(share);

  const NoiseKey dropout = noise_key(*task.noise, slices.seeds[slice], 0, k, i);
  walk_forward(work.saved, plan, slices.layers, slice, true, &dropout, panels, share);
  const int last = plan.num_inputs + plan.num_layers - 1;
  const HeadInput head = head_input(*task.objective, *task.embedding, width_of(plan, last), k, i,
                                    work.saved.value[last], work.u_y, work.eps, work.y);
  const HeadOutput result = {
      .p = work.p,
      .u_hat = task.embedding->W ? work.u_hat : work.p,
      .d_u_hat = work.d_u_hat,
      .d_r = work.d_r,
      .error = work.error,
      .d_logits = work.grads.value[last],
  };
  if (is_first) {
    const float loss = head_step(head, result, panels);
    *work.applied = is_finite(loss);
    out.loss[k * slices.n + i] = loss;
    out.applied[k * slices.n + i] = is_finite(loss);
    if (out.error) __builtin_memcpy(out.error + i * B, work.error, sizeof(float) * B);
  }
  wait_for_team(share);

  const bool applied = *work.applied;
  UpdateScalars scalars = {};
  if (updates && applied)
    scalars = make_scalars(
        *task.rule, task.rule->lr[k * task.rule->lr_stride_k + i * task.rule->lr_stride_slice],
        task.rule->weight_decay[i * task.rule->decay_stride_slice], slices.updates[slice]);
  bool any_wanted = !updates;
  for (int j = 0; j < plan.num_inputs; ++j) any_wanted |= input_wanted[j];
  if (applied || any_wanted) {
    const BackwardPlan job = {
        .plan = plan,
        .states = slices.layers,
        .slice = slice,
        .i = i,
        .input_wanted = input_wanted,
        .input_rows = input_rows,
        .scalars = updates && applied ? &scalars : nullptr,
        .training = true,
        .noise = &dropout,
    };
    walk_backward(job, work.saved, work.grads, panels, share);
  }
  wait_for_team(share);
  if (!is_first) return true;
  write_train_outputs(task, i, work, head, result, input_rows, panels);
  if (!updates) {
    write_statistics(work.saved, plan, slices.layers, i);
    return true;
  }
  if (applied) {
    commit_statistics(work.saved, plan, slices.layers, slice);
    slices.updates[slice] += 1;
  }
  slices.draws[slice] += 1;
  return true;
}

void train_slice(const TrainTask& task, int64_t i, char* workspace) {
  const NopropPlan& plan = *task.slices->plan;
  const Panels panels = make_panels(plan, task.B);
  const Share share = {.team = task.team};
  StepBuffers work;
  Pieces pieces = {workspace};
  take_step(work, pieces, plan, task.embedding->D, task.needs, panels, task.team);
  const NopropTrainOut& out = *task.out;
  bool input_wanted[kMaxResults];
  for (int j = 0; j < plan.num_inputs; ++j) input_wanted[j] = out.d_inputs && out.d_inputs[j];
  const bool through_z = out.d_signal || out.d_noise || out.d_W_embed;
  float* input_rows[kMaxResults];
  rows_of_inputs(input_rows, plan, out.d_inputs, i, task.B);
  if (through_z && !task.z) {
    input_wanted[plan.z] = true;
    input_rows[plan.z] = nullptr;  // what z is made of needs its panels
  }
  for (int64_t k = task.k_first; k < task.k_last; ++k)
    if (!train_step(task, k, i, work, input_wanted, input_rows, panels, share)) return;
}

}  // namespace
}  // namespace noprop
