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

// Finishes a layer's sums and stores them. Without a bias they are stored as they are.
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

// A layer's sums over sources that follow one another in its weight (H, in). They go on from
// `start`, the sums over the sources before these, panels (H, P), or null.
struct DenseSum {
  const Source* sources;
  int num_sources;
  const float* weight;  // from these sources' columns on
  int64_t in;
  const float* start = nullptr;
};

// Own features of a layer whose sources have the form for few rows. rounds: the weight is rounded
// to bfloat16.
inline void dense_few_rows(const DenseOut& out, const DenseSum& sum, int64_t H, bool rounds,
                           const Panels& panels, const Share& share) {
  const Range own = own_features(panels, share, H);
  with_few_rows(panels.B, [&](auto rows) {
    constexpr int ROWS = decltype(rows)::value;
    const auto tile = [&](auto full, auto vectors, int64_t o, int64_t count) {
      constexpr bool FULL = decltype(full)::value;
      constexpr int VECTORS = decltype(vectors)::value;
      Vec c[VECTORS][ROWS] = {};
      for (int64_t first = 0; sum.start && first < count; first += kLanes) {
        Vec square[kLanes] = {};
        for (int64_t i = 0; i < kLanes && first + i < count; ++i)
          square[i] = load(sum.start + (o + first + i) * kLanes);
        transpose(square);
        for (int r = 0; r < ROWS; ++r) c[first / kLanes][r] = square[r];
      }
      OutputRows<FULL> outputs = {sum.weight + o * sum.in, sum.in, count};
      for (int s = 0; s < sum.num_sources; ++s) {
        multiply_few<FULL>(c, outputs, sum.sources[s].few, sum.sources[s].width, rounds);
        outputs.weight += sum.sources[s].width;
      }
      for (int64_t first = 0; first < count; first += kLanes) {
        Vec square[kLanes] = {};
        for (int r = 0; r < ROWS; ++r) square[r] = c[first / kLanes][r];
        transpose(square);
        for (int64_t i = 0; i < kLanes && first + i < count; ++i)
          if (const int64_t at = o + first + i; out.bias)
            out.finish(square[i], at, at * kLanes);
          else
            store(out.value + at * kLanes, square[i]);
      }
    };
    constexpr int64_t kOutputs = few_outputs(ROWS);
    int64_t o = own.first;
    for (; o + kOutputs <= own.last; o += kOutputs)
      tile(Constant<1>{}, Constant<few_vectors(ROWS)>{}, o, kOutputs);
    for (; o < own.last; o += kLanes)
      tile(Constant<0>{}, Constant<1>{}, o, own.last - o < kLanes ? own.last - o : kLanes);
  });
}

// An operand that every tile of a product reads again stays in a core's second cache, of a megabyte
// or more, beside what streams past it: a longer sum is formed in blocks of terms, for all tiles
// one after the other, and between the blocks waits where its result will be.
constexpr int64_t kReadAgainFloats = 128 * 1024, kFewestTerms = 16;

// calls body(first, count) for the blocks of K terms, each of which has `width` floats of it
template <class Body>
NOPROP_INLINE void for_blocks(int64_t K, int64_t width, Body body) {
  const int64_t blocks = (K * width + kReadAgainFloats / 2) / kReadAgainFloats;
  int64_t each = blocks > 1 ? (K + blocks - 1) / blocks : K;
  if (each < kFewestTerms) each = kFewestTerms;
  for (int64_t k = 0; k < K; k += each) body(k, K - k < each ? K - k : each);
}

// value = activation(concat(sources) @ weight.T + bias) + add, panels (H, P); `activated` (or null)
// keeps the value before `add`. `rounded` is null, or has room for kTileRows rows of the weight:
// products then have bfloat16 operands, and the sources must be rounded. PAIRS: the sources are
// panels of pairs of features.
template <bool PAIRS>
inline void dense_forward(const DenseOut& result, const DenseSum& sum, int64_t H, float* rounded,
                          const Panels& panels, const Share& share) {
  const Source* sources = sum.sources;
  const float *weight = sum.weight, *start = sum.start;
  float* out = result.value;
  const int num_sources = sum.num_sources;
  const int64_t in = sum.in, P = panels.P;
  const Range own = own_features(panels, share, H);
  int64_t in_terms = 0;
  for (int s = 0; s < num_sources; ++s) in_terms += terms<PAIRS>(sources[s].width);
  if (num_sources == 0) {  // all was summed before
    for (int64_t o = own.first; o < own.last; ++o)
      for_vectors(panels, H, o, [&](int64_t at, int64_t) {
        result.finish(start ? load(start + at) : Vec{}, o, at);
      });
    return;
  }
  if (sources[0].few) return dense_few_rows(result, sum, H, rounded != nullptr, panels, share);
  // each source's terms in a block, and the weight's columns that belong to them
  struct Run {
    const float* value;  // of the first panel
    int64_t count, panel, column, width;
  } runs[kMaxResults];
  const auto multiply = [&](auto cols, int num_runs, int64_t count, bool is_first, bool is_last) {
    constexpr int COLS = decltype(cols)::value;
    const int64_t first_column = runs[0].column;
    const int64_t columns = runs[num_runs - 1].column + runs[num_runs - 1].width - first_column;
    const float* before = is_first ? start : out;
    for_row_tiles<COLS>(own.first, own.last, [&](auto rows, int64_t o) {
      constexpr int ROWS = decltype(rows)::value;
      const float* tile_weight = weight + o * in + first_column;
      const int64_t left = own.last - o - ROWS;
      Fetching next = {tile_weight + ROWS * in, left < ROWS ? left : ROWS, in, columns,
                       panels.count * (count / kBurst)};
      if (rounded) {
        for (int i = 0; i < ROWS; ++i) {
          float* to = rounded + i * count;
          const float* from = tile_weight + i * in;
          for (int s = 0; s < num_runs; to += runs[s].count, from += runs[s++].width) {
            if constexpr (PAIRS)
              pair_run(to, from, runs[s].width);
            else
              round_run(to, from, runs[s].width);
          }
        }
        tile_weight = rounded;
      }
      for (int64_t p = 0; p < panels.count; ++p) {
        const auto place = [&](int i, int j) { return (p * H + o + i) * P + j * kLanes; };
        Vec c[ROWS][COLS] = {};
        if (before)
          for_tile<ROWS, COLS>([&](int i, int j) { c[i][j] = load(before + place(i, j)); });
        const float* w = tile_weight;
        for (int s = 0; s < num_runs; w += runs[s++].count)
          multiply_tile<PAIRS>(c, w, rounded ? count : in, 1, runs[s].value + p * runs[s].panel, P,
                               runs[s].count, [&] { next.go_on(); });
        if (is_last && result.bias)
          for_tile<ROWS, COLS>([&](int i, int j) { result.finish(c[i][j], o + i, place(i, j)); });
        else
          for_tile<ROWS, COLS>([&](int i, int j) { store(out + place(i, j), c[i][j]); });
      }
    });
  };
  for_blocks(in_terms, panels.padded(), [&](int64_t first, int64_t count) {
    int num_runs = 0;
    int64_t before = 0, column = 0;  // terms and columns before this source
    for (int s = 0; s < num_sources; ++s) {
      const int64_t width = sources[s].width, K = terms<PAIRS>(width);
      const int64_t from = first < before ? 0 : first - before;
      const int64_t to = first + count - before < K ? first + count - before : K;
      if (from < to) {
        const int64_t skipped = PAIRS ? 2 * from : from;
        const int64_t columns = to == K ? width - skipped : PAIRS ? 2 * (to - from) : to - from;
        runs[num_runs++] = {sources[s].value + from * P, to - from, K * P, column + skipped,
                            columns};
      }
      before += K;
      column += width;
    }
    with_cols(panels.cols, [&](auto cols) {
      multiply(cols, num_runs, count, first == 0, first + count == in_terms);
    });
  });
}

// d_source (B, width) in strips = d_out (H, P) times columns first .. first + width of weight
// (H, in). Lanes are columns. A tile runs down the rows of a block of the
// weight. The rows of a wide weight
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
  // row i of the strip from column f of the block from term k
  const auto pack_row = [&](float* to, int64_t f, int64_t k,
                            int64_t i) __attribute__((always_inline)) {
    const int64_t columns = width - f < kStrip ? width - f : kStrip;
    const int64_t o = PAIRS ? 2 * (k + i) : k + i;
    const float* from = weight + o * in + first + f;
    float* row = to + i * kStrip;
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
  float* next_packed = packed + K * kStrip;
  bool is_packed = false;
  for_blocks(K, panels.padded(), [&](int64_t k, int64_t count) {
    for_own_strips(share, width, [&](int64_t f, int strip_cols) {
      for (int64_t i = 0; !is_packed && i < count; ++i) pack_row(packed, f, k, i);
      is_packed = true;
      // the next strip, which may be the first of the next block
      const bool goes_on = f + strip_cols * kLanes < own.last;
      const int64_t next_f = goes_on ? f + strip_cols * kLanes : own.first;
      const int64_t next_k = goes_on ? k : k + count;
      const int64_t rows = next_k + count < K ? count : K - next_k;
      int64_t done = 0;
      with_cols(strip_cols, [&](auto cols) {
        constexpr int COLS = decltype(cols)::value;
        const int64_t calls =
            (panels.B + kTileRows[COLS] - 1) / kTileRows[COLS] * (count / kBurst + 1);
        const int64_t rows_a_call = (rows + calls - 1) / calls;
        for (int64_t p = 0; p < panels.count; ++p) {
          const int64_t B = panels.B - p * P < P ? panels.B - p * P : P;
          for_row_tiles<COLS>(0, B, [&](auto tile_rows, int64_t b) {
            constexpr int ROWS = decltype(tile_rows)::value;
            float* out = d_source + f * panels.B + (p * P + b) * COLS * kLanes;
            Vec c[ROWS][COLS] = {};
            if (k > 0)
              for_tile<ROWS, COLS>(
                  [&](int i, int j) { c[i][j] = load(out + (i * COLS + j) * kLanes); });
            multiply_tile<PAIRS>(c, d_out + (p * K + k) * P + b, 1, P, packed, kStrip, count, [&] {
              for (int64_t r = 0; r < rows_a_call && done < rows; ++r)
                pack_row(next_packed, next_f, next_k, done++);
            });
            for_tile<ROWS, COLS>(
                [&](int i, int j) { store(out + (i * COLS + j) * kLanes, c[i][j]); });
          });
        }
      });
      for (; done < rows; ++done) pack_row(next_packed, next_f, next_k, done);
      float* full = packed;
      packed = next_packed;
      next_packed = full;
    });
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

// what dense_weight_grad needs of memory: the rows' gradient, then their d_out
inline int64_t weight_grad_floats(const Panels& panels) {
  return kGradientRows * (kGradientColumns + panels.padded());
}

// The weight gradient d_out^T @ concat(sources), some rows at a time: finish(gradient, o, rows, f,
// count) gets columns f .. f + count of rows from o, kGradientColumns apart. PAIRS: of rows, in
// products and in the strips.
template <bool PAIRS, class Finish>
inline void dense_weight_grad(const float* d_out, const StripSource* sources, int num_sources,
                              int64_t H, float* scratch, const Panels& panels, const Share& share,
                              Finish finish) {
  const int64_t P = terms<PAIRS>(panels.P), K = terms<PAIRS>(panels.B), padded = panels.count * P;
  float *gradient = scratch, *d_rows = scratch + kGradientRows * kGradientColumns;
  const Range own = own_part(share, H, kGradientRows);
  int64_t num_strips = 0;  // of all sources
  for (int s = 0; s < num_sources; ++s)
    for_strips(sources[s].width, [&](int64_t, int) { ++num_strips; });
  // strips first_strip .. last_strip of rows o .. o + rows
  const auto multiply = [&](int64_t first_strip, int64_t last_strip, int64_t o, int64_t rows) {
    int64_t strip = 0, first = 0;  // strips so far, and columns before this source
    int64_t begun = -1, end = 0;   // the columns in `gradient`
    for (int s = 0; s < num_sources; ++s) {
      for_strips(sources[s].width, [&](int64_t f, int strip_cols) {
        if (strip++ < first_strip || strip > last_strip) return;
        if (begun < 0) begun = first + f;
        if (first + f + strip_cols * kLanes > begun + kGradientColumns) {
          finish(gradient, o, rows, begun, end - begun);
          begun = end;
        }
        // a source's missing columns are the next one's first, which come later
        float* to = gradient + first + f - begun;
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
        const int64_t after = f + strip_cols * kLanes, width = sources[s].width;
        end = first + (after < width ? after : width);
      });
      first += sources[s].width;
    }
    finish(gradient, o, rows, begun, end - begun);
  };
  for_blocks(num_strips, panels.B * kStrip, [&](int64_t first, int64_t count) {
    for (int64_t o = own.first, rows; o < own.last; o += rows) {
      rows = tile_height<kMaxStripCols>(own.last - o);
      for (int64_t p = 0; p < panels.count; ++p)  // the product then has one run of terms
        for (int64_t i = 0; i < rows; ++i) {
          const float* from = d_out + (p * H + o + i) * panels.P;
          float* to = d_rows + i * padded + p * P;
          if constexpr (PAIRS)
            pair_run(to, from, panels.P);
          else
            copy_run(to, from, panels.P);
        }
      multiply(first, first + count, o, rows);
    }
  });
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
