// Runs of convolutions of a plan: members of a team take panels of rows, and each panel's weight
// gradients are summed by themselves, so that no number of members changes a bit.
#pragma once

#include "cpu/kernels/saved.h"
#include "cpu/kernels/update.h"

namespace noprop {
namespace {

constexpr uint32_t kDropoutStream = 3;

inline ConvEnds ends_of(const NopropPlan& plan, const ConvLayer& conv, const float* bias,
                        const NoiseKey* noise, int64_t first_row) {
  const NopropLayer& layer = conv.layer;
  ConvEnds ends = {bias, layer.activation == NOPROP_RELU, layer.pool != 0, 0, 1.0f, rounds(plan),
                   {}};
  if (!noise || layer.dropout <= 0) return ends;
  ends.dropped = (uint32_t)((double)layer.dropout * (1 << 24) + 0.5);
  ends.scale = (float)(1.0 / (1.0 - (double)layer.dropout));
  ends.key = *noise;
  ends.key.place |= kDropoutStream << 16 | (uint32_t)layer.site << 24;
  ends.key.first_row += (uint32_t)first_row;
  return ends;
}

// row y of panel p of a layer's result
inline void forward_panel_row(const Saved& saved, const ConvLayer& conv, const float* packed,
                              const ConvEnds& ends, int64_t p, int64_t y, const Panels& panels) {
  const int32_t source = conv.layer.sources[0], add = conv.layer.add;
  const int64_t at = p * conv.layer.width * panels.P;
  const float* in = saved.operand[source] + p * conv.in.C * conv.in.H * conv.in.W * panels.P;
  const auto run = [&](auto channels_last) {
    conv_panel_row<channels_last.value>(saved.kept[conv.result] + at, conv.out,
                                        saved.places[conv.result] + at, in, conv.in, packed,
                                        conv.size, conv.map.W, saved.pixels, ends, y);
  };
  if (conv.in.channels_last)
    run(Constant<1>{});
  else
    run(Constant<0>{});
  for (int64_t c = 0; (add >= 0 || ends.rounds) && c < conv.out.C; ++c)
    for (int64_t x = 0; x < conv.map.W / conv.rows(); ++x)
      for (int64_t i = at + conv.out.at(c, y, x) * panels.P, end = i + panels.P; i < end;
           i += kLanes) {
        Vec v = load(saved.kept[conv.result] + i);
        if (add >= 0) store(saved.value[conv.result] + i, v += load(saved.value[add] + i));
        if (ends.rounds) store(saved.operand[conv.result] + i, round_bfloat16(v));
      }
}

// row y of a layer's result for row b of a batch that has its images apart
inline void forward_image_row(const Saved& saved, const NopropPlan& plan, const ConvLayer& conv,
                              const float* packed, const float* bias, int64_t b, int64_t y,
                              const Panels& panels) {
  const int32_t source = conv.layer.sources[0], add = conv.layer.add;
  const float* in = saved.images[source] + b * conv.in.C * conv.in.H * conv.in.W;
  float* image = saved.images[conv.result];
  if (image) image += b * conv.layer.width;
  const bool in_panels = !conv.out.channels_last;  // others read it
  conv_row(saved.pixels, in, conv, packed, bias, y, [&](Vec v, int64_t c, int64_t x, int count) {
    const int64_t first = conv.out.at(c, y, x);
    const auto at = [&](int i) { return (first + i * conv.out.channel) * panels.P + b; };
    if (in_panels) {
      for (int i = 0; add >= 0 && i < count; ++i) v[i] += saved.value[add][at(i)];
      for (int i = 0; i < count; ++i) saved.value[conv.result][at(i)] = v[i];
    }
    if (rounds(plan)) v = round_bfloat16(v);
    if (in_panels && rounds(plan))
      for (int i = 0; i < count; ++i) saved.operand[conv.result][at(i)] = v[i];
    if (!image) return;
    if (conv.out.channels_last) return store_partial(image + first, v, count);
    for (int i = 0; i < count; ++i) image[first + i * conv.out.channel] = v[i];
  });
}

// The convolutions of a block without training, as tiles: a row of the result, of a panel or of an
// image.
struct ConvTiles {
  const Saved& saved;
  const NopropPlan& plan;
  const NopropState* states;
  int64_t slice;
  const Panels& panels;

  int64_t count(int l) const {
    const bool apart = has_row_images(plan, panels);
    return ConvLayer(plan, l).out_rows() * (apart ? panels.B : panels.count);
  }
  void run(int l, int64_t tile) const {
    const ConvLayer conv(plan, l);
    const int64_t rows = conv.out_rows(), i = tile / rows, y = tile % rows;
    const float* packed = saved.weights[l];
    const float* bias = states[l].bias.value + slice * conv.out.C;
    if (has_row_images(plan, panels))
      forward_image_row(saved, plan, conv, packed, bias, i, y, panels);
    else
      forward_panel_row(saved, conv, packed, ends_of(plan, conv, bias, nullptr, 0), i, y, panels);
  }
};

// this member's part of packing the weights of a run
inline void pack_run(const Saved& saved, const NopropPlan& plan, const NopropState* states,
                     const ConvRun& run, int64_t slice, const Panels& panels, const Share& share) {
  for (int l = run.first; l < run.last; ++l) {
    const ConvLayer conv(plan, l);
    const float* weight = states[l].weight.value + slice * conv.weights();
    const bool apart = has_row_images(plan, panels);
    const Range own = own_part(share, conv.out.C, apart ? kLanes : kConvRows);
    if (apart)
      pack_row_weight(saved.weights[l], weight, conv, own.first, own.last, rounds(plan));
    else
      pack_forward(saved.weights[l], weight, conv.out.C, conv.size, conv.in, own.first, own.last,
                   rounds(plan));
  }
}

// noise: the address of the step's dropout, whose stream and site are 0 there, or null outside
// training
inline void forward_convs(const Saved& saved, const NopropPlan& plan, const NopropState* states,
                          const ConvRun& run, int64_t slice, const NoiseKey* noise,
                          const Panels& panels, const Share& share) {
  pack_run(saved, plan, states, run, slice, panels, share);
  wait_for_team(share);
  if (has_row_images(plan, panels)) {
    const ConvTiles tiles = {saved, plan, states, slice, panels};
    for (int l = run.first; l < run.last; ++l) {
      const Range own = own_part(share, tiles.count(l), 1);
      for (int64_t tile = own.first; tile < own.last; ++tile) tiles.run(l, tile);
      wait_for_team(share);
    }
    return;
  }
  const Range own = own_part(share, panels.count, 1);
  for (int64_t p = own.first; p < own.last; ++p)
    for (int l = run.first; l < run.last; ++l) {
      const ConvLayer conv(plan, l);
      const float* bias = states[l].bias.value + slice * conv.out.C;
      const ConvEnds ends = ends_of(plan, conv, bias, noise, p * panels.P);
      for (int64_t y = 0; y < conv.out_rows(); ++y)
        forward_panel_row(saved, conv, saved.weights[l], ends, p, y, panels);
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

// What the gradients of a layer in one panel are made from, and where they are summed.
struct PanelRows {
  const float *in, *d_out, *out;
  const uint8_t* places;
  float *sums, *d_bias;  // of the weight, of the bias
};

// the gradient of the map behind row y of a result, to d, and its part of bias and weight
inline void backward_row(const Grads& grads, const ConvLayer& conv, const ConvEnds& ends,
                         const PanelRows& at, float* d, bool weights_wanted, int64_t y) {
  const int64_t rows = conv.rows(), columns = conv.map.W;
  const auto gradient = ends.pools ? pixels_gradient<true> : pixels_gradient<false>;
  gradient(d, conv.out.C, at.d_bias, at.d_out, at.out, conv.out, at.places, columns, ends, y);
  if (weights_wanted)
    conv_weight_grad(at.sums, d, conv.map, at.in, conv.in, conv.size, y * rows, rows, columns,
                     grads.channel_strips, grads.copied);
}

// The same for an input of few channels, whose tile of output channels stays near for a whole
// window. The map's gradient itself is written to d unless that is null.
inline void backward_few_channels_row(const Grads& grads, const ConvLayer& conv,
                                      const ConvEnds& ends, const PanelRows& at, float* d,
                                      bool weights_wanted, int64_t y) {
  constexpr int64_t P = kConvCols * kLanes, kTile = kFewChannelsOutputs;
  const int64_t O = conv.out.C, rows = conv.rows(), columns = conv.map.W;
  float *maxima = grads.copied, *unpooled = maxima + columns / rows * (O + kTile) * P;
  pixels_gradient<false>(maxima, kTile, at.d_bias, at.d_out, at.out, conv.out, at.places,
                         columns / rows, ends, y);
  for (int64_t o = 0; o < O; o += kTile) {
    const int64_t count = O - o < kTile ? O - o : kTile;
    float* tile = maxima + o * columns / rows * P;
    if (ends.pools) {
      unpool_tile(unpooled, tile, kTile, conv.out, at.places, columns, y, o, count);
      tile = unpooled;
    }
    for (int64_t i = 0; d && i < rows * columns; ++i)
      copy_run(d + (i * O + o) * P, tile + i * kTile * P, count * P);
    if (weights_wanted)
      few_channels_weight_grad(at.sums, tile, o, count, at.in, conv.in, conv.size, y * rows, rows,
                               columns);
  }
}

// to = or += the gradient of a layer's source in one panel
inline void backward_source(float* to, bool adds, const Grads& grads, const NopropPlan& plan,
                            const ConvLayer& conv) {
  constexpr int64_t P = kConvCols * kLanes;
  const int32_t source = conv.layer.sources[0];
  // a pixel that nothing depends on has a gradient, which is zero, only outside its run
  int64_t height = conv.in.H, width = conv.in.W;
  if (grads.in_run[source]) {
    const ConvLayer before(plan, source - plan.num_inputs);
    height = before.out_rows();
    width = before.map.W / before.rows();
  }
  conv_product<true>(
      grads.d_map, conv.map, grads.weights[conv.result - plan.num_inputs], conv.in.C, conv.size,
      1 - conv.size, height, width,
      [&](auto rows, int64_t c, int64_t y, int64_t x) __attribute__((always_inline)) {
        fetch_tile<rows.value>(to + conv.in.at(c, y, x) * P, conv.in.channel * P);
      },
      [&](auto& tile, int64_t c, int64_t y, int64_t x) __attribute__((always_inline)) {
        constexpr int ROWS = sizeof(tile) / sizeof(tile[0]);
        for_tile<ROWS, kImageCols>([&](int i, int j) {
          float* at = to + conv.in.at(c + i, y, x) * P + j * kLanes;
          store(at, adds ? load(at) + tile[i][j] : tile[i][j]);
        });
      });
}

// Panel p's gradients of a layer: of the map, of bias and weight, and of the source. `written`
// tells which results have a gradient in this panel already, to which more is then added.
inline void backward_panel(const Saved& saved, const Grads& grads, const NopropPlan& plan,
                           const ConvLayer& conv, float* sums, bool* written,
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
  const ConvEnds ends = ends_of(plan, conv, nullptr, job.noise, p * P);
  const bool few = has_few_channels(conv.in), goes_on = wanted(source);
  const PanelRows at = {saved.operand[source] + p * conv.in.C * conv.in.H * conv.in.W * P,
                        d_out,
                        saved.kept[conv.result] + p * width * P,
                        saved.places[conv.result] + p * width * P,
                        sums,
                        sums + conv.sums()};
  if (few) __builtin_memset(sums, 0, sizeof(float) * conv.sums());
  __builtin_memset(at.d_bias, 0, sizeof(float) * O * P);
  for (int64_t y = 0; y < conv.map.H / conv.rows(); ++y) {
    // rows that nothing reads again are written where the last ones were, which is near
    float* d = goes_on ? grads.d_map + y * row : few ? nullptr : grads.d_map;
    (few ? backward_few_channels_row : backward_row)(grads, conv, ends, at, d, job.weights_wanted,
                                                     y);
  }
  if (!goes_on) return;
  backward_source(gradient_panel(grads, plan, source, p, panels), written[source], grads, plan,
                  conv);
  written[source] = true;
}

// this member's part of packing the weights of a run for its backward pass
inline void pack_run_backward(const Grads& grads, const NopropPlan& plan, const NopropState* states,
                              const ConvRun& run, int64_t slice, const bool* input_wanted,
                              const Share& share) {
  for (int l = run.first; l < run.last; ++l) {
    const ConvLayer conv(plan, l);
    const int32_t source = conv.layer.sources[0];
    if (source < plan.num_inputs && !input_wanted[source]) continue;
    const Range own = own_part(share, conv.in.C, kConvRows);
    pack_backward(grads.weights[l], states[l].weight.value + slice * conv.weights(), conv.in.C,
                  conv.size, conv.map, own.first, own.last, rounds(plan));
  }
}

// this member's panels of a run, its layers in reverse
inline void backward_panels(const Saved& saved, Grads& grads, const NopropPlan& plan,
                            const ConvRun& run, const ConvBackward& job, const Panels& panels,
                            const Share& share) {
  const Range own = own_part(share, panels.count, 1);
  bool written[kMaxResults];
  for (int64_t p = own.first; p < own.last; ++p) {
    __builtin_memcpy(written, grads.written, sizeof written);
    float* sums = grads.panel_sums + p * grads.sums_a_panel;
    for (int l = run.last; l-- > run.first;) {
      const ConvLayer conv(plan, l);
      backward_panel(saved, grads, plan, conv, sums, written, job, p, panels);
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
