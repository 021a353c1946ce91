// Convolutions of a batch with too few rows to fill a vector: lanes are output channels, a tile has
// pixels that stand side by side, and each row of the batch is an image of its own. An element has
// one accumulator that ascends over its window in the same order as in a panel, and so the same
// bits.
#pragma once

#include "cpu/kernels/conv_geometry.h"
#include "cpu/kernels/small_batch.h"

namespace noprop {
namespace {

// whether images are apart, row by row, and not in panels; training has none
inline bool has_row_images(const NopropPlan& plan, const Panels& panels) {
  return panels.cols < kImageCols && has_images(plan);
}

// the panels of a pass that nothing is saved from
inline Panels make_inference_panels(const NopropPlan& plan, int64_t B) {
  return B <= kLanes ? make_panels(B) : make_panels(plan, B);
}

// packed (term, round_up(O)) <- weight (O, C, size, size), terms in the order of `in`; output
// channels first .. last alone, whole vectors of them
inline void pack_row_weight(float* packed, const float* weight, const ConvLayer& conv,
                            int64_t first, int64_t last, bool rounds) {
  const int64_t O = conv.out.C, K = conv.a_channel(), taps = conv.size * conv.size;
  const int64_t padded = round_up(O);
  for (int64_t o = first; o < last; o += kLanes)
    for (int64_t i = 0; i < K; i += kLanes) {
      const int count = K - i < kLanes ? (int)(K - i) : kLanes;
      Vec square[kLanes];
      for (int64_t r = 0; r < kLanes; ++r)
        square[r] = o + r >= O       ? Vec{}
                    : count < kLanes ? load_partial(weight + (o + r) * K + i, count)
                                     : load(weight + (o + r) * K + i);
      transpose(square);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t c = (i + j) / taps, tap = (i + j) % taps;
        const int64_t term = conv.in.channels_last ? tap * conv.in.C + c : i + j;
        store(packed + term * padded + o, rounds ? round_bfloat16(square[j]) : square[j]);
      }
    }
}

// pixels (x, round_up(O)) <- the sums of the windows of row y of one image
template <bool CHANNELS_LAST>
[[gnu::noinline]] inline void row_product(float* pixels, const float* in, const Map& map,
                                          const float* packed, int64_t padded, int64_t size,
                                          int64_t y, int64_t width) {
  const auto strip = [&](auto cols, int64_t o) {
    constexpr int COLS = decltype(cols)::value;
    for_row_tiles<COLS>(0, width, [&](auto rows, int64_t x) {
      constexpr int ROWS = decltype(rows)::value;
      Vec c[ROWS][COLS] = {};
      for_runs<CHANNELS_LAST>(map, size, y, x, [&](int64_t feature, int64_t term, int64_t count) {
        multiply_tile(c, in + feature, map.pixel, 1, packed + term * padded + o, padded, count);
      });
      for_tile<ROWS, COLS>(
          [&](int i, int j) { store(pixels + (x + i) * padded + o + j * kLanes, c[i][j]); });
    });
  };
  int64_t o = 0;
  for (; o + kConvStrip <= padded; o += kConvStrip) strip(Constant<kConvCols>{}, o);
  if (o < padded) strip(Constant<1>{}, o);
}

// Row y of a convolution's result for one image: put(value, c, x, count) gets `count` channels from
// c of each pixel. `pixels` has room for the map's rows behind it.
template <class Put>
inline void conv_row(float* pixels, const float* in, const ConvLayer& conv, const float* packed,
                     const float* bias, int64_t y, Put put) {
  const int64_t O = conv.out.C, padded = round_up(O), width = conv.map.W, rows = conv.rows();
  for (int64_t i = 0; i < rows; ++i) {
    float* row = pixels + i * width * padded;
    if (conv.in.channels_last)
      row_product<true>(row, in, conv.in, packed, padded, conv.size, y * rows + i, width);
    else
      row_product<false>(row, in, conv.in, packed, padded, conv.size, y * rows + i, width);
  }
  for (int64_t c = 0; c < O; c += kLanes) {
    const int count = O - c < kLanes ? (int)(O - c) : kLanes;
    const Vec shift = load_partial(bias + c, count);
    for (int64_t x = 0; x < width / rows; ++x) {
      const auto pixel = [&](int64_t i, int64_t j) {
        return load(pixels + (i * width + x * rows + j) * padded + c) + shift;
      };
      Vec v = pixel(0, 0);
      for (int q = 1; q < rows * rows; ++q) {
        const Vec other = pixel(q / 2, q % 2);
        v = replaces(other, v) ? other : v;
      }
      if (conv.layer.activation == NOPROP_RELU) v = relu(v);
      put(v, c, x, count);
    }
  }
}

}  // namespace
}  // namespace noprop
