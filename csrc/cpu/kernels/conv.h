// The products of a convolution on one panel of rows. Lanes are rows of the batch and pixels are
// features, so that a window is a few runs of features that follow one another, and each of them
// is a dense product as it is: no window is ever copied. Only a weight gradient has lanes of input
// channels, as a dense layer's strips have.
#pragma once

#include "cpu/kernels/product.h"

namespace noprop {
namespace {

// Where the pixels of an image are in a panel: channel c of pixel (y, x) is feature
// (y * W + x) * pixel + c * channel.
struct Map {
  int64_t C, H, W, pixel, channel;
  bool channels_last;

  int64_t at(int64_t c, int64_t y, int64_t x) const { return (y * W + x) * pixel + c * channel; }
};

// a pixel's channels beside each other, as convolutions read and write them
inline Map channels_last(int64_t C, int64_t H, int64_t W) { return {C, H, W, C, 1, true}; }
// torch's order, of a plan's inputs and of what dense layers read
inline Map channels_first(int64_t C, int64_t H, int64_t W) { return {C, H, W, 1, H * W, false}; }

// The terms of a window's sum, in the order of its runs: by (row, column, channel) where channels
// are last, else by (channel, row, column). Calls body(first feature, first term, terms) for each
// run of the window of size x size pixels whose corner is (y, x), as far as it lies in the image.
template <bool CHANNELS_LAST, class Body>
NOPROP_INLINE void for_runs(const Map& map, int64_t size, int64_t y, int64_t x, Body body) {
  const int64_t above = y < 0 ? -y : 0, left = x < 0 ? -x : 0;
  const int64_t below = y + size > map.H ? map.H - y : size;
  const int64_t right = x + size > map.W ? map.W - x : size;
  const int64_t scale = CHANNELS_LAST ? map.C : 1, images = CHANNELS_LAST ? 1 : map.C;
  for (int64_t c = 0; c < images; ++c)
    for (int64_t i = above; i < below; ++i)
      body(map.at(c, y + i, x + left), ((c * size + i) * size + left) * scale,
           (right - left) * scale);
}

constexpr int kConvCols = kImageCols;  // also of a strip of input channels
constexpr int kConvRows = kTileRows[kConvCols];
constexpr int64_t kConvStrip = kConvCols * kLanes;

// Tiles of output channels whose weights stay near while all pixels pass.
constexpr int64_t kConvTilesAtOnce = 4;

// calls block(first, last) for the output channels that are near at once, whole tiles of them
template <class Block>
NOPROP_INLINE void for_channel_blocks(int64_t outputs, Block block) {
  for (int64_t first = 0, last = 0; first < outputs; first = last) {
    for (int64_t i = 0; i < kConvTilesAtOnce && last < outputs; ++i)
      last += tile_height<kConvCols>(outputs - last);
    block(first, last);
  }
}

// Packed (term, ROWS) of each tile of ROWS output channels of the product <- get(output channel, c,
// row, column), in the order of `map`; the tiles that begin in channels first .. last alone.
// rounds: to bfloat16
template <class Get>
inline void pack_weight(float* packed, int64_t outputs, int64_t size, const Map& map, int64_t first,
                        int64_t last, bool rounds, Get get) {
  const auto pack_tile = [&](int64_t o, int64_t rows) {
    float *begin = packed + o * map.C * size * size, *to = begin;
    const auto put = [&](int64_t c, int64_t i, int64_t j) {
      for (int64_t r = 0; r < rows; ++r) *to++ = get(o + r, c, i, j);
    };
    if (map.channels_last) {
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < size; ++j)
          for (int64_t c = 0; c < map.C; ++c) put(c, i, j);
    } else {
      for (int64_t c = 0; c < map.C; ++c)
        for (int64_t i = 0; i < size; ++i)
          for (int64_t j = 0; j < size; ++j) put(c, i, j);
    }
    if (rounds) round_run(begin, begin, to - begin);
  };
  for_channel_blocks(outputs, [&](int64_t block, int64_t end) {
    for_even_tiles<kConvCols>(block, end, [&](auto rows, int64_t o) {
      if (o >= first && o < last) pack_tile(o, rows.value);
    });
  });
}

// for the product that makes a layer's result from its input
inline void pack_forward(float* packed, const float* weight, int64_t O, int64_t size, const Map& in,
                         int64_t first, int64_t last, bool rounds) {
  pack_weight(packed, O, size, in, first, last, rounds,
              [&](int64_t o, int64_t c, int64_t i, int64_t j) {
                return weight[((o * in.C + c) * size + i) * size + j];
              });
}

// for the product that makes an input's gradient from the map's: its windows are turned round
inline void pack_backward(float* packed, const float* weight, int64_t C, int64_t size,
                          const Map& d_map, int64_t first, int64_t last, bool rounds) {
  pack_weight(packed, C, size, d_map, first, last, rounds,
              [&](int64_t c, int64_t o, int64_t i, int64_t j) {
                return weight[((o * C + c) * size + size - 1 - i) * size + size - 1 - j];
              });
}

// c += the sums of a window of `in`, whose corner is (y, x), for a tile of output channels, whose
// packed weights begin at w.
template <bool CHANNELS_LAST, int ROWS>
NOPROP_INLINE void window_product(Vec (&c)[ROWS][kConvCols], const float* in, const Map& map,
                                  const float* w, int64_t size, int64_t y, int64_t x) {
  constexpr int64_t P = kConvCols * kLanes;
  for_runs<CHANNELS_LAST>(
      map, size, y, x,
      [&](int64_t feature, int64_t term, int64_t count) __attribute__((always_inline)) {
        multiply_tile(c, w + term * ROWS, 1, ROWS, in + feature * P, P, count);
      });
}

// Fetches the lines that a tile's results will be stored to, `step` floats apart, before the tile
// is summed: a store to memory far away would hold up those behind it.
template <int ROWS>
NOPROP_INLINE void fetch_tile(const float* to, int64_t step) {
  for (int64_t i = 0; i < ROWS; ++i)
    for (int64_t j = 0; j < kConvCols * kLanes; j += kLineFloats)
      __builtin_prefetch(to + i * step + j, 1);
}

// The sums of the windows of `in` whose corners are (y + offset, x + offset), for y < height and x
// < width: done(sums, first output channel, y, x) gets each tile, of as many channels as its sums
// have rows.
template <bool CHANNELS_LAST, class Begin, class Done>
[[gnu::noinline]] inline void conv_product(const float* in, const Map& map, const float* packed,
                                           int64_t outputs, int64_t size, int64_t offset,
                                           int64_t height, int64_t width, Begin begin, Done done) {
  const int64_t K = map.C * size * size;
  for_channel_blocks(outputs, [&](int64_t first, int64_t last) __attribute__((always_inline)) {
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x)
        for_even_tiles<kConvCols>(first, last,
                                  [&](auto rows, int64_t o) __attribute__((always_inline)) {
                                    begin(rows, o, y, x);
                                    Vec c[decltype(rows)::value][kConvCols] = {};
                                    window_product<CHANNELS_LAST>(c, in, map, packed + o * K, size,
                                                                  y + offset, x + offset);
                                    done(c, o, y, x);
                                  });
  });
}

inline int64_t channel_strips(const Map& map) { return (map.C + kConvStrip - 1) / kConvStrip; }

// floats of as many rows of an image's pixels as a window has, in strips of input channels
inline int64_t channel_strip_floats(const Map& map, int64_t size) {
  return channel_strips(map) * size * map.W * kConvCols * kLanes * kConvStrip;
}

// strips (x, row, kConvStrip) of kConvStrip channels from `first` on, of `width` pixels of row y of
// an image in a panel, by transposed squares
[[gnu::noinline]] inline void row_to_channel_strip(float* strip, const float* in, const Map& map,
                                                   int64_t first, int64_t y, int64_t width) {
  constexpr int64_t P = kConvCols * kLanes;
  const int64_t step = map.channel * P;
  for (int64_t x = 0; x < width; ++x, strip += P * kConvStrip)
    for (int64_t column = 0; column < kConvStrip; column += kLanes) {
      const float* from = in + map.at(first + column, y, x) * P;
      const int64_t left = map.C - first - column;
      for (int64_t g = 0; g < P; g += kLanes) {
        Vec square[kLanes];
        if (left >= kLanes)
          for (int64_t i = 0; i < kLanes; ++i) square[i] = load(from + i * step + g);
        else
          for (int64_t i = 0; i < kLanes; ++i)
            square[i] = i < left ? load(from + i * step + g) : Vec{};
        transpose(square);
        for (int64_t i = 0; i < kLanes; ++i)
          store(strip + (g + i) * kConvStrip + column, square[i]);
      }
    }
}

// floats of a panel's weight gradient
inline int64_t conv_gradient_floats(int64_t O, const Map& map, int64_t size) {
  return channel_strips(map) * size * size * O * kConvStrip;
}

// Adds to a panel's weight gradient, sums (strip, window's pixel, O, kConvStrip), one accumulator
// an element over (y, x, row); the first row of pixels begins it. d has height x width pixels of
// the map's gradient, from row first_y on. Between two rows of pixels the gradient waits in `sums`,
// so that these rows of d and of the input stay near for all of it. `strips` has room for as many
// rows of the input as a window has, of which the next one takes the first one's place, and keeps
// them until the next call; `copied` for a row of kConvRows channels of d.
[[gnu::noinline]] inline void conv_weight_grad(float* sums, const float* d, const Map& d_map,
                                               const float* in, const Map& map, int64_t size,
                                               int64_t first_y, int64_t height, int64_t width,
                                               float* strips, float* copied) {
  constexpr int64_t P = kConvCols * kLanes;
  const int64_t num_strips = channel_strips(map), taps = size * size, O = d_map.C;
  const auto strip_row = [&](int64_t strip, int64_t y) {
    return strips + (strip * size + y % size) * map.W * P * kConvStrip;
  };
  // A row of the input that comes next is fetched from memory far away meanwhile, some lines for
  // each product.
  const int64_t row_lines = map.C * (width + size - 1) * P / kLineFloats;
  const int64_t products = (O + kConvRows - 1) / kConvRows * num_strips * taps;
  const int64_t lines = (row_lines + products - 1) / products;
  for (int64_t y = first_y; y < first_y + height; ++y) {
    const float* next = in + map.at(0, y + size, 0) * P;
    const bool has_next = map.channels_last && y + size < map.H;
    for (int64_t row = y ? y + size - 1 : 0; row < y + size; ++row)
      for (int64_t strip = 0; strip < num_strips; ++strip)
        row_to_channel_strip(strip_row(strip, row), in, map, strip * kConvStrip, row,
                             width + size - 1);
    for_even_tiles<kConvCols>(0, O, [&](auto rows, int64_t o) __attribute__((always_inline)) {
      constexpr int ROWS = decltype(rows)::value;
      for (int64_t x = 0; x < width; ++x)
        copy_run(copied + x * ROWS * P, d + d_map.at(o, y - first_y, x) * P, ROWS * P);
      for (int64_t strip = 0; strip < num_strips; ++strip)
        for (int64_t tap = 0; tap < taps; ++tap) {
          float* sum = sums + ((strip * taps + tap) * O + o) * kConvStrip;
          Vec c[ROWS][kConvCols] = {};
          if (y > 0)
            for_tile<ROWS, kConvCols>(
                [&](int i, int j) { c[i][j] = load(sum + i * kConvStrip + j * kLanes); });
          for (int64_t i = 0; has_next && i < lines; ++i, next += kLineFloats)
            __builtin_prefetch(next, 0, 2);
          const float* a = copied;
          const float* b = strip_row(strip, y + tap / size) + tap % size * P * kConvStrip;
          for (int64_t x = 0; x < width; ++x, a += ROWS * P, b += P * kConvStrip)
            multiply_tile(c, a, P, 1, b, kConvStrip, P);
          for_tile<ROWS, kConvCols>(
              [&](int i, int j) { store(sum + i * kConvStrip + j * kLanes, c[i][j]); });
        }
    });
  }
}

// An input of few channels would leave most lanes of its strips empty: lanes are then rows, which
// are added up when all pixels of a panel are done.
inline bool has_few_channels(const Map& map) { return map.C * 2 <= kConvStrip; }

// floats of an output channel's terms in fold_panels
inline int64_t summed_floats(int64_t C, int64_t size) {
  return (C + kConvStrip - 1) / kConvStrip * kConvStrip * size * size;
}

// Output channels of a tile, whose gradient stays in the nearest cache for a whole window.
constexpr int kFewChannelsOutputs = 4;

inline int64_t few_channels_gradient_floats(int64_t O, int64_t C, int64_t size) {
  return O * C * size * size * kLanes;
}

// Adds to sums (output channel, c, window's row, window's column, kLanes), over (y, x, vector), for
// `count` output channels from first_o on. d (y, x, kFewChannelsOutputs, P) has height x width
// pixels of their gradient, from row first_y on.
[[gnu::noinline]] inline void few_channels_weight_grad(float* sums, const float* d, int64_t first_o,
                                                       int64_t count, const float* in,
                                                       const Map& map, int64_t size,
                                                       int64_t first_y, int64_t height,
                                                       int64_t width) {
  constexpr int64_t P = kConvCols * kLanes;
  constexpr int kColumns = 3;
  constexpr int64_t d_step = kFewChannelsOutputs * P;
  const int64_t in_step = map.pixel * P;
  const auto tile = [&](auto outputs, auto columns, int64_t o, int64_t c, int64_t i, int64_t j) {
    constexpr int OUTPUTS = decltype(outputs)::value, COLUMNS = decltype(columns)::value;
    const auto place = [&](int r, int q) __attribute__((always_inline)) {
      return sums + ((((first_o + o + r) * map.C + c) * size + i) * size + j + q) * kLanes;
    };
    Vec sum[OUTPUTS][COLUMNS];
    for_tile<OUTPUTS, COLUMNS>([&](int r, int q) { sum[r][q] = load(place(r, q)); });
    const float* gradient = d + o * P;
    for (int64_t y = 0; y < height; ++y) {
      const float* from = in + map.at(c, first_y + y + i, j) * P;
      for (int64_t x = 0; x < width; ++x, from += in_step, gradient += d_step)
#pragma GCC unroll 2
        for (int64_t g = 0; g < P; g += kLanes) {
          Vec pixel[COLUMNS];
#pragma GCC unroll 4
          for (int q = 0; q < COLUMNS; ++q) pixel[q] = load(from + q * in_step + g);
#pragma GCC unroll 4
          for (int r = 0; r < OUTPUTS; ++r) {
            const Vec factor = held(load(gradient + r * P + g));
#pragma GCC unroll 4
            for (int q = 0; q < COLUMNS; ++q) sum[r][q] += factor * pixel[q];
          }
        }
    }
    for_tile<OUTPUTS, COLUMNS>([&](int r, int q) { store(place(r, q), sum[r][q]); });
  };
  const auto columns = [&](auto outputs, int64_t o, int64_t c, int64_t i) {
    int64_t j = 0;
    for (; j + kColumns <= size; j += kColumns) tile(outputs, Constant<kColumns>{}, o, c, i, j);
    for (; j < size; ++j) tile(outputs, Constant<1>{}, o, c, i, j);
  };
  for (int64_t c = 0; c < map.C; ++c)
    for (int64_t i = 0; i < size; ++i) {
      if (count == kFewChannelsOutputs)
        columns(Constant<kFewChannelsOutputs>{}, 0, c, i);
      else
        for (int64_t o = 0; o < count; ++o) columns(Constant<1>{}, o, c, i);
    }
}

// gradient (C, size, size) <- output channel o's of `outputs`, the sum of those of all panels,
// which are `a_panel` floats apart, from 0 on in their order; `summed` has room for the channel's
// terms in all lanes.
inline void fold_panels(float* gradient, const float* sums, int64_t panels, int64_t a_panel,
                        int64_t o, int64_t outputs, const Map& map, int64_t size, float* summed) {
  const int64_t taps = size * size;
  if (has_few_channels(map)) {
    for (int64_t term = 0; term < map.C * taps; ++term) {
      gradient[term] = 0;
      for (int64_t p = 0; p < panels; ++p)
        gradient[term] += sum_lanes(load(sums + p * a_panel + (o * map.C * taps + term) * kLanes));
    }
    return;
  }
  for (int64_t i = 0; i < channel_strips(map) * taps; ++i)
    for (int64_t j = 0; j < kConvStrip; j += kLanes) {
      Vec sum = {};
      for (int64_t p = 0; p < panels; ++p) {
        const float* from = sums + p * a_panel + (i * outputs + o) * kConvStrip + j;
        __builtin_prefetch(from + 2 * kConvStrip);  // of a channel that comes soon
        sum += load(from);
      }
      store(summed + i * kConvStrip + j, sum);
    }
  for (int64_t c = 0; c < map.C; ++c)
    for (int64_t tap = 0; tap < taps; ++tap)
      *gradient++ = summed[(c / kConvStrip * taps + tap) * kConvStrip + c % kConvStrip];
}

}  // namespace
}  // namespace noprop
