// What follows a convolution's product: bias, ReLU, the maximum of 2 x 2 pixels, dropout. On one
// panel of rows, a row of pixels at a time.
#pragma once

#include "cpu/kernels/conv.h"
#include "cpu/kernels/noise.h"

namespace noprop {
namespace {

struct ConvEnds {
  const float* bias;
  bool is_relu, pools;
  uint32_t dropped;  // of 2^24; 0: no dropout
  float scale;       // of what dropout keeps
  bool rounds;       // the gradient to bfloat16, as an operand of products
  NoiseKey key;      // of dropout's numbers; row 0 is the panel's first
};

// whether a pixel of a window is the new maximum; of equal ones the first stays, and NaN is one, as
// torch has it
NOPROP_INLINE IntVec replaces(Vec other, Vec maximum) {
  return (other > maximum) | (other != other);
}

// The numbers of dropout of a vector of rows from first_row on: a word for each column, pixel * C +
// c, four of one counter.
NOPROP_INLINE void draw_dropout(UintVec (&words)[4], const NoiseKey& key, int64_t first_row,
                                int64_t counter) {
  words[0] = UintVec{} + (uint32_t)counter;
  words[1] = (UintVec)lane_numbers() + (key.first_row + (uint32_t)first_row);
  words[2] = UintVec{} + key.place;
  words[3] = UintVec{} + key.draw;
  philox(words, key.seed);
}

// One row of a result, from one row of pixels, or two where it pools: `pixels` (row, x, C, P) has
// the sums with bias, `width` of them beside each other, all that anything depends on. places (y,
// x, C, P) gets each maximum's place in its window, 0..3 by rows.
// Map and ends are copies: a store of a vector may change what a reference refers to.
template <bool POOLS, bool DROPS>
[[gnu::noinline]] inline void finish_pixels(float* out, const Map map, uint8_t* places,
                                            const float* pixels, int64_t width, const ConvEnds ends,
                                            int64_t y) {
  constexpr int64_t P = kConvCols * kLanes;
  for (int64_t x = 0; x < (POOLS ? width / 2 : width); ++x) {
    const auto finish = [&](int64_t c, int64_t g, UintVec word) __attribute__((always_inline)) {
      const auto pixel = [&](int64_t i, int64_t j) __attribute__((always_inline)) {
        return load(pixels + ((i * width + j) * map.C + c) * P + g * kLanes);
      };
      Vec v = POOLS ? pixel(0, 2 * x) : pixel(0, x);
      if constexpr (POOLS) {
        IntVec place = {};
#pragma GCC unroll 3
        for (int q = 1; q < 4; ++q) {
          const Vec other = pixel(q / 2, 2 * x + q % 2);
          const IntVec takes = replaces(other, v);
          v = takes ? other : v;
          place = takes ? IntVec{} + q : place;
        }
        const ByteVec bytes = __builtin_convertvector(place, ByteVec);
        const int64_t at = ((y * map.W + x) * map.C + c) * P + g * kLanes;
        __builtin_memcpy(places + at, &bytes, sizeof bytes);
      }
      if (ends.is_relu) v = relu(v);
      if (DROPS) v = (word >> 8) >= ends.dropped ? v * ends.scale : Vec{};
      store(out + map.at(c, y, x) * P + g * kLanes, v);
    };
    // the columns of a counter may belong to two pixels
    const int64_t first = (y * map.W + x) * map.C;
    for (int64_t counter = first / 4; counter * 4 < first + map.C; ++counter) {
      UintVec words[kConvCols][4] = {};
#pragma GCC unroll 2
      for (int64_t g = 0; DROPS && g < kConvCols; ++g)
        draw_dropout(words[g], ends.key, g * kLanes, counter);
      const int64_t c = counter * 4 - first;
      if (c >= 0 && c + 4 <= map.C) {
        for_tile<4, kConvCols>(
            [&](int i, int g) __attribute__((always_inline)) { finish(c + i, g, words[g][i]); });
      } else {
        for (int64_t i = 0; i < 4; ++i)
          if (c + i >= 0 && c + i < map.C)
            for (int64_t g = 0; g < kConvCols; ++g) finish(c + i, g, words[g][i]);
      }
    }
  }
}

// Row y of a convolution's result in a panel, from its input. `pixels` (2, width, C, P) has room
// for the map's rows behind it, of which `width` pixels are live.
template <bool CHANNELS_LAST>
inline void conv_panel_row(float* out, const Map& map, uint8_t* places, const float* in,
                           const Map& in_map, const float* packed, int64_t size, int64_t width,
                           float* pixels, const ConvEnds& ends, int64_t y) {
  constexpr int64_t P = kConvCols * kLanes;
  const int64_t rows = ends.pools ? 2 : 1, first = y * rows;
  conv_product<CHANNELS_LAST>(
      in, in_map, packed, map.C, size, 0, first, first + rows, width,
      [&](auto& sums, int64_t o, int64_t map_y, int64_t x) __attribute__((always_inline)) {
        constexpr int ROWS = sizeof(sums) / sizeof(sums[0]);
        float* to = pixels + (((map_y - first) * width + x) * map.C + o) * P;
        for_tile<ROWS, kConvCols>(
            [&](int i, int j) { store(to + i * P + j * kLanes, sums[i][j] + ends.bias[o + i]); });
      });
  const auto finish = [&](auto pools, auto drops) {
    finish_pixels<pools.value, drops.value>(out, map, places, pixels, width, ends, y);
  };
  const auto with_pool = [&](auto pools) {
    if (ends.dropped)
      finish(pools, Constant<1>{});
    else
      finish(pools, Constant<0>{});
  };
  if (ends.pools)
    with_pool(Constant<1>{});
  else
    with_pool(Constant<0>{});
}

// The gradient of the sums from that of the result, one row of it: to `pixels` (row, x, C, P) as in
// finish_pixels, and its sum over the row's pixels to d_bias (C, P). A result above 0 was active
// and kept, whatever came behind the product.
template <bool POOLS>
[[gnu::noinline]] inline void pixels_gradient(float* pixels, float* d_bias, const float* d_out,
                                              const float* out, const Map map,
                                              const uint8_t* places, int64_t width,
                                              const ConvEnds ends, int64_t y) {
  constexpr int64_t P = kConvCols * kLanes;
  for (int64_t x = 0; x < (POOLS ? width / 2 : width); ++x)
    for (int64_t c = 0; c < map.C; ++c)
#pragma GCC unroll 2
      for (int64_t i = 0; i < P; i += kLanes) {
        const int64_t at = map.at(c, y, x) * P + i;
        Vec d = load(d_out + at);
        if (ends.is_relu) d = load(out + at) <= 0.0f ? Vec{} : d;
        if (ends.dropped) d *= ends.scale;
        store(d_bias + c * P + i, load(d_bias + c * P + i) + d);
        if (ends.rounds) d = round_bfloat16(d);
        if constexpr (!POOLS) {
          store(pixels + (x * map.C + c) * P + i, d);
        } else {
          ByteVec bytes;
          __builtin_memcpy(&bytes, places + ((y * map.W + x) * map.C + c) * P + i, sizeof bytes);
          const IntVec place = __builtin_convertvector(bytes, IntVec);
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q)
            store(pixels + (((q / 2) * width + 2 * x + q % 2) * map.C + c) * P + i,
                  place == q ? d : Vec{});
        }
      }
}

}  // namespace
}  // namespace noprop
