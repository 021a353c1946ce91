// A dense layer over several sources, forward. Biases and activations act on the tile while it is
// in registers.
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

// What tiles read again stays in a core's second cache, of a megabyte or more, beside what streams
// past it. Where one panel is larger than this, a sum is formed in blocks of terms, and waits
// between them where its result will be. Where all panels or strips together are, several tiles
// take turns on each.
constexpr int64_t kReadAgainFloats = 128 * 1024, kFewestTerms = 16;

// of K terms, each of which has `width` floats of a panel
inline int64_t num_blocks(int64_t K, int64_t width) {
  return (K * width + kReadAgainFloats / 2) / kReadAgainFloats;
}

// The rows, of `left`, that take turns on panels or strips of `total` floats: one tile, or as many
// as have `most` floats, where each row has `row` of them.
template <int COLS>
inline int64_t rows_in_turn(int64_t left, int64_t total, int64_t row, int64_t most) {
  constexpr int64_t kRows = kTileRows[COLS];
  const int64_t tiles = total > kReadAgainFloats ? most / (kRows * row) : 1;
  if (tiles > 1) return tiles * kRows < left ? tiles * kRows : left;
  if (left == kTwoTiles<COLS>) return left / 2;
  return tile_height<COLS>(left);
}

// calls body(first, count) for the blocks
template <class Body>
NOPROP_INLINE void for_blocks(int64_t K, int64_t width, Body body) {
  const int64_t blocks = num_blocks(K, width);
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
    constexpr int64_t kRows = kTileRows[COLS];
    for (int64_t first = own.first, taken; first < own.last; first += taken) {
      // `rounded` has room for one tile
      taken = rows_in_turn<COLS>(own.last - first, rounded ? 0 : count * panels.padded(), count,
                                 kReadAgainFloats / 2);
      const int64_t last = first + taken, left = own.last - last;
      const float* turn_weight = weight + first * in + first_column;
      Fetching next = {turn_weight + taken * in, left < taken ? left : taken, in, columns,
                       panels.count * ((taken + kRows - 1) / kRows) * (count / kBurst)};
      if (rounded) {
        for (int64_t i = 0; i < taken; ++i) {
          float* to = rounded + i * count;
          const float* from = turn_weight + i * in;
          for (int s = 0; s < num_runs; to += runs[s].count, from += runs[s++].width) {
            if constexpr (PAIRS)
              pair_run(to, from, runs[s].width);
            else
              round_run(to, from, runs[s].width);
          }
        }
        turn_weight = rounded;
      }
      const int64_t weight_row = rounded ? count : in;
      for (int64_t p = 0; p < panels.count; ++p) {
        for_even_tiles<COLS>(first, last, [&](auto rows, int64_t o) {
          constexpr int ROWS = decltype(rows)::value;
          const auto place = [&](int i, int j) { return (p * H + o + i) * P + j * kLanes; };
          Vec c[ROWS][COLS] = {};
          if (before)
            for_tile<ROWS, COLS>([&](int i, int j) { c[i][j] = load(before + place(i, j)); });
          const float* w = turn_weight + (o - first) * weight_row;
          for (int s = 0; s < num_runs; w += runs[s++].count) {
            const float *all = runs[s].value, *own_panel = all + p * runs[s].panel;
            ReadingAhead<kBurst * COLS * kLanes> ahead(
                own_panel, all + panels.count * runs[s].panel, o == own.first);
            multiply_tile<PAIRS>(c, w, weight_row, 1, own_panel, P, runs[s].count, [&] {
              next.go_on();
              ahead.go_on();
            });
          }
          if (is_last && result.bias)
            for_tile<ROWS, COLS>([&](int i, int j) { result.finish(c[i][j], o + i, place(i, j)); });
          else
            for_tile<ROWS, COLS>([&](int i, int j) { store(out + place(i, j), c[i][j]); });
        });
      }
    }
  };
  for_blocks(in_terms, P, [&](int64_t first, int64_t count) {
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

}  // namespace
}  // namespace noprop
