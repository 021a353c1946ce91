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

  int64_t rows() const { return layer.pool ? 2 : 1; }  // of the map, for one of the result
  int64_t weights() const { return out.C * in.C * size * size; }
  int64_t sums() const {
    return has_few_channels(in) ? few_channels_gradient_floats(out.C, in.C, size)
                                : conv_gradient_floats(out.C, in.C, size);
  }
};

}  // namespace
}  // namespace noprop
