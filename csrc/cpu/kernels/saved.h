// The buffers of a plan's results in a workspace: values, and the operands of products.
#pragma once

#include "cpu/kernels/activation.h"
#include "cpu/kernels/conv_few_rows.h"
#include "cpu/kernels/dense_gradients.h"

namespace noprop {
namespace {

// Hands out pieces of a workspace; without a base it only counts bytes.
struct Pieces {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * (int64_t)sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

// the buffers that forward leaves for backward, and its own
struct Saved {
  float* value[kMaxResults];    // panels of every result
  float* operand[kMaxResults];  // of products: the value, a rounded copy of it, or its pairs
  float* strips[kMaxResults];   // of inputs that dense layers read, else null
  float* kept[kMaxResults];     // of layers, the operand of the activation's gradient
  float* x_hat[kMaxResults];    // of layers with norm
  float *batch_mean[kMaxResults], *batch_var[kMaxResults], *rstd[kMaxResults];
  float* rounded;                // rows of a weight, this member's, or null
  float* few[kMaxResults];       // of a batch of few rows, operands (width, few_rows(B))
  uint8_t* places[kMaxResults];  // of convolutions with a pool, each maximum's in its window
  float* images[kMaxResults];    // of few rows, (B, width): what convolutions read, else null
  float* weights[kMaxResults];   // of convolutions, by layer, packed
  float* pixels;                 // of a convolution's map; this member's
};

struct Grads {
  float* value[kMaxResults];  // panels of every result that needs one
  bool written[kMaxResults];
  float* strips;                            // of a layer's sources
  float* packed;                            // columns of a weight, twice; this member's
  float* weight_rows;                       // of a weight's gradient; this member's
  float* pairs[2];                          // a layer's gradient as pairs of features
  float *vector, *norm_weight, *norm_bias;  // (widest,)
  bool in_run[kMaxResults];                 // whether value is of this member's panel alone
  float* weights[kMaxResults];              // of convolutions, by layer, packed
  // of convolutions, this member's: the gradient of a panel's map, its input in strips of channels,
  // some channels of the gradient, one channel's weight gradient, and the bias's
  float *d_map, *channel_strips, *copied, *channel, *summed, *channel_bias;
  float* panel_sums;  // weight gradients of a run's layers, of each panel
  int64_t sums_a_panel;
};

inline int64_t width_of(const NopropPlan& plan, int32_t result) {
  return result < plan.num_inputs ? plan.input_widths[result]
                                  : plan.layers[result - plan.num_inputs].width;
}

inline int64_t in_width(const NopropPlan& plan, const NopropLayer& layer) {
  int64_t in = 0;
  for (int s = 0; s < layer.num_sources; ++s) in += width_of(plan, layer.sources[s]);
  return in;
}

inline int64_t widest(const NopropPlan& plan) {
  int64_t width = 0;
  for (int r = 0; r < plan.num_inputs + plan.num_layers; ++r)
    if (width_of(plan, r) > width) width = width_of(plan, r);
  return width;
}

// With bfloat16 operands most results are rounded in place. A result that is added or returned is
// not, nor is z, from which the chain continues.
inline bool keeps_value(const NopropPlan& plan, int r) {
  bool keeps = r == plan.z || r == plan.num_inputs + plan.num_layers - 1;
  for (int l = 0; l < plan.num_layers; ++l) keeps |= plan.layers[l].add == r;
  return keeps;
}

// a unit that multiplies pairs gets no other plans (isa.cpp)
inline bool rounds(const NopropPlan& plan) {
  return kHasPairs || plan.precision == NOPROP_BFLOAT16;
}

// Operands are pairs of bfloat16 if the processor multiplies pairs. Values then stay unrounded.
inline bool has_pairs(const NopropPlan& plan) { return kHasPairs && rounds(plan); }

template <class Body>
NOPROP_INLINE void with_pairs(const NopropPlan&, Body body) {
  body(Constant<kHasPairs>{});
}

// whether a weight gradient reads an input's strips
inline bool needs_strips(const NopropPlan& plan, int j) {
  for (int l = 0; l < plan.num_layers; ++l)
    for (int s = 0; plan.layers[l].kind == NOPROP_DENSE && s < plan.layers[l].num_sources; ++s)
      if (plan.layers[l].sources[s] == j) return true;
  return false;
}

struct SavedNeeds {
  bool loads_inputs = true;        // else the inputs but z are packed elsewhere
  bool strips = true;              // a weight gradient follows
  const bool* left_out = nullptr;  // results that are not computed here, or null
};

inline void take_saved(Saved& saved, Pieces& pieces, const NopropPlan& plan, const Panels& panels,
                       const SavedNeeds& needs = {}) {
  for (int r = 0; r < plan.num_inputs + plan.num_layers; ++r) {
    if (needs.left_out && needs.left_out[r]) continue;
    const int64_t width = width_of(plan, r), size = width * panels.padded();
    const bool elsewhere = !needs.loads_inputs && r < plan.num_inputs && r != plan.z;
    saved.value[r] = elsewhere ? nullptr : pieces.take<float>(size);
    const bool apart = keeps_value(plan, r) || (has_pairs(plan) && r >= plan.num_inputs);
    saved.operand[r] = rounds(plan) && apart ? pieces.take<float>(size) : saved.value[r];
    if (r < plan.num_inputs) {
      saved.strips[r] = needs.strips && needs_strips(plan, r) && !elsewhere
                            ? pieces.take<float>(panels.B * round_up(width))
                            : nullptr;
      continue;
    }
    const NopropLayer& layer = plan.layers[r - plan.num_inputs];
    saved.places[r] = layer.pool ? pieces.take<uint8_t>(size) : nullptr;
    const bool keeps =
        layer.activation && (layer.add >= 0 || needs_preactivation(layer.activation));
    saved.kept[r] = keeps ? pieces.take<float>(size) : saved.value[r];
    if (layer.norm) {
      saved.x_hat[r] = pieces.take<float>(size);
      saved.batch_mean[r] = pieces.take<float>(width);
      saved.batch_var[r] = pieces.take<float>(width);
      saved.rstd[r] = pieces.take<float>(width);
    }
  }
}

// the buffers that a forward pass needs for itself; has_few: it has products of few rows
inline void take_forward(Saved& saved, Pieces& pieces, const NopropPlan& plan, const Panels& panels,
                         const Team& team, bool has_few) {
  int64_t in = 0;
  for (int l = 0; l < plan.num_layers; ++l)
    if (plan.layers[l].kind == NOPROP_DENSE) in = larger(in, in_width(plan, plan.layers[l]));
  const int64_t size = kMostTileRows * in;
  saved.rounded = rounds(plan) ? pieces.take<float>(size * team.size) + team.rank * size : nullptr;
  for (int r = 0; r < plan.num_inputs + plan.num_layers; ++r)
    saved.few[r] = has_few ? pieces.take<float>(width_of(plan, r) * few_rows(panels.B)) : nullptr;
  const bool apart = has_row_images(plan, panels);
  for (int r = 0; r < plan.num_inputs + plan.num_layers; ++r) saved.images[r] = nullptr;
  int64_t pixels = 0;
  for (int l = 0; l < plan.num_layers; ++l) {
    if (plan.layers[l].kind != NOPROP_CONV2D) continue;
    const ConvLayer conv(plan, l);
    const int32_t source = conv.layer.sources[0];
    if (apart && !saved.images[source])
      saved.images[source] = pieces.take<float>(panels.B * width_of(plan, source));
    saved.weights[l] = pieces.take<float>(conv.forward_floats());
    pixels = larger(pixels, apart ? conv.rows() * conv.map.W * round_up(conv.out.C) : kEndsFloats);
  }
  saved.pixels = pieces.take<float>(pixels * team.size) + team.rank * pixels;
}

// For each input whose gradient comes from products alone, its rows in the caller's memory, to
// which it is then written directly; null for the others.
inline void rows_of_inputs(float** rows, const NopropPlan& plan, float* const* d_inputs, int64_t i,
                           int64_t B) {
  for (int j = 0; j < plan.num_inputs; ++j)
    rows[j] = d_inputs && d_inputs[j] ? d_inputs[j] + i * B * plan.input_widths[j] : nullptr;
  for (int l = 0; l < plan.num_layers; ++l)
    if (const int added = plan.layers[l].add; added >= 0 && added < plan.num_inputs)
      rows[added] = nullptr;
  for (int l = 0; l < plan.num_layers; ++l)
    if (const NopropLayer& layer = plan.layers[l];
        layer.kind == NOPROP_CONV2D && layer.sources[0] < plan.num_inputs)
      rows[layer.sources[0]] = nullptr;
}

inline void take_conv_grads(Grads& grads, Pieces& pieces, const NopropPlan& plan,
                            bool input_gradients, const Panels& panels, const Team& team) {
  int64_t d_map = 0, strips = 0, copied = 0, channel = 0, summed = 0, channels = 0, sums = 0;
  for (int l = 0; l < plan.num_layers; ++l) {
    if (plan.layers[l].kind != NOPROP_CONV2D) continue;
    const ConvLayer conv(plan, l);
    const int64_t O = conv.out.C;
    grads.weights[l] = pieces.take<float>(conv.backward_floats());
    const bool goes_on = conv.layer.sources[0] >= plan.num_inputs || input_gradients;
    const bool few = has_few_channels(conv.in);
    const int64_t rows = goes_on ? conv.map.H : few ? 0 : conv.rows();
    d_map = larger(d_map, rows * conv.map.W * panels.P * O);
    // of few channels, a row of the result's gradient and a tile of channels of the map's
    const int64_t few_floats =
        conv.map.W / conv.rows() * (O + kFewChannelsOutputs) +
        (conv.layer.pool ? conv.rows() * conv.map.W * kFewChannelsOutputs : 0);
    copied = larger(copied, (few ? few_floats : conv.map.W * kConvRows) * panels.P);
    if (!few) strips = larger(strips, channel_strip_floats(conv.in, conv.size));
    channel = larger(channel, conv.a_channel());
    summed = larger(summed, summed_floats(conv.in.C, conv.size));
    channels = larger(channels, O);
    sums += conv.panel_floats();
  }
  const auto own = [&](int64_t count) {
    return pieces.take<float>(count * team.size) + team.rank * count;
  };
  grads.d_map = own(d_map);
  grads.channel_strips = own(strips);
  grads.copied = own(copied);
  grads.channel = own(channel);
  grads.summed = own(summed);
  grads.channel_bias = own(channels);
  grads.sums_a_panel = sums;
  grads.panel_sums = pieces.take<float>(sums * panels.count);
}

inline void take_grads(Grads& grads, Pieces& pieces, const NopropPlan& plan, bool input_gradients,
                       const Panels& panels, const Team& team) {
  for (int r = 0; r < plan.num_inputs + plan.num_layers; ++r) {
    const int64_t width = width_of(plan, r), a_panel = width * panels.P;
    grads.in_run[r] = stays_in_run(plan, r);
    grads.value[r] = r < plan.num_inputs && !input_gradients ? nullptr
                     : grads.in_run[r]
                         ? pieces.take<float>(a_panel * team.size) + team.rank * a_panel
                         : pieces.take<float>(width * panels.padded());
  }
  const int64_t width = widest(plan);
  int64_t in = 0, rows = 0;  // of the largest dense layer's weights
  for (int l = 0; l < plan.num_layers; ++l) {
    if (plan.layers[l].kind != NOPROP_DENSE) continue;
    rows = larger(rows, plan.layers[l].width);
    int64_t padded = 0;
    for (int s = 0; s < plan.layers[l].num_sources; ++s)
      padded += round_up(width_of(plan, plan.layers[l].sources[s]));
    if (padded > in) in = padded;
  }
  grads.strips = pieces.take<float>(panels.B * in);
  const int64_t packed = 2 * rows * kStrip;
  grads.packed = pieces.take<float>(packed * team.size) + team.rank * packed;
  const int64_t gradient = weight_grad_floats(panels);
  grads.weight_rows = pieces.take<float>(gradient * team.size) + team.rank * gradient;
  for (int turn = 0; turn < 2; ++turn)
    grads.pairs[turn] = pieces.take<float>(has_pairs(plan) ? width * panels.padded() : 0);
  grads.vector = pieces.take<float>(width);
  grads.norm_weight = pieces.take<float>(width);
  grads.norm_bias = pieces.take<float>(width);
  take_conv_grads(grads, pieces, plan, input_gradients, panels, team);
}

}  // namespace
}  // namespace noprop
