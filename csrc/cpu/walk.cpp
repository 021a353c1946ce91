// The walk over a plan: where each result lies in a workspace, forward in order, backward in
// reverse.
#include "dense.cpp"
#include "head.cpp"
#include "noise.cpp"
#include "norm.cpp"
#include "update.cpp"

namespace noprop {
namespace {

// hands out pieces of a workspace; with no base it only counts
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

// what forward leaves for backward
struct Saved {
  float* value[kMaxResults];    // panels of every result
  float* operand[kMaxResults];  // what products read: the value, or a rounded copy of it
  float* strips[kMaxResults];   // of inputs
  float*
      activated[kMaxResults];  // of layers with relu and add: what stood before add; else the value
  float* x_hat[kMaxResults];   // of layers with norm
  float *batch_mean[kMaxResults], *batch_var[kMaxResults], *rstd[kMaxResults];
  float* rounded;  // rows of a weight, this member's, or null
};

struct Grads {
  float* value[kMaxResults];  // panels of every result that needs one
  bool written[kMaxResults];
  float* strips;                            // of a layer's sources
  float* packed;                            // columns of a weight, twice; this member's
  float *vector, *norm_weight, *norm_bias;  // (widest,)
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

// With bfloat16 operands most results are rounded where they are. These are not: what is added or
// returned, and z, from which the chain goes on.
inline bool keeps_value(const NopropPlan& plan, int r) {
  bool keeps = r == plan.z || r == plan.num_inputs + plan.num_layers - 1;
  for (int l = 0; l < plan.num_layers; ++l) keeps |= plan.layers[l].add == r;
  return keeps;
}

inline bool rounds(const NopropPlan& plan) { return plan.precision == NOPROP_BFLOAT16; }

inline void take_saved(Saved& saved, Pieces& pieces, const NopropPlan& plan, const Panels& shape) {
  for (int r = 0; r < plan.num_inputs + plan.num_layers; ++r) {
    const int64_t width = width_of(plan, r), size = width * shape.padded();
    saved.value[r] = pieces.take<float>(size);
    saved.operand[r] =
        rounds(plan) && keeps_value(plan, r) ? pieces.take<float>(size) : saved.value[r];
    if (r < plan.num_inputs) {
      saved.strips[r] = pieces.take<float>(shape.B * round_up(width));
      continue;
    }
    const NopropLayer& layer = plan.layers[r - plan.num_inputs];
    saved.activated[r] = layer.relu && layer.add >= 0 ? pieces.take<float>(size) : saved.value[r];
    if (layer.norm) {
      saved.x_hat[r] = pieces.take<float>(size);
      saved.batch_mean[r] = pieces.take<float>(width);
      saved.batch_var[r] = pieces.take<float>(width);
      saved.rstd[r] = pieces.take<float>(width);
    }
  }
  int64_t in = 0;
  for (int l = 0; l < plan.num_layers; ++l)
    if (in_width(plan, plan.layers[l]) > in) in = in_width(plan, plan.layers[l]);
  const int64_t size = kMostTileRows * in, members = shape.team.size;
  saved.rounded =
      rounds(plan) ? pieces.take<float>(size * members) + shape.team.rank * size : nullptr;
}

inline void take_grads(Grads& grads, Pieces& pieces, const NopropPlan& plan, const Panels& shape) {
  for (int r = 0; r < plan.num_inputs + plan.num_layers; ++r)
    grads.value[r] = pieces.take<float>(width_of(plan, r) * shape.padded());
  const int64_t width = widest(plan);
  int64_t in = 0;
  for (int l = 0; l < plan.num_layers; ++l) {
    int64_t padded = 0;
    for (int s = 0; s < plan.layers[l].num_sources; ++s)
      padded += round_up(width_of(plan, plan.layers[l].sources[s]));
    if (padded > in) in = padded;
  }
  grads.strips = pieces.take<float>(shape.B * in);
  const int64_t packed = 2 * width * kStrip;
  grads.packed = pieces.take<float>(packed * shape.team.size) + shape.team.rank * packed;
  grads.vector = pieces.take<float>(width);
  grads.norm_weight = pieces.take<float>(width);
  grads.norm_bias = pieces.take<float>(width);
}

// where a gathered input's rows of step k, slice i are named; null: it is not gathered
inline const int64_t* row_indices(const NopropInput& input, int64_t k, int64_t i, int64_t B) {
  if (!input.indices) return nullptr;
  const int64_t replica = input.replica ? input.replica[i] : 0;
  return input.indices + (k * input.replicas + replica) * B;
}

// `count` features of an input at `at`, as float32, from any of its types; f is the first's number
NOPROP_INLINE Vec load_features(const NopropInput& input, int64_t at, int64_t f, int count) {
  Vec x;
  if (input.dtype == NOPROP_FLOAT32) {
    const float* data = static_cast<const float*>(input.data) + at;
    x = count == kLanes ? load(data) : load_partial(data, count);
  } else if (input.dtype == NOPROP_BFLOAT16) {
    HalfVec half = {};
    __builtin_memcpy(&half, static_cast<const uint16_t*>(input.data) + at,
                     sizeof(uint16_t) * count);
    x = (Vec)(__builtin_convertvector(half, UintVec) << 16);
  } else {
    ByteVec byte = {};
    __builtin_memcpy(&byte, static_cast<const uint8_t*>(input.data) + at, count);
    x = __builtin_convertvector(byte, Vec);
  }
  if (!input.scale) return x;
  if (count == kLanes) return x * load(input.scale + f) + load(input.shift + f);
  return x * load_partial(input.scale + f, count) + load_partial(input.shift + f, count);
}

// rows of vectors g_first .. g_last of an input of step k, slice i to strips and panels, a square
// at a time; `first` is the batch's row that comes first. False: something is not finite.
inline bool load_input(float* strips, float* panels, const NopropInput& input,
                       const NopropPlan& plan, int j, int64_t k, int64_t i, int64_t first,
                       int64_t g_first, int64_t g_last, int64_t B, const Panels& shape) {
  const int64_t width = plan.input_widths[j];
  const bool rounds_strips = rounds(plan), rounds_panels = rounds_strips && !keeps_value(plan, j);
  const int64_t* indices = row_indices(input, k, i, B);
  Vec zero = {};  // a sum of x * 0 stays 0 unless some x is infinite or NaN
  for (int64_t g = g_first; g < g_last; ++g) {
    int64_t at[kLanes];
    const int64_t left = shape.B - g * kLanes, rows = left < kLanes ? left : kLanes;
    for (int64_t b = 0; b < rows; ++b) {
      const int64_t row = first + g * kLanes + b;
      at[b] = indices ? indices[row] * width : k * input.step + i * input.slice + row * width;
    }
    for_strips(width, [&](int64_t start, int cols) {
      float* strip = strips + start * shape.B + g * kLanes * cols * kLanes;
      for (int column = 0; column < cols; ++column) {
        const int64_t f = start + column * kLanes;
        const int count = width - f < kLanes ? (int)(width - f) : kLanes;
        Vec square[kLanes];
        for (int64_t b = 0; b < kLanes; ++b) {
          const Vec x = b < rows ? load_features(input, at[b] + f, f, count) : Vec{};
          const Vec rounded = rounds_strips ? round_bfloat16(x) : x;
          if (b < rows) store(strip + (b * cols + column) * kLanes, rounded);
          square[b] = rounds_panels ? rounded : x;
          zero += x * 0.0f;
        }
        transpose(square);
        for (int c = 0; c < count; ++c) store(panels + shape.at(width, f + c, g), square[c]);
      }
    });
  }
  return sum_lanes(zero) == 0;
}

inline void load_labels(int32_t* y, const NopropLabels& labels, int64_t k, int64_t i,
                        const Panels& shape) {
  const int64_t B = shape.B;
  for (int64_t b = 0; b < shape.padded(); ++b) {
    if (b >= B) {
      y[b] = 0;
    } else if (labels.indices) {
      const int64_t replica = labels.replica ? labels.replica[i] : 0;
      y[b] = (int32_t)labels.data[labels.indices[(k * labels.replicas + replica) * B + b]];
    } else {
      y[b] = (int32_t)labels.data[k * labels.step + i * labels.slice + b];
    }
  }
}

// u_y = W_embed[y], panels (D, P)
inline void embed(float* u_y, const int32_t* y, const float* W_embed, int64_t D,
                  const Panels& shape) {
  for (int64_t g = 0; g < shape.vectors(); ++g)
    for (int64_t d = 0; d < D; ++d) {
      Vec v;
      for (int lane = 0; lane < kLanes; ++lane) {
        const int32_t label = y[g * kLanes + lane];
        v[lane] = W_embed ? W_embed[label * D + d] : (label == d ? 1.0f : 0.0f);
      }
      store(u_y + shape.at(D, d, g), keep_first(v, shape.B - g * kLanes));
    }
}

inline NoiseKey noise_key(const NopropNoise& noise, uint64_t seed, uint32_t stream, int64_t k,
                          int64_t i) {
  const int64_t draw = noise.draw[k * noise.draw_step + i * noise.draw_slice];
  const int64_t block = noise.block[k * noise.block_step + i * noise.block_slice];
  return {seed, ((uint32_t)block & 0xffff) | stream << 16, (uint32_t)draw,
          (uint32_t)noise.first_row};
}

// z = signal u_y + noise eps + sigma eps_1, panels (D, P); `second` holds eps_1 where sigma is not
// 0
inline void mix_noise(float* z, float* second, const float* u_y, const float* eps,
                      const NopropNoise& noise, uint64_t seed, const NopropMix& mix, int64_t k,
                      int64_t i, const Panels& shape) {
  const int64_t D = mix.D;
  if (mix.sigma != 0) draw_normal(second, noise_key(noise, seed, 1, k, i), D, shape);
  const float* signal = mix.signal.data + k * mix.signal.step + i * mix.signal.slice;
  const float* level = mix.noise.data + k * mix.noise.step + i * mix.noise.slice;
  for (int64_t g = 0; g < shape.vectors(); ++g) {
    const Vec signal_g = row_numbers(signal, mix.signal.row, g, shape);
    const Vec level_g = row_numbers(level, mix.noise.row, g, shape);
    for (int64_t d = 0; d < D; ++d) {
      const int64_t at = shape.at(D, d, g);
      Vec v = signal_g * load(u_y + at) + level_g * load(eps + at);
      if (mix.sigma != 0) v += load(second + at) * mix.sigma;
      store(z + at, v);
    }
  }
}

// what products read of a result, once its value is there
inline void round_operand(const Saved& saved, const NopropPlan& plan, int r, const Panels& shape) {
  if (rounds(plan) && r != plan.num_inputs + plan.num_layers - 1)
    for_own_runs(shape, width_of(plan, r), [&](int64_t at, int64_t count) {
      round_run(saved.operand[r] + at, saved.value[r] + at, count);
    });
}

inline void walk_forward(const Saved& saved, const NopropPlan& plan, const NopropState* states,
                         int64_t slice, bool training, const Panels& shape) {
  for (int l = 0; l < plan.num_layers; ++l) {
    const NopropLayer& layer = plan.layers[l];
    const NopropState& state = states[l];
    const int r = plan.num_inputs + l;
    const int64_t H = layer.width;
    Source sources[kMaxResults];
    for (int s = 0; s < layer.num_sources; ++s)
      sources[s] = {saved.operand[layer.sources[s]], width_of(plan, layer.sources[s])};
    const float* weight = state.weight.value + slice * H * in_width(plan, layer);
    const float* bias = state.bias.value + slice * H;
    const float* add = layer.add >= 0 ? saved.value[layer.add] : nullptr;
    float* activated = saved.activated[r] == saved.value[r] ? nullptr : saved.activated[r];
    if (!layer.norm) {
      dense_forward(saved.value[r], activated, sources, layer.num_sources, weight, bias, add,
                    layer.relu, H, saved.rounded, shape);
      round_operand(saved, plan, r, shape);
      wait_for_team(shape);
      continue;
    }
    dense_forward(saved.x_hat[r], nullptr, sources, layer.num_sources, weight, bias, nullptr, false,
                  H, saved.rounded, shape);
    const Norm norm = {state.norm_weight.value + slice * H, state.norm_bias.value + slice * H,
                       state.running_mean + slice * H, state.running_var + slice * H,
                       layer.norm_eps};
    norm_forward(saved.value[r], activated, saved.x_hat[r], saved.batch_mean[r], saved.batch_var[r],
                 saved.rstd[r], norm, add, layer.relu, training, H, shape);
    round_operand(saved, plan, r, shape);
    wait_for_team(shape);
  }
}

// the running statistics take in the batch's
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
inline void add_grad(Grads& grads, int result, const float* d, int64_t H, const Panels& shape) {
  float* to = grads.value[result];
  for_own_runs(shape, H, [&](int64_t at, int64_t count) {
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
  const Step* step;          // null: gradients only
  bool training;
};

// own features of a small parameter's gradient to its optimizer, or to the caller's array
inline void finish_vector(const NopropParam& param, const float* gradient, const BackwardPlan& job,
                          int64_t H, const Range& own) {
  const int64_t count = own.last - own.first;
  if (param.grad)
    __builtin_memcpy(param.grad + job.i * H + own.first, gradient + own.first,
                     sizeof(float) * count);
  if (job.step)
    update_rows(run_at(param, job.slice * H + own.first), 0, gradient + own.first, 0, 1, count,
                *job.step);
}

inline void weight_backward(const BackwardPlan& job, const Saved& saved, const Grads& grads, int l,
                            const Panels& shape) {
  const NopropLayer& layer = job.plan.layers[l];
  const NopropParam& param = job.states[l].weight;
  const int64_t H = layer.width, in = in_width(job.plan, layer);
  const float* d_out = grads.value[job.plan.num_inputs + l];
  const Run all = run_at(param, job.slice * H * in);
  const auto at = [&](int64_t i) {
    return Run{all.w + i, all.m ? all.m + i : nullptr, all.v ? all.v + i : nullptr};
  };
  float* grad = param.grad ? param.grad + job.i * H * in : nullptr;
  int64_t first = 0;
  const float* own_strips = grads.strips;
  for (int s = 0; s < layer.num_sources; ++s) {
    const int source = layer.sources[s];
    const int64_t width = width_of(job.plan, source);
    const float* strips = source < job.plan.num_inputs ? saved.strips[source] : own_strips;
    dense_weight_grad(d_out, strips, width, H, shape,
                      [&](const float* gradient, int64_t stride, int64_t o, int64_t rows, int64_t f,
                          int64_t count) {
                        const int64_t from = o * in + first + f;
                        for (int64_t row = 0; grad && row < rows; ++row)
                          __builtin_memcpy(grad + from + row * in, gradient + row * stride,
                                           sizeof(float) * count);
                        if (job.step)
                          update_rows(at(from), in, gradient, stride, rows, count, *job.step);
                      });
    first += width;
    own_strips += shape.B * round_up(width);
  }
}

// grads.value of the last result holds d_logits. In reverse: a layer's own gradients, its sources',
// then its update, since the sources' gradients need the old weights.
inline void walk_backward(const BackwardPlan& job, const Saved& saved, Grads& grads,
                          const Panels& shape) {
  const NopropPlan& plan = job.plan;
  const int results = plan.num_inputs + plan.num_layers;
  for (int r = 0; r < results; ++r) grads.written[r] = r == results - 1;
  for (int l = plan.num_layers - 1; l >= 0; --l) {
    const NopropLayer& layer = plan.layers[l];
    const NopropState& state = job.states[l];
    const int r = plan.num_inputs + l;
    const int64_t H = layer.width, in = in_width(plan, layer);
    const Range own = own_features(shape, H);
    float* d = grads.value[r];
    const auto wanted = [&](int source) {
      return source >= plan.num_inputs || job.input_wanted[source];
    };
    if (layer.add >= 0 && wanted(layer.add)) add_grad(grads, layer.add, d, H, shape);
    if (layer.relu) relu_grad(d, saved.activated[r], H, shape);
    if (layer.norm)
      norm_backward(d, grads.norm_weight, grads.norm_bias, saved.x_hat[r], saved.rstd[r],
                    state.norm_weight.value + job.slice * H, job.training, H, shape);
    if (layer.norm &&
        job.training)  // the batch's mean takes the bias away: its gradient is exactly zero
      for (int64_t o = own.first; o < own.last; ++o) grads.vector[o] = 0;
    else
      dense_bias_grad(grads.vector, d, H, shape);
    finish_vector(state.bias, grads.vector, job, H, own);
    if (layer.norm) {
      finish_vector(state.norm_weight, grads.norm_weight, job, H, own);
      finish_vector(state.norm_bias, grads.norm_bias, job, H, own);
    }
    if (rounds(plan))
      for_own_runs(shape, H, [&](int64_t at, int64_t count) { round_run(d + at, d + at, count); });
    wait_for_team(shape);
    int64_t first = 0;
    float* strips = grads.strips;
    const float* weight = state.weight.value + job.slice * H * in;
    const bool wants_weight = job.step || state.weight.grad;
    for (int s = 0; s < layer.num_sources; ++s) {
      const int source = layer.sources[s];
      const int64_t width = width_of(plan, source);
      if (wanted(source)) {
        dense_input_grad(strips, d, weight, in, first, width, H, grads.packed, rounds(plan), shape);
        strips_to_panels(grads.value[source], grads.written[source], strips, width, shape);
        grads.written[source] = true;
      }
      if (wants_weight && source >= plan.num_inputs)
        panels_to_strips(strips, saved.operand[source], width, shape);
      first += width;
      strips += shape.B * round_up(width);
    }
    wait_for_team(shape);
    if (wants_weight) weight_backward(job, saved, grads, l, shape);
  }
}

}  // namespace
}  // namespace noprop
