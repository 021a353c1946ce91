// Activations are feature-major, in panels of rows: lane = row of the batch, so that a weight is
// broadcast along its own row of the matrix and no weight is ever packed. A panel is (features, P)
// with P = cols * kLanes rows of the batch side by side; the last panel's missing rows are zero or
// without effect.
#pragma once

#include "cpu/kernels/share.h"
#include "cpu/kernels/vec.h"

namespace noprop {
namespace {

// the most vectors side by side in a panel's row and in a strip's row, and a tile's rows for each
// number of them
#if NOPROP_REGISTERS == 32
constexpr int kMaxCols = 4, kMaxStripCols = 3;
constexpr int kTileRows[kMaxCols + 1] = {0, 12, 12, 8, 6};  // 24 sums; the operands need the rest
#else
constexpr int kMaxCols = 2, kMaxStripCols = 2;
constexpr int kTileRows[kMaxCols + 1] = {0, 8, 6};
#endif
constexpr int kMostTileRows = 12;
// The products of a batch with at most kMostFewRows rows have lanes of output features
// (small_batch.h), in two vectors at once, which hide the latency of a multiply-add behind each
// other; the sums of many rows hide it alone, and need the registers.
constexpr int kMostFewRows = kLanes / 2;
constexpr int few_vectors(int64_t rows) { return kLanes == 16 && rows > 4 ? 1 : 2; }
constexpr int few_outputs(int64_t rows) { return few_vectors(rows) * kLanes; }
constexpr int64_t kStrip = kMaxStripCols * kLanes;

struct Panels {
  int64_t B;      // rows of the batch
  int64_t count;  // panels
  int64_t P;      // rows in a panel
  int cols;       // vectors in a panel's row

  int64_t padded() const { return count * P; }
  int64_t vectors() const { return count * cols; }
  // the position of vector g (rows g * kLanes ...) of a feature, in an array of `width` features
  int64_t at(int64_t width, int64_t feature, int64_t g) const {
    return (g / cols) * width * P + feature * P + (g % cols) * kLanes;
  }
};

// A plan with convolutions has panels of this many vectors, whatever the batch.
constexpr int kImageCols = 2;

inline bool has_images(const NopropPlan& plan) {
  for (int l = 0; l < plan.num_layers; ++l)
    if (plan.layers[l].kind == NOPROP_CONV2D) return true;
  return false;
}

// Panels are as wide as the registers allow, evened out so that little is padded.
inline Panels make_panels(int64_t B) {
  const int64_t vectors = (B + kLanes - 1) / kLanes;
  const int64_t count = (vectors + kMaxCols - 1) / kMaxCols;
  const int cols = (int)((vectors + count - 1) / count);
  return {B, count, (int64_t)cols * kLanes, cols};
}

inline Panels make_panels(const NopropPlan& plan, int64_t B) {
  if (!has_images(plan)) return make_panels(B);
  constexpr int64_t P = kImageCols * kLanes;
  return {B, (B + P - 1) / P, P, kImageCols};
}

// This thread's features of a layer. They are the same in all functions that run one after the
// other without a barrier.
inline Range own_features(const Panels& panels, const Share& share, int64_t H) {
  if (share.tile.last > 0) return share.tile;
  return own_part(share, H, kTileRows[panels.cols]);
}

// calls body(position, floats) for the runs of own features in panels (H, P)
template <class Body>
NOPROP_INLINE void for_own_runs(const Panels& panels, const Share& share, int64_t H, Body body) {
  const Range own = own_features(panels, share, H);
  for (int64_t p = 0; p < panels.count; ++p)
    body((p * H + own.first) * panels.P, (own.last - own.first) * panels.P);
}

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// the floats that `count` terms of a sum take: a pair of bfloat16 takes one
template <bool PAIRS>
constexpr int64_t terms(int64_t count) {
  return PAIRS ? (count + 1) / 2 : count;
}

// copies own features of panels (width, P) to panels of pairs of features
inline void pair_panels(float* pairs, const float* values, int64_t width, const Panels& panels,
                        const Share& share) {
  const Range own = own_features(panels, share, width);
  for (int64_t p = 0; p < panels.count; ++p)
    for (int64_t f = own.first; f < own.last; f += 2) {
      const float* even = values + (p * width + f) * panels.P;
      float* to = pairs + (p * terms<true>(width) + f / 2) * panels.P;
      for (int64_t i = 0; i < panels.P; i += kLanes)
        store(to + i, zip_pairs(load(even + i), f + 1 < width ? load(even + panels.P + i) : Vec{}));
    }
}

// Strips are the other form of an activation, for weight gradients, whose lanes are features. A
// strip has as many features as fill a tile, and is contiguous, (B, strip), so that a product reads
// one stream and leaves the prefetcher to the rows of the weights. Features are padded with zeros
// to whole vectors. This calls body(first feature, vectors) for each strip. A strip begins at float
// first * B; with pairs of rows it fills half of its space.
template <class Body>
NOPROP_INLINE void for_strips(int64_t width, Body body) {
  const int64_t vectors = round_up(width) / kLanes;
  const int64_t strips = (vectors + kMaxStripCols - 1) / kMaxStripCols;
  const int64_t wide = vectors % strips;  // strips that get one vector more
  int64_t first = 0;
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int cols = (int)(vectors / strips + (strip < wide ? 1 : 0));
    body(first, cols);
    first += cols * kLanes;
  }
}

// this member's columns, which are whole strips
inline Range own_columns(const Share& share, int64_t width) {
  int64_t count = 0, number = 0;
  for_strips(width, [&](int64_t, int) { ++count; });
  const Range own = own_part(share, count, 1);
  Range columns = {width, width};
  for_strips(width, [&](int64_t f, int) {
    if (number == own.first) columns.first = f;
    if (number == own.last) columns.last = f;
    ++number;
  });
  return columns;
}

// calls body(first feature, vectors) for each of this member's strips
template <class Body>
NOPROP_INLINE void for_own_strips(const Share& share, int64_t width, Body body) {
  const Range own = own_columns(share, width);
  for_strips(width, [&](int64_t f, int cols) {
    if (f >= own.first && f < own.last) body(f, cols);
  });
}

// accumulate: adds to the values in the panels
inline void strips_to_panels(float* values, bool accumulate, const float* strips, int64_t width,
                             const Panels& panels, const Share& share) {
  for_own_strips(share, width, [&](int64_t first, int cols) {
    const float* strip = strips + first * panels.B;
    for (int64_t g = 0; g < panels.vectors(); ++g)
      for (int j = 0; j < cols; ++j) {
        Vec square[kLanes];
        for (Vec& row : square) row = Vec{};
        for_first(panels.B - g * kLanes,
                  [&](int i) { square[i] = load(strip + ((g * kLanes + i) * cols + j) * kLanes); });
        transpose(square);
        const int64_t f = first + j * kLanes;
        float* to = values + panels.at(width, f, g);
        for_first(width - f, [&](int i) {
          float* at = to + i * panels.P;
          store(at, accumulate ? load(at) + square[i] : square[i]);
        });
      }
  });
}

// the rows of vector g: features f .. f + kLanes of panels, 0 from `width` on
NOPROP_INLINE void load_transposed(Vec (&square)[kLanes], const float* values, int64_t width,
                                   int64_t f, int64_t g, const Panels& panels) {
  const float* from = values + panels.at(width, f, g);
  for (Vec& row : square) row = Vec{};
  for_first(width - f, [&](int i) { square[i] = load(from + i * panels.P); });
  transpose(square);
}

// stores a square of rows of vector g to its column of a strip; rounds: to bfloat16, as pairs are
template <bool PAIRS>
NOPROP_INLINE void store_square(float* column, const Vec (&square)[kLanes], int64_t g, int cols,
                                int64_t B, bool rounds = false) {
  const int64_t rows = B - g * kLanes;
  float* to = column + g * kLanes / (PAIRS ? 2 : 1) * cols * kLanes;
  for_first(rows, [&](int i) {
    if constexpr (!PAIRS)
      store(to + i * cols * kLanes, rounds ? round_bfloat16(square[i]) : square[i]);
    else if (i % 2 == 0)
      store(to + i / 2 * cols * kLanes, zip_pairs(square[i], i + 1 < rows ? square[i + 1] : Vec{}));
  });
}

// PAIRS: the strips have pairs of rows, rounded to bfloat16
template <bool PAIRS>
inline void panels_to_strips(float* strips, const float* values, int64_t width,
                             const Panels& panels, const Share& share) {
  for_own_strips(share, width, [&](int64_t first, int cols) {
    float* strip = strips + first * panels.B;
    for (int64_t g = 0; g * kLanes < panels.B; ++g)
      for (int j = 0; j < cols; ++j) {
        const int64_t f = first + j * kLanes;
        Vec square[kLanes];
        load_transposed(square, values, width, f, g, panels);
        store_square<PAIRS>(strip + j * kLanes, square, g, cols, panels.B);
      }
  });
}

// copies this member's rows of panels (width, P) to a caller's rows (B, width), where nothing may
// be written past a row
[[gnu::noinline]] inline void panels_to_rows(float* rows, const float* values, int64_t width,
                                             const Panels& panels, const Share& share = {}) {
  const Range own = own_part(share, panels.vectors(), 1);
  for (int64_t g = own.first; g < own.last; ++g)
    for (int64_t f = 0; f < width; f += kLanes) {
      const int features = width - f < kLanes ? (int)(width - f) : kLanes;
      Vec square[kLanes];
      load_transposed(square, values, width, f, g, panels);
      const int64_t left = panels.B - g * kLanes;
      float* to = rows + g * kLanes * width + f;
      if (features == kLanes)
        for_first(left, [&](int b) { store(to + b * width, square[b]); });
      else
        for_first(left, [&](int b) { store_partial(to + b * width, square[b], features); });
    }
}

// Copies this member's rows of a caller's (B, width) to panels. Returns false if one of them is not
// finite.
[[gnu::noinline]] inline bool rows_to_panels(float* values, const float* rows, int64_t width,
                                             const Panels& panels, const Share& share = {}) {
  const Range own = own_part(share, panels.vectors(), 1);
  Vec zero = {};  // a sum of x * 0 stays 0 unless some x is infinite or NaN
  for (int64_t g = own.first; g < own.last; ++g)
    for (int64_t f = 0; f < width; f += kLanes) {
      const int features = width - f < kLanes ? (int)(width - f) : kLanes;
      Vec square[kLanes];
      const int64_t left = panels.B - g * kLanes;
      const float* from = rows + g * kLanes * width + f;
      for (Vec& row : square) row = Vec{};
      if (features == kLanes)
        for_first(left, [&](int b) { square[b] = load(from + b * width); });
      else
        for_first(left, [&](int b) { square[b] = load_partial(from + b * width, features); });
      for (const Vec& row : square) zero += row * 0.0f;
      transpose(square);
      float* to = values + panels.at(width, f, g);
      for_first(features, [&](int i) { store(to + i * panels.P, square[i]); });
    }
  return sum_lanes(zero) == 0;
}

// the levels of the rows of vector g
inline Vec per_row(const float* data, int64_t row_stride, int64_t g, const Panels& panels) {
  if (row_stride == 0) return keep_first(broadcast(*data), panels.B - g * kLanes);
  Vec v = {};
  for (int i = 0; i < kLanes; ++i) {
    const int64_t b = g * kLanes + i;
    if (b < panels.B) v[i] = data[b * row_stride];
  }
  return v;
}

// Sums over rows are formed in chunks of kChunk rows, which are added from the left.
constexpr int64_t kChunk = 128;
constexpr int64_t kChunkVectors = kChunk / kLanes;

// calls body(position, g) for the vectors of one feature, in the order of their rows
template <class Body>
NOPROP_INLINE void for_vectors(const Panels& panels, int64_t width, int64_t feature, Body body) {
  int64_t g = 0;
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t at = (p * width + feature) * panels.P;
    for (int j = 0; j < panels.cols; ++j, ++g) body(at + j * kLanes, g);
  }
}

// The sum of one feature over the batch. f(position, g) is the vector of rows g * kLanes ..., zero
// in missing rows.
template <class F>
NOPROP_INLINE float sum_rows(const Panels& panels, int64_t width, int64_t feature, F f) {
  float total = 0;
  Vec sum = {};
  for_vectors(panels, width, feature, [&](int64_t at, int64_t g) {
    if (g > 0 && g % kChunkVectors == 0) {
      total += sum_lanes(sum);
      sum = Vec{};
    }
    sum += f(at, g);
  });
  return total + sum_lanes(sum);
}

// calls body(Constant<cols>) for the panel's number of vectors
template <int N>
struct Constant {
  static constexpr int value = N;
};

template <class Body>
NOPROP_INLINE void with_cols(int cols, Body body) {
  if (cols == 1) return body(Constant<1>{});
  if (cols == 2) return body(Constant<2>{});
#if NOPROP_REGISTERS == 32
  if (cols == 3) return body(Constant<3>{});
  return body(Constant<4>{});
#endif
}

}  // namespace
}  // namespace noprop
