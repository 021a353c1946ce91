// A dense layer over several sources: forward, input gradient, weight gradient. Biases and
// activations act on the tile while it is in registers; the weight gradient's tile goes straight to
// the optimizer.
#pragma once

#include "cpu/kernels/small_batch.h"

namespace noprop {
namespace {

struct Source {
  const float* value;  // panels (width, P)
  int64_t width;
  const float* few = nullptr;  // (width, few_rows(B)), for a batch of few rows, or null
};

// finishes a layer's sums and stores them
struct DenseOut {
  float *value, *activated;
  const float *bias, *add;
  bool is_relu;

  NOPROP_INLINE void finish(Vec sum, int64_t o, int64_t at) const {
    Vec y = sum + bias[o];
    if (is_relu) y = relu(y);
    if (activated) store(activated + at, y);
    if (add) y += load(add + at);
    store(value + at, y);
  }
};

// Own features of a layer whose sources have the form for few rows. rounds: the weight is rounded
// to bfloat16.
inline void dense_few_rows(const DenseOut& out, const Source* sources, int num_sources,
                           const float* weight, int64_t in, int64_t H, bool rounds,
                           const Panels& panels, const Share& share) {
  const Range own = own_features(panels, share, H);
  with_few_rows(panels.B, [&](auto rows) {
    constexpr int ROWS = decltype(rows)::value;
    const auto tile = [&](auto full, int64_t o, int64_t count) {
      constexpr bool FULL = decltype(full)::value;
      Vec c[kFewVectors][ROWS] = {};
      OutputRows<FULL> outputs = {weight + o * in, in, count};
      for (int s = 0; s < num_sources; ++s) {
        multiply_few<FULL>(c, outputs, sources[s].few, sources[s].width, rounds);
        outputs.weight += sources[s].width;
      }
      for (int64_t first = 0; first < count; first += kLanes) {
        Vec square[kLanes] = {};
        for (int r = 0; r < ROWS; ++r) square[r] = c[first / kLanes][r];
        transpose(square);
        for (int64_t i = 0; i < kLanes && first + i < count; ++i)
          out.finish(square[i], o + first + i, (o + first + i) * kLanes);
      }
    };
    for (int64_t o = own.first; o < own.last; o += kFewOutputs) {
      const int64_t count = own.last - o;
      if (count >= kFewOutputs)
        tile(Constant<1>{}, o, kFewOutputs);
      else
        tile(Constant<0>{}, o, count);
    }
  });
}

// Operands of a product that every tile of a weight's rows reads again. If they are larger than a
// core's second cache, a few tiles take turns on each part of them while it is there.
constexpr int64_t kReadAgainFloats = 256 * 1024;
constexpr int64_t kTilesAtOnce = 4;

inline bool take_turns(int64_t floats) { return floats > kReadAgainFloats; }

// out = activation(concat(sources) @ weight.T + bias) + add, panels (H, P); `activated` (or null)
// keeps the value before `add`. `rounded` is null, or has room for kTileRows rows of the weight:
// products then have bfloat16 operands, and the sources must be rounded. PAIRS: the sources are
// panels of pairs of features.
template <bool PAIRS>
inline void dense_forward(float* out, float* activated, const Source* sources, int num_sources,
                          const float* weight, const float* bias, const float* add, bool is_relu,
                          int64_t H, float* rounded, const Panels& panels, const Share& share) {
  int64_t in = 0, in_terms = 0, bursts = 0;  // bursts of a tile's products with a panel
  for (int s = 0; s < num_sources; ++s) {
    in += sources[s].width;
    in_terms += terms<PAIRS>(sources[s].width);
    bursts += terms<PAIRS>(sources[s].width) / kBurst;
  }
  const DenseOut result = {out, activated, bias, add, is_relu};
  if (sources[0].few)
    return dense_few_rows(result, sources, num_sources, weight, in, H, rounded != nullptr, panels,
                          share);
  const int64_t P = panels.P;
  const Range own = own_features(panels, share, H);
  const bool turns = take_turns(in * panels.padded());
  const int64_t panels_at_once = turns ? 1 : panels.count;
  const int64_t rows_at_once = turns ? kTilesAtOnce * kTileRows[panels.cols] : own.last - own.first;
  const auto multiply = [&](auto cols, int64_t first_row, int64_t last_row, int64_t first_panel) {
    constexpr int COLS = decltype(cols)::value;
    for_row_tiles<COLS>(first_row, last_row, [&](auto rows, int64_t o) {
      constexpr int ROWS = decltype(rows)::value;
      const float* tile_weight = weight + o * in;
      const int64_t next_rows = own.last - o - ROWS < ROWS ? own.last - o - ROWS : ROWS;
      Fetching next = {tile_weight + ROWS * in, next_rows * in, bursts * panels_at_once};
      if constexpr (PAIRS) {
        float* to = rounded;
        for (int i = 0; i < ROWS; ++i)
          for (int s = 0; s < num_sources; ++s) {
            const int64_t width = sources[s].width;
            pair_run(to, tile_weight, width);
            tile_weight += width;
            to += terms<PAIRS>(width);
          }
        tile_weight = rounded;
      } else if (rounded) {
        round_run(rounded, tile_weight, ROWS * in);
        tile_weight = rounded;
      }
      for (int64_t p = first_panel; p < first_panel + panels_at_once; ++p) {
        Vec c[ROWS][COLS] = {};
        const float* w = tile_weight;
        for (int s = 0; s < num_sources; ++s) {
          const int64_t K = terms<PAIRS>(sources[s].width);
          multiply_tile<PAIRS>(c, w, in_terms, 1, sources[s].value + p * K * P, P, K,
                               [&] { next.go_on(); });
          w += K;
        }
        for_tile<ROWS, COLS>(
            [&](int i, int j) { result.finish(c[i][j], o + i, (p * H + o + i) * P + j * kLanes); });
      }
    });
  };
  with_cols(panels.cols, [&](auto cols) {
    for (int64_t o = own.first; o < own.last; o += rows_at_once) {
      const int64_t last = own.last - o < rows_at_once ? own.last : o + rows_at_once;
      for (int64_t p = 0; p < panels.count; p += panels_at_once) multiply(cols, o, last, p);
    }
  });
}

// d_source (B, width) in strips = d_out (H, P) times columns first .. first + width of weight
// (H, in). Lanes are columns. A tile runs down all rows of the weight. The rows of a wide weight
// are so far apart that they push each other out of the caches, so strips of columns are copied to
// `packed` (2, H, kStrip), the next one row by row while this one's product runs. rounds: the
// weight is rounded to bfloat16. PAIRS: the weight has pairs of rows, d_out pairs of features.
template <bool PAIRS>
inline void dense_input_grad(float* d_source, const float* d_out, const float* weight, int64_t in,
                             int64_t first, int64_t width, int64_t H, float* packed, bool rounds,
                             const Panels& panels, const Share& share) {
  const int64_t P = panels.P;
  constexpr int64_t kAhead = 8;  // rows: long enough for memory, few enough for the nearest cache
  const int64_t K = terms<PAIRS>(H);
  const auto pack_row = [&](float* to, int64_t f, int64_t k) __attribute__((always_inline)) {
    const int64_t columns = width - f < kStrip ? width - f : kStrip, o = PAIRS ? 2 * k : k;
    const float* from = weight + o * in + first + f;
    float* row = to + k * kStrip;
    int64_t c = 0;
    const auto put = [&](auto get) {
      const Vec w = get(from + c);
      if constexpr (PAIRS)
        store(row + c, zip_pairs(w, o + 1 < H ? get(from + in + c) : Vec{}));
      else
        store(row + c, rounds ? round_bfloat16(w) : w);
    };
    for (; c + kLanes <= columns; c += kLanes) put([](const float* at) { return load(at); });
    if (c < columns) put([&](const float* at) { return load_partial(at, (int)(columns - c)); });
    for (int64_t ahead = o + kAhead; ahead < o + kAhead + (PAIRS ? 2 : 1) && ahead < H; ++ahead)
      for (c = 0; c < columns; c += 16) __builtin_prefetch(from + (ahead - o) * in + c);
  };
  const Range own = own_columns(share, width);
  if (own.first == own.last) return;
  for (int64_t k = 0; k < K; ++k) pack_row(packed, own.first, k);
  float* next_packed = packed + K * kStrip;
  for_own_strips(share, width, [&](int64_t f, int strip_cols) {
    const int64_t next = f + strip_cols * kLanes;
    int64_t done = next < own.last ? 0 : K;  // rows of the next strip
    with_cols(strip_cols, [&](auto cols) {
      constexpr int COLS = decltype(cols)::value;
      const int64_t calls = (panels.B + kTileRows[COLS] - 1) / kTileRows[COLS] * (K / kBurst + 1);
      const int64_t rows_a_call = (K + calls - 1) / calls;
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t B = panels.B - p * P < P ? panels.B - p * P : P;
        for_row_tiles<COLS>(0, B, [&](auto rows, int64_t b) {
          constexpr int ROWS = decltype(rows)::value;
          Vec c[ROWS][COLS] = {};
          multiply_tile<PAIRS>(c, d_out + p * K * P + b, 1, P, packed, kStrip, K, [&] {
            for (int64_t r = 0; r < rows_a_call && done < K; ++r)
              pack_row(next_packed, next, done++);
          });
          float* out = d_source + f * panels.B + (p * P + b) * COLS * kLanes;
          for_tile<ROWS, COLS>(
              [&](int i, int j) { store(out + (i * COLS + j) * kLanes, c[i][j]); });
        });
      }
    });
    for (; done < K; ++done) pack_row(next_packed, next, done);
    float* full = packed;
    packed = next_packed;
    next_packed = full;
  });
}

// a source of a layer as its weight gradient reads it
struct StripSource {
  const float* strips;
  int64_t width;
};

// Whole rows of a weight gradient wait for the optimizer in the nearest cache. It then goes along
// the rows of its arrays, and no product stands between two of its accesses.
constexpr int64_t kGradientRows = kTileRows[kMaxStripCols];
constexpr int64_t kGradientColumns = 6 * 1024 / kGradientRows / kStrip * kStrip;

// the rows of a weight whose gradient has so many floats of strips that are formed together
inline int64_t gradient_rows(int64_t strips) {
  return take_turns(strips) ? kTilesAtOnce * kGradientRows : kGradientRows;
}

// what dense_weight_grad needs of memory: the rows' gradient, then their d_out
inline int64_t weight_grad_floats(const Panels& panels, int64_t in) {
  return gradient_rows(panels.B * in) * (kGradientColumns + panels.padded());
}

// The weight gradient d_out^T @ concat(sources), some rows at a time: finish(gradient, o, rows, f,
// count) gets columns f .. f + count of rows from o, kGradientColumns apart. PAIRS: of rows, in
// products and in the strips.
template <bool PAIRS, class Finish>
inline void dense_weight_grad(const float* d_out, const StripSource* sources, int num_sources,
                              int64_t H, float* scratch, const Panels& panels, const Share& share,
                              Finish finish) {
  const int64_t P = terms<PAIRS>(panels.P), K = terms<PAIRS>(panels.B), padded = panels.count * P;
  int64_t in = 0;
  for (int s = 0; s < num_sources; ++s) in += sources[s].width;
  const int64_t rows_at_once = gradient_rows(panels.B * in);
  float *gradient = scratch, *d_rows = scratch + rows_at_once * kGradientColumns;
  const Range own = own_part(share, H, rows_at_once);
  for (int64_t o = own.first; o < own.last; o += rows_at_once) {
    const int64_t rows = own.last - o < rows_at_once ? own.last - o : rows_at_once;
    for (int64_t p = 0; p < panels.count; ++p)  // the product then has one run of terms
      for (int64_t i = 0; i < rows; ++i) {
        const float* from = d_out + (p * H + o + i) * panels.P;
        float* to = d_rows + i * padded + p * P;
        if constexpr (PAIRS)
          pair_run(to, from, panels.P);
        else
          copy_run(to, from, panels.P);
      }
    int64_t first = 0, done = 0;  // columns before this source, before those in `gradient`
    for (int s = 0; s < num_sources; ++s) {
      for_strips(sources[s].width, [&](int64_t f, int strip_cols) {
        if (first + f + strip_cols * kLanes > done + kGradientColumns) {
          finish(gradient, o, rows, done, first + f - done);
          done = first + f;
        }
        // a source's missing columns are the next one's first, which come later
        float* to = gradient + first + f - done;
        with_cols(strip_cols, [&](auto cols) {
          constexpr int COLS = decltype(cols)::value;
          for_row_tiles<kMaxStripCols>(0, rows, [&](auto tile_rows, int64_t r) {
            constexpr int ROWS = decltype(tile_rows)::value;
            Vec c[ROWS][COLS] = {};
            multiply_tile<PAIRS>(c, d_rows + r * padded, padded, 1,
                                 sources[s].strips + f * panels.B, COLS * kLanes, K);
            for_tile<ROWS, COLS>([&](int i, int j) {
              store(to + (r + i) * kGradientColumns + j * kLanes, c[i][j]);
            });
          });
        });
      });
      first += sources[s].width;
    }
    finish(gradient, o, rows, done, first - done);
  }
}

// d_bias[o] = sum over rows of d_out
inline void dense_bias_grad(float* d_bias, const float* d_out, int64_t H, const Panels& panels,
                            const Share& share) {
  const Range own = own_features(panels, share, H);
  for (int64_t o = own.first; o < own.last; ++o)
    d_bias[o] = sum_rows(panels, H, o, [&](int64_t at, int64_t) { return load(d_out + at); });
}

}  // namespace
}  // namespace noprop
