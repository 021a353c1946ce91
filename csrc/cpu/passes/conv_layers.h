// Runs of convolutions of a plan: members of a team take panels of rows, and each panel's weight
// gradients are summed by themselves, so that no number of members changes a bit.
#pragma once

#include "cpu/kernels/saved.h"
#include "cpu/kernels/update.h"

namespace noprop {
namespace {

constexpr uint32_t kDropoutStream = 3;

inline ConvEnds ends_of(const ConvLayer& conv, const float* bias, const NoiseKey* noise,
                        int64_t first_row) {
  const NopropLayer& layer = conv.layer;
  ConvEnds ends = {bias, layer.activation == NOPROP_RELU, layer.pool != 0, 0, 1.0f, {}};
  if (!noise || layer.dropout <= 0) return ends;
  ends.dropped = (uint32_t)((double)layer.dropout * (1 << 24) + 0.5);
  ends.scale = (float)(1.0 / (1.0 - (double)layer.dropout));
  ends.key = *noise;
  ends.key.place |= kDropoutStream << 16 | (uint32_t)layer.site << 24;
  ends.key.first_row += (uint32_t)first_row;
  return ends;
}

// panel p of a layer's result
inline void forward_panel(const Saved& saved, const ConvLayer& conv, const float* packed,
                          const float* bias, const NoiseKey* noise, int64_t p,
                          const Panels& panels) {
  const int32_t source = conv.layer.sources[0], add = conv.layer.add;
  const int64_t size = conv.layer.width * panels.P, at = p * size;
  const float* in = saved.operand[source] + p * conv.in.C * conv.in.H * conv.in.W * panels.P;
  const ConvEnds ends = ends_of(conv, bias, noise, p * panels.P);
  const auto run = [&](auto channels_last) {
    conv_forward<channels_last.value>(saved.kept[conv.result] + at, conv.out,
                                      saved.places[conv.result] + at, in, conv.in, packed,
                                      conv.size, conv.map.H, conv.map.W, saved.pixels, ends);
  };
  if (conv.in.channel == 1)
    run(Constant<1>{});
  else
    run(Constant<0>{});
  for (int64_t i = at; add >= 0 && i < at + size; i += kLanes)
    store(saved.value[conv.result] + i,
          load(saved.kept[conv.result] + i) + load(saved.value[add] + i));
}

// noise: the address of the step's dropout, whose stream and site are 0 there, or null outside
// training
inline void forward_convs(const Saved& saved, const NopropPlan& plan, const NopropState* states,
                          const ConvRun& run, int64_t slice, const NoiseKey* noise,
                          const Panels& panels, const Share& share) {
  const Range own = own_part(share, panels.count, 1);
  if (own.first == own.last) return;
  float* packed = saved.weights;
  for (int l = run.first; l < run.last; ++l) {
    const ConvLayer conv(plan, l);
    pack_forward(packed, states[l].weight.value + slice * conv.weights(), conv.out.C, conv.size,
                 conv.in);
    packed += conv.forward_floats();
  }
  for (int64_t p = own.first; p < own.last; ++p) {
    packed = saved.weights;
    for (int l = run.first; l < run.last; ++l) {
      const ConvLayer conv(plan, l);
      forward_panel(saved, conv, packed, states[l].bias.value + slice * conv.out.C, noise, p,
                    panels);
      packed += conv.forward_floats();
    }
  }
}

// What a run's backward pass is asked for.
struct ConvBackward {
  const bool* input_wanted;  // by input
  bool weights_wanted;
  const NoiseKey* noise;  // as the forward had it
};

// a result's gradient in panel p
inline float* gradient_panel(const Grads& grads, const NopropPlan& plan, int32_t result, int64_t p,
                             const Panels& panels) {
  const int64_t size = width_of(plan, result) * panels.P;
  return grads.value[result] + (grads.in_run[result] ? 0 : p * size);
}

// Panel p's gradients of a layer: of the map, of bias and weight, and of the source. `written`
// tells which results have a gradient in this panel already, to which more is then added.
inline void backward_panel(const Saved& saved, const Grads& grads, const NopropPlan& plan,
                           const ConvLayer& conv, const float* packed, float* sums, bool* written,
                           const ConvBackward& job, int64_t p, const Panels& panels) {
  const int64_t P = panels.P, O = conv.out.C, width = conv.layer.width;
  const int64_t row = conv.rows() * conv.map.W * O * P;
  const int32_t source = conv.layer.sources[0], add = conv.layer.add;
  const auto wanted = [&](int32_t r) { return r >= plan.num_inputs || job.input_wanted[r]; };
  const float* d_out = gradient_panel(grads, plan, conv.result, p, panels);
  if (add >= 0 && wanted(add)) {
    float* to = gradient_panel(grads, plan, add, p, panels);
    for (int64_t i = 0; i < width * P; i += kLanes)
      store(to + i, written[add] ? load(to + i) + load(d_out + i) : load(d_out + i));
    written[add] = true;
  }
  const ConvEnds ends = ends_of(conv, nullptr, job.noise, p * P);
  const float* in = saved.operand[source] + p * conv.in.C * conv.in.H * conv.in.W * P;
  const bool few = has_few_channels(conv.in);
  float* d_bias = sums + conv.sums();
  if (few) __builtin_memset(sums, 0, sizeof(float) * conv.sums());
  __builtin_memset(d_bias, 0, sizeof(float) * O * P);
  for (int64_t y = 0; y < conv.map.H / conv.rows(); ++y) {
    // rows that nothing reads again are written where the last ones were, which is near
    float* d = grads.d_map + (few && !wanted(source) ? 0 : y * row);
    pixels_gradient(d, d_bias, d_out, saved.kept[conv.result] + p * width * P, conv.out,
                    saved.places[conv.result] + p * width * P, conv.map.W, ends, y);
    if (job.weights_wanted && few)
      few_channels_weight_grad(sums, d, conv.map, in, conv.in, conv.size, y * conv.rows(),
                               conv.rows(), conv.map.W);
  }
  if (job.weights_wanted && !few) {
    panel_to_channel_strips(grads.channel_strips, in, conv.in);
    conv_weight_grad(sums, grads.d_map, conv.map, grads.channel_strips, conv.in, conv.size,
                     conv.map.H, conv.map.W, grads.copied);
  }
  if (!wanted(source)) return;
  float* to = gradient_panel(grads, plan, source, p, panels);
  const bool adds = written[source];
  conv_product<true>(
      grads.d_map, conv.map, packed, conv.in.C, conv.size, 1 - conv.size, 0, conv.in.H, conv.in.W,
      [&](auto& tile, int64_t c, int64_t y, int64_t x) __attribute__((always_inline)) {
        constexpr int ROWS = sizeof(tile) / sizeof(tile[0]);
        for_tile<ROWS, kImageCols>([&](int i, int j) {
          float* at = to + conv.in.at(c + i, y, x) * P + j * kLanes;
          store(at, adds ? load(at) + tile[i][j] : tile[i][j]);
        });
      });
  written[source] = true;
}

// this member's panels of a run, its layers in reverse
inline void backward_panels(const Saved& saved, Grads& grads, const NopropPlan& plan,
                            const NopropState* states, const ConvRun& run, int64_t slice,
                            const ConvBackward& job, const Panels& panels, const Share& share) {
  float* packed = grads.weights;
  for (int l = run.last; l-- > run.first;) {
    const ConvLayer conv(plan, l);
    const int32_t source = conv.layer.sources[0];
    if (source < plan.num_inputs && !job.input_wanted[source]) continue;
    pack_backward(packed, states[l].weight.value + slice * conv.weights(), conv.in.C, conv.size,
                  conv.map);
    packed += conv.backward_floats();
  }
  const Range own = own_part(share, panels.count, 1);
  bool written[kMaxResults];
  for (int64_t p = own.first; p < own.last; ++p) {
    __builtin_memcpy(written, grads.written, sizeof written);
    packed = grads.weights;
    float* sums = grads.panel_sums + p * grads.sums_a_panel;
    for (int l = run.last; l-- > run.first;) {
      const ConvLayer conv(plan, l);
      backward_panel(saved, grads, plan, conv, packed, sums, written, job, p, panels);
      const int32_t source = conv.layer.sources[0];
      if (source >= plan.num_inputs || job.input_wanted[source]) packed += conv.backward_floats();
      sums += conv.panel_floats();
    }
  }
  // a member without panels takes note too
  const auto note = [&](int32_t r) {
    if (r >= 0 && (r >= plan.num_inputs || job.input_wanted[r])) grads.written[r] = true;
  };
  for (int l = run.first; l < run.last; ++l) {
    note(plan.layers[l].sources[0]);
    note(plan.layers[l].add);
  }
}

}  // namespace
}  // namespace noprop
