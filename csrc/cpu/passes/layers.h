// The walk over a plan: forward in order, backward in reverse.
#pragma once

#include "cpu/kernels/dense_gradients.h"
#include "cpu/kernels/head.h"
#include "cpu/kernels/load.h"
#include "cpu/kernels/norm.h"
#include "cpu/kernels/update.h"
#include "cpu/passes/conv_layers.h"

namespace noprop {
namespace {

// makes the operand of products from a result, once its value is complete
inline void round_operand(const Saved& saved, const NopropPlan& plan, int r, const Panels& panels,
                          const Share& share) {
  if (!rounds(plan) || r == plan.num_inputs + plan.num_layers - 1) return;
  if constexpr (kHasPairs)
    return pair_panels(saved.operand[r], saved.value[r], width_of(plan, r), panels, share);
  for_own_runs(panels, share, width_of(plan, r), [&](int64_t at, int64_t count) {
    round_run(saved.operand[r] + at, saved.value[r] + at, count);
  });
}

// copies a rounded operand to its form for few rows
inline void narrow_operand(const Saved& saved, const NopropPlan& plan, int r, const Panels& panels,
                           const Share& share) {
  if (!saved.few[r] || r == plan.num_inputs + plan.num_layers - 1) return;
  const int64_t rows = few_rows(panels.B);
  const Range own = own_features(panels, share, width_of(plan, r));
  const int64_t per_term = has_pairs(plan) ? 2 : 1;
  for (int64_t f = own.first; f < own.last; f += per_term)
    for (int64_t k = f / per_term, b = 0; b < rows; ++b)
      saved.few[r][k * rows + b] = saved.operand[r][k * kLanes + b];
}

// copies a result that convolutions read to images of its rows, where those stand apart
inline void make_images(const Saved& saved, const NopropPlan& plan, int r, const Panels& panels,
                        const Share& share) {
  if (saved.images[r])
    panels_to_rows(saved.images[r], saved.operand[r], width_of(plan, r), panels, share);
}

inline void make_operand(const Saved& saved, const NopropPlan& plan, int r, const Panels& panels,
                         const Share& share) {
  round_operand(saved, plan, r, panels, share);
  narrow_operand(saved, plan, r, panels, share);
}

// The sums of a dense layer over sources first .. last of it; they go on from `start` (dense.h).
inline void sum_sources(const DenseOut& out, const Saved& saved, const NopropPlan& plan,
                        const NopropState& state, int l, int64_t slice, int first, int last,
                        const float* start, const Panels& panels, const Share& share) {
  const NopropLayer& layer = plan.layers[l];
  const int64_t H = layer.width, in = in_width(plan, layer);
  Source sources[kMaxResults];
  int64_t column = 0;
  for (int s = 0; s < last; ++s) {
    const int32_t r = layer.sources[s];
    if (s < first)
      column += width_of(plan, r);
    else
      sources[s - first] = {saved.operand[r], width_of(plan, r), saved.few[r]};
  }
  const DenseSum sum = {sources, last - first, state.weight.value + slice * H * in + column, in,
                        start};
  with_pairs(plan, [&](auto pairs) {
    dense_forward<pairs.value>(out, sum, H, saved.rounded, panels, share);
  });
}

// What there is of a dense layer before it runs.
struct Begun {
  int first, last;                // the sources that are left
  const float* sums = nullptr;    // over the sources before, panels (H, P), or null
  const float* shifts = nullptr;  // (H,): the bias and the sums over the sources behind, or null
};

inline void forward_layer(const Saved& saved, const NopropPlan& plan, const NopropState& state,
                          int l, int64_t slice, bool training, const Begun& begun,
                          const Panels& panels, const Share& share) {
  const NopropLayer& layer = plan.layers[l];
  const int r = plan.num_inputs + l;
  const int64_t H = layer.width;
  const float* bias = begun.shifts ? begun.shifts : state.bias.value + slice * H;
  const float* add = layer.add >= 0 ? saved.value[layer.add] : nullptr;
  const bool is_relu = layer.activation == NOPROP_RELU, acts_after = layer.activation && !is_relu;
  // `out` gets the sums with bias and norm, `kept` a copy of them, and `added` is added to them
  float* out = acts_after ? saved.kept[r] : saved.value[r];
  float* kept = saved.kept[r] == out ? nullptr : saved.kept[r];
  const float* added = acts_after ? nullptr : add;
  const auto multiply = [&](float* out, float* kept, const float* added, bool is_relu) {
    sum_sources({out, kept, bias, added, is_relu}, saved, plan, state, l, slice, begun.first,
                begun.last, begun.sums, panels, share);
  };
  if (!layer.norm) {
    multiply(out, kept, added, is_relu);
  } else {
    multiply(saved.x_hat[r], nullptr, nullptr, false);
    const Norm norm = {state.norm_weight.value + slice * H, state.norm_bias.value + slice * H,
                       state.running_mean + slice * H, state.running_var + slice * H,
                       layer.norm_eps};
    norm_forward(out, kept, saved.x_hat[r], saved.batch_mean[r], saved.batch_var[r], saved.rstd[r],
                 norm, added, is_relu, training, H, panels, share);
  }
  if (acts_after) activate(saved.value[r], saved.kept[r], add, layer.activation, H, panels, share);
  make_operand(saved, plan, r, panels, share);
}

inline void forward_layer(const Saved& saved, const NopropPlan& plan, const NopropState& state,
                          int l, int64_t slice, bool training, const Panels& panels,
                          const Share& share) {
  forward_layer(saved, plan, state, l, slice, training, {0, plan.layers[l].num_sources}, panels,
                share);
}

inline void walk_forward(const Saved& saved, const NopropPlan& plan, const NopropState* states,
                         int64_t slice, bool training, const NoiseKey* noise, const Panels& panels,
                         const Share& share) {
  for (int l = 0; l < plan.num_layers;) {
    if (is_conv(plan, plan.num_inputs + l)) {
      const ConvRun run = conv_run(plan, l);
      forward_convs(saved, plan, states, run, slice, noise, panels, share);
      for (; l < run.last; ++l) narrow_operand(saved, plan, plan.num_inputs + l, panels, share);
    } else {
      forward_layer(saved, plan, states[l], l, slice, training, panels, share);
      ++l;
    }
    wait_for_team(share);
  }
}

// moves the running statistics towards the batch's
inline void commit_statistics(const Saved& saved, const NopropPlan& plan, const NopropState* states,
                              int64_t slice) {
  for (int l = 0; l < plan.num_layers; ++l) {
    const NopropLayer& layer = plan.layers[l];
    if (!layer.norm) continue;
    const int r = plan.num_inputs + l;
    const int64_t H = layer.width;
    move_running(states[l].running_mean + slice * H, saved.batch_mean[r], layer.norm_momentum, H);
    move_running(states[l].running_var + slice * H, saved.batch_var[r], layer.norm_momentum, H);
  }
}

// d += or = grad, panels (H, P)
inline void add_grad(Grads& grads, int result, const float* d, int64_t H, const Panels& panels,
                     const Share& share) {
  float* to = grads.value[result];
  for_own_runs(panels, share, H, [&](int64_t at, int64_t count) {
    for (int64_t i = at; i < at + count; i += kLanes)
      store(to + i, grads.written[result] ? load(to + i) + load(d + i) : load(d + i));
  });
  grads.written[result] = true;
}

inline Run run_at(const NopropParam& param, int64_t at) {
  return {param.value + at, param.m ? param.m + at : nullptr, param.v ? param.v + at : nullptr};
}

struct BackwardPlan {
  const NopropPlan& plan;
  const NopropState* states;
  int64_t slice, i;          // position in the state, in the call
  const bool* input_wanted;  // by input
  float* const* input_rows;  // by input: the caller's rows for its gradient; null: panels take it
  const UpdateScalars* scalars;  // null: gradients only
  bool training;
  const NoiseKey* noise;  // as the forward had it
};

// passes own features of a small parameter's gradient to its optimizer, or to the caller's array
inline void finish_vector(const NopropParam& param, const float* gradient, const BackwardPlan& job,
                          int64_t H, const Range& own) {
  const int64_t count = own.last - own.first;
  if (param.grad)
    __builtin_memcpy(param.grad + job.i * H + own.first, gradient + own.first,
                     sizeof(float) * count);
  if (job.scalars)
    update_rows(run_at(param, job.slice * H + own.first), 0, gradient + own.first, 0, 1, count,
                *job.scalars);
}

template <bool PAIRS>
inline void weight_backward(const BackwardPlan& job, const Saved& saved, const Grads& grads, int l,
                            const Panels& panels, const Share& share) {
  const NopropLayer& layer = job.plan.layers[l];
  const NopropParam& param = job.states[l].weight;
  const int64_t H = layer.width, in = in_width(job.plan, layer);
  StripSource sources[kMaxResults];
  const float* own_strips = grads.strips;
  for (int s = 0; s < layer.num_sources; ++s) {
    const int source = layer.sources[s];
    const int64_t width = width_of(job.plan, source);
    sources[s] = {source < job.plan.num_inputs ? saved.strips[source] : own_strips, width};
    own_strips += panels.B * round_up(width);
  }
  const auto finish = [&](const float* gradient, int64_t o, int64_t rows, int64_t f,
                          int64_t count) {
    for (int64_t row = 0; param.grad && row < rows; ++row)
      __builtin_memcpy(param.grad + (job.i * H + o + row) * in + f,
                       gradient + row * kGradientColumns, sizeof(float) * count);
    if (job.scalars)
      update_rows(run_at(param, (job.slice * H + o) * in + f), in, gradient, kGradientColumns, rows,
                  count, *job.scalars);
  };
  dense_weight_grad<PAIRS>(grads.value[job.plan.num_inputs + l], sources, layer.num_sources, H,
                           grads.weight_rows, panels, share, finish);
}

// own output channels' gradients of a convolution's weight and bias, once all panels are done
inline void finish_conv(const BackwardPlan& job, const Grads& grads, const ConvLayer& conv,
                        const NopropState& state, const float* sums, const Panels& panels,
                        const Share& share) {
  const Range own = own_part(share, conv.out.C, 1);
  const int64_t count = conv.a_channel();
  for (int64_t o = own.first; o < own.last; ++o) {
    const NopropParam& weight = state.weight;
    fold_panels(grads.channel, sums, panels.count, grads.sums_a_panel, o, conv.out.C, conv.in,
                conv.size, grads.summed);
    if (weight.grad)
      __builtin_memcpy(weight.grad + (job.i * conv.out.C + o) * count, grads.channel,
                       sizeof(float) * count);
    if (job.scalars)
      update_rows(run_at(weight, (job.slice * conv.out.C + o) * count), 0, grads.channel, 0, 1,
                  count, *job.scalars);
    grads.channel_bias[o] = 0;
    for (int64_t p = 0; p < panels.count; ++p)
      for (int64_t i = 0; i < panels.P; i += kLanes)
        grads.channel_bias[o] +=
            sum_lanes(load(sums + p * grads.sums_a_panel + conv.sums() + o * panels.P + i));
  }
  finish_vector(state.bias, grads.channel_bias, job, conv.out.C, own);
}

inline void backward_convs(const BackwardPlan& job, const Saved& saved, Grads& grads,
                           const ConvRun& run, const Panels& panels, const Share& share) {
  const ConvBackward asked = {job.input_wanted, job.scalars || job.states[run.first].weight.grad,
                              job.noise};
  pack_run_backward(grads, job.plan, job.states, run, job.slice, job.input_wanted, share);
  wait_for_team(share);
  backward_panels(saved, grads, job.plan, run, asked, panels, share);
  wait_for_team(share);
  const float* sums = grads.panel_sums;
  for (int l = run.last; asked.weights_wanted && l-- > run.first;) {
    const ConvLayer conv(job.plan, l);
    finish_conv(job, grads, conv, job.states[l], sums, panels, share);
    sums += conv.panel_floats();
  }
  wait_for_team(share);
}

// On entry grads.value of the last result holds d_logits. Layers run in reverse. Each computes its
// own gradients, then those of its sources, and is then updated, since the sources' gradients need
// the old weights.
inline void walk_backward(const BackwardPlan& job, const Saved& saved, Grads& grads,
                          const Panels& panels, const Share& share) {
  const NopropPlan& plan = job.plan;
  const int results = plan.num_inputs + plan.num_layers;
  for (int r = 0; r < results; ++r) grads.written[r] = r == results - 1;
  for (int l = plan.num_layers - 1; l >= 0; --l) {
    const NopropLayer& layer = plan.layers[l];
    if (layer.kind == NOPROP_CONV2D) {
      const ConvRun run = conv_run(plan, l);
      backward_convs(job, saved, grads, run, panels, share);
      l = run.first;
      continue;
    }
    const NopropState& state = job.states[l];
    const int r = plan.num_inputs + l;
    const int64_t H = layer.width, in = in_width(plan, layer);
    const Range own = own_features(panels, share, H);
    float* d = grads.value[r];
    const auto wanted = [&](int source) {
      return source >= plan.num_inputs || job.input_wanted[source];
    };
    if (layer.add >= 0 && wanted(layer.add)) add_grad(grads, layer.add, d, H, panels, share);
    if (layer.activation) activation_grad(d, saved.kept[r], layer.activation, H, panels, share);
    if (layer.norm)
      norm_backward(d, grads.norm_weight, grads.norm_bias, saved.x_hat[r], saved.rstd[r],
                    state.norm_weight.value + job.slice * H, job.training, H, panels, share);
    // the batch's mean removes the bias, whose gradient is then exactly zero
    if (layer.norm && job.training)
      for (int64_t o = own.first; o < own.last; ++o) grads.vector[o] = 0;
    else
      dense_bias_grad(grads.vector, d, H, panels, share);
    finish_vector(state.bias, grads.vector, job, H, own);
    if (layer.norm) {
      finish_vector(state.norm_weight, grads.norm_weight, job, H, own);
      finish_vector(state.norm_bias, grads.norm_bias, job, H, own);
    }
    if constexpr (kHasPairs) {
      if (rounds(plan)) pair_panels(grads.pairs[l % 2], d, H, panels, share);
    } else if (rounds(plan)) {
      for_own_runs(panels, share, H,
                   [&](int64_t at, int64_t count) { round_run(d + at, d + at, count); });
    }
    wait_for_team(share);
    int64_t first = 0;
    float* strips = grads.strips;
    const float* weight = state.weight.value + job.slice * H * in;
    const bool wants_weight = job.scalars || state.weight.grad;
    with_pairs(plan, [&](auto pairs) {
      constexpr bool PAIRS = pairs.value;
      const float* d_out = PAIRS ? grads.pairs[l % 2] : d;
      for (int s = 0; s < layer.num_sources; ++s) {
        const int source = layer.sources[s];
        const int64_t width = width_of(plan, source);
        if (wanted(source)) {
          float* rows = source < plan.num_inputs ? job.input_rows[source] : nullptr;
          const bool to_panels = !rows && goes_to_panels(H, grads.written[source], panels);
          const InputGradOut out = {strips, to_panels ? grads.value[source] : nullptr, rows,
                                    grads.written[source]};
          dense_input_grad<PAIRS>(out, d_out, weight, in, first, width, H, grads.packed,
                                  rounds(plan), panels, share);
          if (!rows && !to_panels)
            strips_to_panels(grads.value[source], grads.written[source], strips, width, panels,
                             share);
          grads.written[source] = true;
        }
        if (wants_weight && source >= plan.num_inputs)
          panels_to_strips<PAIRS>(strips, PAIRS ? saved.value[source] : saved.operand[source],
                                  width, panels, share);
        first += width;
        strips += panels.B * round_up(width);
      }
      wait_for_team(share);
      if (wants_weight) weight_backward<PAIRS>(job, saved, grads, l, panels, share);
    });
  }
}

}  // namespace
}  // namespace noprop
