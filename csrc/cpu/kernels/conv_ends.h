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

// Bytes as numbers, and numbers below 128 as bytes. GCC converts vectors of bytes one by one.
NOPROP_INLINE IntVec load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_maskz_cvtepu8_epi32((__mmask16)-1, _mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  ByteVec bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, IntVec);
#endif
}

NOPROP_INLINE void store_bytes(uint8_t* p, IntVec v) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_maskz_cvtepi32_epi8((__mmask16)-1, (__m512i)v));
#elif defined(__AVX2__)
  const __m128i low = _mm256_castsi256_si128((__m256i)v);
  const __m128i words = _mm_packs_epi32(low, _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
#else
  const ByteVec bytes = __builtin_convertvector(v, ByteVec);
  __builtin_memcpy(p, &bytes, sizeof bytes);
#endif
}

// whether a pixel of a window is the new maximum; of equal ones the first stays, and NaN is one, as
// torch has it
NOPROP_INLINE IntVec replaces(Vec other, Vec maximum) {
  return (other > maximum) | (other != other);
}

// the output channels that are near at once, of each pixel of a pool's window
constexpr int64_t kEndsFloats = 4 * kConvTilesAtOnce * kConvRows * kConvCols * kLanes;

// `count` channels from first_c on of pixel (y, x) of a result, from the sums with bias of as many
// pixels as it has before a pool, (pixel, count, P). places (y, x, C, P) gets each maximum's place
// in its window, 0..3 by rows.
// Map and ends are copies: a store of a vector may change what a reference refers to.
template <bool POOLS, bool DROPS>
[[gnu::noinline]] inline void finish_channels(float* out, const Map map, uint8_t* places,
                                              const float* sums, const ConvEnds ends,
                                              int64_t first_c, int64_t count, int64_t y,
                                              int64_t x) {
  constexpr int64_t P = kConvCols * kLanes;
  const auto finish = [&](int64_t i, int64_t g, UintVec word) __attribute__((always_inline)) {
    const int64_t c = first_c + i;
    const auto pixel = [&](int64_t q) __attribute__((always_inline)) {
      return load(sums + (q * count + i) * P + g * kLanes);
    };
    Vec v = pixel(0);
    if constexpr (POOLS) {
      IntVec place = {};
#pragma GCC unroll 3
      for (int q = 1; q < 4; ++q) {
        const Vec other = pixel(q);
        const IntVec takes = replaces(other, v);
        v = takes ? other : v;
        place = takes ? IntVec{} + q : place;
      }
      store_bytes(places + ((y * map.W + x) * map.C + c) * P + g * kLanes, place);
    }
    if (ends.is_relu) v = relu(v);
    if (DROPS) v = (word >> 8) >= ends.dropped ? v * ends.scale : Vec{};
    store(out + map.at(c, y, x) * P + g * kLanes, v);
  };
  if constexpr (!DROPS) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t g = 0; g < kConvCols; ++g) finish(i, g, UintVec{});
    return;
  }
  const auto philox_of = [&](int64_t g) {
    const UintVec row = (UintVec)lane_numbers() + (ends.key.first_row + (uint32_t)(g * kLanes));
    return RowsPhilox(row, ends.key.place, ends.key.draw, ends.key.seed);
  };
  const RowsPhilox rows[kConvCols] = {philox_of(0), philox_of(1)};
  // the columns of a counter may belong to two calls, or to two pixels
  const int64_t first = (y * map.W + x) * map.C + first_c;
  for (int64_t counter = first / 4; counter * 4 < first + count; ++counter) {
    UintVec words[kConvCols][4];
#pragma GCC unroll 2
    for (int64_t g = 0; g < kConvCols; ++g) rows[g].words(words[g], (uint32_t)counter);
    const int64_t i = counter * 4 - first;
    if (i >= 0 && i + 4 <= count) {
      for_tile<4, kConvCols>([&](int j, int g)
                                 __attribute__((always_inline)) { finish(i + j, g, words[g][j]); });
    } else {
      for (int64_t j = 0; j < 4; ++j)
        if (i + j >= 0 && i + j < count)
          for (int64_t g = 0; g < kConvCols; ++g) finish(i + j, g, words[g][j]);
    }
  }
}

// Row y of a convolution's result in a panel, from its input, of `width` live pixels of the map.
// The output channels that are near at once are finished as soon as they are summed; `sums` has
// room for kEndsFloats.
template <bool CHANNELS_LAST>
[[gnu::noinline]] inline void conv_panel_row(float* out, const Map map, uint8_t* places,
                                             const float* in, const Map in_map, const float* packed,
                                             int64_t size, int64_t width, float* sums,
                                             const ConvEnds& ends, int64_t y) {
  constexpr int64_t P = kConvCols * kLanes;
  const int64_t side = ends.pools ? 2 : 1, K = in_map.C * size * size;
  const auto finish =
      ends.pools ? (ends.dropped ? finish_channels<true, true> : finish_channels<true, false>)
                 : (ends.dropped ? finish_channels<false, true> : finish_channels<false, false>);
  for_channel_blocks(map.C, [&](int64_t first, int64_t last) __attribute__((always_inline)) {
    for (int64_t x = 0; x < width / side; ++x) {
      for_even_tiles<kConvCols>(
          first, last, [&](auto rows, int64_t o) __attribute__((always_inline)) {
            constexpr int ROWS = decltype(rows)::value;
            fetch_tile<ROWS>(out + map.at(o, y, x) * P, map.channel * P);
            for (int64_t q = 0; q < side * side; ++q) {
              Vec c[ROWS][kConvCols] = {};
              window_product<CHANNELS_LAST>(c, in, in_map, packed + o * K, size, y * side + q / 2,
                                            x * side + q % 2);
              float* to = sums + (q * (last - first) + o - first) * P;
              for_tile<ROWS, kConvCols>([&](int i, int j) {
                store(to + i * P + j * kLanes, c[i][j] + ends.bias[o + i]);
              });
            }
          });
      finish(out, map, places, sums, ends, first, last - first, y, x);
    }
  });
}

// The gradient of the sums from that of the result, one row of it: to `pixels` (tile of `tile`
// channels, row, x, tile, P), one row or two where it pools, and its sum over the row's pixels to
// d_bias (C, P). A result above 0 was active and kept, whatever came behind the product.
template <bool POOLS>
[[gnu::noinline]] inline void pixels_gradient(float* pixels, int64_t tile, float* d_bias,
                                              const float* d_out, const float* out, const Map map,
                                              const uint8_t* places, int64_t width,
                                              const ConvEnds ends, int64_t y) {
  constexpr int64_t P = kConvCols * kLanes;
  const int64_t next_row = map.at(0, 1, 0) * P, a_tile = (POOLS ? 2 : 1) * width * tile * P;
  for (int64_t x = 0; x < (POOLS ? width / 2 : width); ++x)
    for (int64_t first = 0; first < map.C; first += tile) {
      float* to = pixels + first / tile * a_tile;
      for (int64_t i = 0; i < tile && first + i < map.C; ++i)
#pragma GCC unroll 2
        for (int64_t g = 0; g < P; g += kLanes) {
          const int64_t c = first + i, at = map.at(c, y, x) * P + g;
          __builtin_prefetch(d_out + at + next_row, 0, 2);
          __builtin_prefetch(out + at + next_row, 0, 2);
          Vec d = load(d_out + at);
          if (ends.is_relu) d = load(out + at) <= 0.0f ? Vec{} : d;
          if (ends.dropped) d *= ends.scale;
          store(d_bias + c * P + g, load(d_bias + c * P + g) + d);
          if (ends.rounds) d = round_bfloat16(d);
          if constexpr (!POOLS) {
            store(to + (x * tile + i) * P + g, d);
          } else {
            const IntVec place = load_bytes(places + ((y * map.W + x) * map.C + c) * P + g);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q)
              store(to + (((q / 2) * width + 2 * x + q % 2) * tile + i) * P + g,
                    place == q ? d : Vec{});
          }
        }
    }
}

// The gradient of a map's pixels (row, x, tile, P) from that of the maxima (x, tile, P), for
// `count` channels from first_c on.
[[gnu::noinline]] inline void unpool_tile(float* pixels, const float* d, int64_t tile,
                                          const Map map, const uint8_t* places, int64_t width,
                                          int64_t y, int64_t first_c, int64_t count) {
  constexpr int64_t P = kConvCols * kLanes;
  for (int64_t x = 0; x < width / 2; ++x) {
    const uint8_t* from = places + ((y * map.W + x) * map.C + first_c) * P;
    for (int64_t i = 0; i < count * P; i += kLanes) {
      const Vec v = load(d + x * tile * P + i);
      const IntVec place = load_bytes(from + i);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q)
        store(pixels + ((q / 2) * width + 2 * x + q % 2) * tile * P + i, place == q ? v : Vec{});
    }
  }
}

}  // namespace
}  // namespace noprop
