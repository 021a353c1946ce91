// Convolutions of a plan: members of a team take panels of rows, and each panel's weight gradient
// is summed by itself, so that no number of members changes a bit.
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

// noise: the address of the step's dropout, whose stream and site are 0 there, or null outside
// training
inline void forward_conv(const Saved& saved, const NopropPlan& plan, const NopropState& state,
                         int l, int64_t slice, const NoiseKey* noise, const Panels& panels,
                         const Share& share) {
  const ConvLayer conv(plan, l);
  const int32_t source = conv.layer.sources[0], add = conv.layer.add;
  const int64_t in = conv.in.C * conv.in.H * conv.in.W, width = conv.layer.width;
  pack_forward(saved.weights, state.weight.value + slice * conv.weights(), conv.out.C, conv.size,
               conv.in);
  const Range own = own_part(share, panels.count, 1);
  for (int64_t p = own.first; p < own.last; ++p) {
    const int64_t at = p * width * panels.P;
    const ConvEnds ends = ends_of(conv, state.bias.value + slice * conv.out.C, noise, p * panels.P);
    const auto run = [&](auto last) {
      conv_forward<last.value>(saved.kept[conv.result] + at, conv.out,
                               saved.places[conv.result] + at,
                               saved.operand[source] + p * in * panels.P, conv.in, saved.weights,
                               conv.size, conv.map.H, conv.map.W, saved.pixels, ends);
    };
    if (conv.in.channel == 1)
      run(Constant<1>{});
    else
      run(Constant<0>{});
    for (int64_t i = at; add >= 0 && i < at + width * panels.P; i += kLanes)
      store(saved.value[conv.result] + i,
            load(saved.kept[conv.result] + i) + load(saved.value[add] + i));
  }
}

// This member's panels: the gradient of the map, of bias and weight, and of the source where
// d_source is not null, to which it is added if `adds`.
inline void conv_panel_gradients(const Saved& saved, const Grads& grads, const NopropPlan& plan,
                                 int l, const float* weight, float* d_source, bool adds,
                                 bool wants_weight, const NoiseKey* noise, const Panels& panels,
                                 const Share& share) {
  const ConvLayer conv(plan, l);
  const int64_t P = panels.P, O = conv.out.C, in = conv.in.C * conv.in.H * conv.in.W;
  const int64_t width = conv.layer.width, row = conv.rows() * conv.map.W * O * P;
  if (d_source) pack_backward(grads.weights, weight, conv.in.C, conv.size, conv.map);
  const Range own = own_part(share, panels.count, 1);
  for (int64_t p = own.first; p < own.last; ++p) {
    const ConvEnds ends = ends_of(conv, nullptr, noise, p * P);
    const float* source = saved.operand[conv.layer.sources[0]] + p * in * P;
    float *sums = grads.panel_sums + p * grads.sums_a_panel, *d_bias = sums + conv.sums();
    if (has_few_channels(conv.in)) __builtin_memset(sums, 0, sizeof(float) * conv.sums());
    __builtin_memset(d_bias, 0, sizeof(float) * O * P);
    for (int64_t y = 0; y < conv.map.H / conv.rows(); ++y) {
      float* d = grads.d_map + y * row;
      pixels_gradient(d, d_bias, grads.value[conv.result] + p * width * P,
                      saved.kept[conv.result] + p * width * P, conv.out,
                      saved.places[conv.result] + p * width * P, conv.map.W, ends, y);
      if (wants_weight && has_few_channels(conv.in))
        few_channels_weight_grad(sums, d, conv.map, source, conv.in, conv.size, y * conv.rows(),
                                 conv.rows(), conv.map.W);
    }
    if (wants_weight && !has_few_channels(conv.in)) {
      panel_to_channel_strips(grads.channel_strips, source, conv.in);
      conv_weight_grad(sums, grads.d_map, conv.map, grads.channel_strips, conv.in, conv.size,
                       conv.map.H, conv.map.W, grads.copied);
    }
    if (!d_source) continue;
    float* to = d_source + p * in * P;
    conv_product<true>(
        grads.d_map, conv.map, grads.weights, conv.in.C, conv.size, 1 - conv.size, 0, conv.in.H,
        conv.in.W, [&](auto& tile, int64_t c, int64_t y, int64_t x) __attribute__((always_inline)) {
          constexpr int ROWS = sizeof(tile) / sizeof(tile[0]);
          for_tile<ROWS, kImageCols>([&](int i, int j) {
            float* at = to + conv.in.at(c + i, y, x) * P + j * kLanes;
            store(at, adds ? load(at) + tile[i][j] : tile[i][j]);
          });
        });
  }
}

// The gradients of own output channels, once all panels are done: panels are added in their order.
inline Range fold_panels(const Grads& grads, const ConvLayer& conv, const Panels& panels,
                         const Share& share) {
  const Range own = own_part(share, conv.out.C, 1);
  const int64_t a_channel = conv.weights() / conv.out.C;
  float *weight = grads.gradient, *bias = grads.vector;
  for (int64_t i = own.first * a_channel; i < own.last * a_channel; ++i) weight[i] = 0;
  for (int64_t o = own.first; o < own.last; ++o) bias[o] = 0;
  for (int64_t p = 0; p < panels.count; ++p) {
    const float* sums = grads.panel_sums + p * grads.sums_a_panel;
    add_panel_gradient(weight, sums, own.first, own.last, conv.in, conv.size);
    for (int64_t o = own.first; o < own.last; ++o)
      for (int64_t i = 0; i < panels.P; i += kLanes)
        bias[o] += sum_lanes(load(sums + conv.sums() + o * panels.P + i));
  }
  return own;
}

}  // namespace
}  // namespace noprop
