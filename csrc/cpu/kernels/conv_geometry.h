// Where a plan's convolutions read and write.
#pragma once

#include "cpu/kernels/conv_ends.h"

namespace noprop {
namespace {

inline bool is_conv(const NopropPlan& plan, int32_t result) {
  return result >= plan.num_inputs && plan.layers[result - plan.num_inputs].kind == NOPROP_CONV2D;
}

// Whether only convolutions read a result, which then has its channels last. Others read it in
// torch's order.
inline bool has_channels_last(const NopropPlan& plan, int32_t result) {
  if (!is_conv(plan, result) || result == plan.num_inputs + plan.num_layers - 1) return false;
  if (plan.layers[result - plan.num_inputs].add >= 0) return false;
  for (int l = 0; l < plan.num_layers; ++l) {
    const NopropLayer& layer = plan.layers[l];
    if (layer.add == result) return false;
    for (int s = 0; s < layer.num_sources; ++s)
      if (layer.sources[s] == result && layer.kind != NOPROP_CONV2D) return false;
  }
  return true;
}

inline Map map_of(const NopropPlan& plan, int32_t result, const NopropShape& shape) {
  return has_channels_last(plan, result)
             ? channels_last(shape.channels, shape.height, shape.width)
             : channels_first(shape.channels, shape.height, shape.width);
}

// Geometry of a convolution of the plan.
struct ConvLayer {
  const NopropLayer& layer;
  int result;
  Map in, out, map;  // map: the gradient of its live pixels before the pool
  int64_t size;

  ConvLayer(const NopropPlan& plan, int l)
      : layer(plan.layers[l]),
        result(plan.num_inputs + l),
        in(map_of(plan, layer.sources[0], layer.in)),
        out(map_of(plan, result, layer.shape)),
        map(channels_last(layer.shape.channels, layer.live_height, layer.live_width)),
        size(layer.kernel_size) {}

  int64_t out_rows() const { return map.H / rows(); }       // live ones
  int64_t rows() const { return layer.pool ? 2 : 1; }       // of the map, for one of the result
  int64_t a_channel() const { return in.C * size * size; }  // weights
  int64_t weights() const { return out.C * a_channel(); }
  int64_t sums() const {
    return has_few_channels(in) ? few_channels_gradient_floats(out.C, in.C, size)
                                : conv_gradient_floats(out.C, in, size);
  }
  // of a panel's gradients: the weight's, then the bias's
  int64_t panel_floats() const { return (sums() + out.C * kConvCols * kLanes + 15) / 16 * 16; }
  int64_t forward_floats() const {
    return round_up(out.C) * a_channel();  // of rows apart; panels need less
  }
  int64_t backward_floats() const { return weights(); }
};

// Convolutions that follow one another in the plan, layers first .. last. A panel of rows passes
// all of them before the next one does, while its pixels are near.
struct ConvRun {
  int first, last;
};

inline ConvRun conv_run(const NopropPlan& plan, int l) {
  const auto is = [&](int other) { return is_conv(plan, plan.num_inputs + other); };
  ConvRun run = {l, l + 1};
  while (run.first > 0 && is(run.first - 1)) --run.first;
  while (run.last < plan.num_layers && is(run.last)) ++run.last;
  return run;
}

// Whether nothing outside its run of convolutions reads a result. Its gradient then waits for no
// other panel.
inline bool stays_in_run(const NopropPlan& plan, int32_t result) {
  if (!has_channels_last(plan, result)) return false;
  for (int l = conv_run(plan, result - plan.num_inputs).last; l < plan.num_layers; ++l)
    if (plan.layers[l].sources[0] == result) return false;  // a convolution has one source
  return true;
}

}  // namespace
}  // namespace noprop
