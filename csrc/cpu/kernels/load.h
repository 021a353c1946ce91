// The beginning of a step: rows of the inputs, labels, embeddings, noise and z are brought into
// panels and strips.
#pragma once

#include "cpu/kernels/noise.h"
#include "cpu/kernels/saved.h"

namespace noprop {
namespace {

// the row indices of a gathered input for step k, slice i; null if it is not gathered
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
  if (count == kLanes) return (x - load(input.mean + f)) * load(input.scale + f);
  return (x - load_partial(input.mean + f, count)) * load_partial(input.scale + f, count);
}

// Loads `count` features from f on of `rows` rows; the rest of the square is 0. Whole squares of
// plain float32, which most are, need no decision for each row.
NOPROP_INLINE void load_inputs(Vec (&square)[kLanes], const NopropInput& input,
                               const int64_t (&at)[kLanes], int64_t f, int count, int64_t rows) {
  if (input.dtype == NOPROP_FLOAT32 && !input.scale && count == kLanes && rows == kLanes) {
    const float* data = static_cast<const float*>(input.data) + f;
    for_first(kLanes, [&](int b) { square[b] = load(data + at[b]); });
    return;
  }
  Vec any[kLanes];  // apart, so that whole squares stay in registers
  for (int64_t b = 0; b < kLanes; ++b)
    any[b] = b < rows ? load_features(input, at[b] + f, f, count) : Vec{};
  for_first(kLanes, [&](int b) { square[b] = any[b]; });
}

// Gathered rows are anywhere in memory, and a square reads too little of each of them for the
// hardware to detect a stream.
NOPROP_INLINE void fetch_inputs(const NopropInput& input, const int64_t (&at)[kLanes], int64_t f,
                                int64_t width, int64_t rows) {
  const int64_t size = bytes_of(input.dtype), ahead = f + 4 * 64 / size;
  if (ahead >= width || f * size % 64 >= kLanes * size) return;
  const char* data = static_cast<const char*>(input.data) + ahead * size;
  for (int64_t b = 0; b < rows; ++b) __builtin_prefetch(data + at[b] * size);
}

// stores a square of inputs to panels: `count` features from f, of the rows of vector g
template <bool PAIRS>
NOPROP_INLINE void store_features(float* values, const Vec (&square)[kLanes], int64_t width,
                                  int64_t f, int count, int64_t g, const Panels& panels) {
  float* to = values + panels.at(terms<PAIRS>(width), PAIRS ? f / 2 : f, g);
  for_first(count, [&](int c) {
    if constexpr (!PAIRS)
      store(to + c * panels.P, square[c]);
    else if (c % 2 == 0)
      store(to + c / 2 * panels.P, zip_pairs(square[c], c + 1 < count ? square[c + 1] : Vec{}));
  });
}

// Loads the rows of vectors g_first .. g_last of an input, for step k and slice i, into strips and
// panels, a square at a time. `first` is the first row of the batch. Panels are the products'
// operands, or unrounded values if those are needed. `strips` is null if no weight gradient
// follows, `values` if no product does. Returns false if a feature is not finite.
template <bool PAIRS>
inline bool load_rows(float* strips, float* values, const NopropInput& input,
                      const NopropPlan& plan, int j, int64_t k, int64_t i, int64_t first,
                      int64_t g_first, int64_t g_last, int64_t B, const Panels& panels) {
  const int64_t width = plan.input_widths[j];
  const bool keeps = keeps_value(plan, j), rounds_strips = rounds(plan) && !PAIRS;
  const int64_t* indices = row_indices(input, k, i, B);
  Vec zero = {};  // a sum of x * 0 stays 0 unless some x is infinite or NaN
  for (int64_t g = g_first; g < g_last; ++g) {
    int64_t at[kLanes];
    const int64_t left = panels.B - g * kLanes, rows = left < kLanes ? left : kLanes;
    for (int64_t b = 0; b < rows; ++b) {
      const int64_t row = first + g * kLanes + b;
      at[b] = indices ? indices[row] * width
                      : k * input.stride_k + i * input.stride_slice + row * width;
    }
    for_strips(width, [&](int64_t start, int cols) {
      for (int column = 0; column < cols; ++column) {
        const int64_t f = start + column * kLanes;
        const int count = width - f < kLanes ? (int)(width - f) : kLanes;
        Vec square[kLanes];
        fetch_inputs(input, at, f, width, rows);
        load_inputs(square, input, at, f, count, rows);
        for (int64_t b = 0; b < kLanes; ++b) zero += square[b] * 0.0f;
        if (strips)
          store_square<PAIRS>(strips + start * panels.B + column * kLanes, square, g, cols,
                              panels.B, rounds_strips);
        if (!values) continue;
        if (rounds_strips && !keeps)
          for (int64_t b = 0; b < kLanes; ++b) square[b] = round_bfloat16(square[b]);
        transpose(square);
        if (keeps)
          store_features<false>(values, square, width, f, count, g, panels);
        else
          store_features<PAIRS>(values, square, width, f, count, g, panels);
      }
    });
  }
  return sum_lanes(zero) == 0;
}

inline bool load_input(float* strips, float* values, const NopropInput& input,
                       const NopropPlan& plan, int j, int64_t k, int64_t i, int64_t first,
                       int64_t g_first, int64_t g_last, int64_t B, const Panels& panels) {
  bool finite = true;
  with_pairs(plan, [&](auto pairs) {
    finite = load_rows<pairs.value>(strips, values, input, plan, j, k, i, first, g_first, g_last, B,
                                    panels);
  });
  return finite;
}

// Whether the form for few rows is all that is read of an input, and is what the caller has.
inline bool narrows_rows(const NopropPlan& plan, int j, const NopropInput& input) {
  if (rounds(plan) || has_images(plan)) return false;
  for (int l = 0; l < plan.num_layers; ++l)
    if (plan.layers[l].add == j) return false;
  return input.dtype == NOPROP_FLOAT32 && !input.scale && !input.indices;
}

// own features of the caller's rows from `first` on, in the form for few rows
inline void narrow_rows(float* few, const NopropInput& input, const NopropPlan& plan, int j,
                        int64_t i, int64_t first, const Panels& panels, const Share& share) {
  const int64_t width = plan.input_widths[j], count = few_rows(panels.B);
  const float* from =
      static_cast<const float*>(input.data) + i * input.stride_slice + first * width;
  const Range own = own_features(panels, share, width);
  if (count == 1) {
    __builtin_memcpy(few + own.first, from + own.first, sizeof(float) * (own.last - own.first));
    return;
  }
  for (int64_t f = own.first; f < own.last; ++f)
    for (int64_t b = 0; b < count; ++b) few[f * count + b] = b < panels.B ? from[b * width + f] : 0;
}

// from a row on; the labels are not gathered
inline NopropLabels rows_from(NopropLabels y, int64_t row) {
  y.data += row;
  return y;
}

inline NopropPerRow rows_from(NopropPerRow values, int64_t row) {
  values.data += row * values.stride_row;
  return values;
}

inline void load_labels(int32_t* y, const NopropLabels& labels, int64_t k, int64_t i,
                        const Panels& panels) {
  const int64_t B = panels.B;
  for (int64_t b = 0; b < panels.padded(); ++b) {
    if (b >= B) {
      y[b] = 0;
    } else if (labels.indices) {
      const int64_t replica = labels.replica ? labels.replica[i] : 0;
      y[b] = (int32_t)labels.data[labels.indices[(k * labels.replicas + replica) * B + b]];
    } else {
      y[b] = (int32_t)labels.data[k * labels.stride_k + i * labels.stride_slice + b];
    }
  }
}

// u_y = W_embed[y], panels (D, P)
inline void embed(float* u_y, const int32_t* y, const float* W_embed, int64_t D,
                  const Panels& panels) {
  for (int64_t g = 0; g < panels.vectors(); ++g) {
    IntVec labels;
    __builtin_memcpy(&labels, y + g * kLanes, sizeof labels);
    for (int64_t d = 0; d < D; ++d) {
      Vec v = {};
      if (!W_embed)
        v = labels == (int32_t)d ? v + 1.0f : v;
      else
        for (int lane = 0; lane < kLanes; ++lane) v[lane] = W_embed[y[g * kLanes + lane] * D + d];
      store(u_y + panels.at(D, d, g), keep_first(v, panels.B - g * kLanes));
    }
  }
}

inline NoiseKey noise_key(const NopropNoise& noise, uint64_t seed, uint32_t stream, int64_t k,
                          int64_t i) {
  const int64_t draw = noise.draw[k * noise.draw_stride_k + i * noise.draw_stride_slice];
  const int64_t block = noise.block[k * noise.block_stride_k + i * noise.block_stride_slice];
  return {seed, ((uint32_t)block & 0xffff) | stream << 16, (uint32_t)draw,
          (uint32_t)noise.first_row};
}

// z = signal u_y + noise eps + sigma eps_1, panels (D, P); `second` holds eps_1 where sigma is not
// 0
inline void mix_noise(float* z, float* second, const float* u_y, const float* eps,
                      const NopropNoise& noise, uint64_t seed, const NopropNoising& noising,
                      int64_t D, int64_t k, int64_t i, const Panels& panels) {
  if (noising.sigma != 0) draw_normal(second, noise_key(noise, seed, 1, k, i), D, panels);
  const float* signal =
      noising.signal.data + k * noising.signal.stride_k + i * noising.signal.stride_slice;
  const float* level =
      noising.noise.data + k * noising.noise.stride_k + i * noising.noise.stride_slice;
  for (int64_t g = 0; g < panels.vectors(); ++g) {
    const Vec signal_g = per_row(signal, noising.signal.stride_row, g, panels);
    const Vec level_g = per_row(level, noising.noise.stride_row, g, panels);
    for (int64_t d = 0; d < D; ++d) {
      const int64_t at = panels.at(D, d, g);
      Vec v = signal_g * load(u_y + at) + level_g * load(eps + at);
      if (noising.sigma != 0) v += load(second + at) * noising.sigma;
      store(z + at, v);
    }
  }
}

}  // namespace
}  // namespace noprop
