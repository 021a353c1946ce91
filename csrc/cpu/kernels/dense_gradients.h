// A dense layer's gradients: of its sources, its weight and its bias. Whole rows of the weight's go
// straight to the optimizer.
#pragma once

#include "cpu/kernels/dense.h"

namespace noprop {
namespace {

// Whether a source's gradient, with H terms, goes to panels at once. Lanes of few rows would be
// work for nothing, and what waits between the blocks of a sum would wait where others are.
inline bool goes_to_panels(int64_t H, bool adds, const Panels& panels) {
  return 2 * panels.B > panels.padded() && !(adds && num_blocks(H, panels.P) > 1);
}

// Where a source's gradient goes: to panels (width, P), or to a caller's rows (B, width), or to
// strips, where both are null. `adds`: panels and rows have something to which it is added. Rows
// need `strips` too, for what waits between the blocks of a sum.
struct InputGradOut {
  float *strips, *panels, *rows;
  bool adds;

  NOPROP_INLINE void put(float* to, Vec d) const { store(to, adds ? load(to) + d : d); }
  // the first `count` lanes
  NOPROP_INLINE void put(float* to, Vec d, int64_t count) const {
    if (count >= kLanes) return put(to, d);
    if (count <= 0) return;
    const int some = (int)count;
    store_partial(to, adds ? load_partial(to, some) + d : d, some);
  }
};

// Copies columns f .. of the weight's columns from `first`, for rows (PAIRS: pairs of rows) k .. k
// + rows, to a strip, between the bursts of a product, whose registers it leaves alone. rounds: to
// bfloat16.
template <bool PAIRS>
struct PackStrip {
  static constexpr int64_t kAhead = 8;  // rows: enough for memory, few enough for the nearest cache
  float* to;
  const float* from;
  int64_t in, H, o, columns, rows, a_turn = 0, calls_a_turn = 1, wait = 1;
  bool rounds;

  NOPROP_INLINE PackStrip(float* to, const float* weight, int64_t in, int64_t H, int64_t first,
                          int64_t f, int64_t width, int64_t k, int64_t rows, bool rounds)
      : to(to), in(in), H(H), o(PAIRS ? 2 * k : k), rows(rows), rounds(rounds) {
    from = weight + o * in + first + f;
    columns = width - f < kStrip ? width - f : kStrip;
  }
  // Rows are spread evenly over this many calls of go_on: a product waits for many at once.
  NOPROP_INLINE void begin(int64_t calls) {
    a_turn = (rows + calls - 1) / calls;
    calls_a_turn = larger(1, rows > 0 ? calls / rows : 1);
  }
  NOPROP_INLINE void go_on() {
    if (--wait > 0) return;
    wait = calls_a_turn;
    for (int64_t i = 0; i < a_turn && rows > 0; ++i) row();
  }
  NOPROP_INLINE void finish() {
    while (rows > 0) row();
  }

  NOPROP_INLINE void row() {
    int64_t c = 0;
    const auto put = [&](auto get) __attribute__((always_inline)) {
      const Vec w = get(from + c);
      if constexpr (PAIRS)
        store(to + c, zip_pairs(w, o + 1 < H ? get(from + in + c) : Vec{}));
      else
        store(to + c, rounds ? round_bfloat16(w) : w);
    };
    for (; c + kLanes <= columns; c += kLanes) put([](const float* at) { return load(at); });
    if (c < columns) put([&](const float* at) { return load_partial(at, (int)(columns - c)); });
    for (int64_t ahead = o + kAhead; ahead < o + kAhead + (PAIRS ? 2 : 1) && ahead < H; ++ahead)
      for (c = 0; c < columns; c += kLineFloats) __builtin_prefetch(from + (ahead - o) * in + c);
    o += PAIRS ? 2 : 1;
    from += PAIRS ? 2 * in : in;
    to += kStrip;
    --rows;
  }
};

// Fetches rows of a weight, of `columns` floats each, ahead of a tile that reads them once.
struct FetchRows {
  static constexpr int64_t kAhead = 16;  // rows
  const float* from;
  int64_t in, columns, rows;

  NOPROP_INLINE void go_on() {
    for (int64_t i = 0; i < kBurst && rows > kAhead; ++i, --rows, from += in)
      for (int64_t c = 0; c < columns; c += kLineFloats) __builtin_prefetch(from + kAhead * in + c);
  }
};

// d_source (B, width) = d_out (H, P) times columns first .. first + width of weight (H, in). Lanes
// are rows for panels, else columns. A tile runs down the rows of a block of the weight. The
// rows of a wide weight are so far apart that they push each other out of the caches, so strips of
// columns are copied to `packed` (2, H, kStrip), the next one row by row while this one's product
// runs; not where one tile has all rows of the batch, and reads a weight once. rounds: the weight
// is rounded to bfloat16. PAIRS: the weight has pairs of rows, d_out pairs of features.
template <bool PAIRS>
inline void dense_input_grad(const InputGradOut& result, const float* d_out, const float* weight,
                             int64_t in, int64_t first, int64_t width, int64_t H, float* packed,
                             bool rounds, const Panels& panels, const Share& share) {
  const int64_t P = panels.P;
  const int64_t K = terms<PAIRS>(H);
  const Range own = own_columns(share, width);
  if (own.first == own.last) return;
  float* next_packed = packed + K * kStrip;
  const bool reads_once = !PAIRS && !rounds && !result.panels && width % kLanes == 0 &&
                          panels.B <= kTileRows[kMaxStripCols];
  bool is_packed = reads_once;
  for_blocks(K, panels.P, [&](int64_t k, int64_t count) {
    for_own_strips(share, width, [&](int64_t f, int strip_cols) {
      if (!is_packed) {
        PackStrip<PAIRS> first_strip = {packed, weight, in, H, first, f, width, k, count, rounds};
        first_strip.finish();
      }
      is_packed = true;
      // the next strip, which may be the first of the next block
      const bool goes_on = f + strip_cols * kLanes < own.last;
      const int64_t next_f = goes_on ? f + strip_cols * kLanes : own.first;
      const int64_t next_k = goes_on ? k : k + count;
      const int64_t left = next_k + count < K ? count : K - next_k;
      const int64_t rows = reads_once ? 0 : left;
      PackStrip<PAIRS> strip = {next_packed, weight, in,     H,    first,
                                next_f,      width,  next_k, rows, rounds};
      const auto to_panels = [&](auto cols) {
        constexpr int COLS = decltype(cols)::value;
        const int64_t end = f + strip_cols * kLanes < width ? f + strip_cols * kLanes : width;
        const int64_t tiles = panels.count * ((end - f + kTileRows[COLS] - 1) / kTileRows[COLS]);
        PackStrip<PAIRS> next = strip;
        next.begin(tiles * (count / kBurst + 1));
        for (int64_t p = 0; p < panels.count; ++p)
          for_row_tiles<COLS>(f, end, [&](auto tile_rows, int64_t row) {
            constexpr int ROWS = decltype(tile_rows)::value;
            float* out = result.panels + (p * width + row) * P;
            const auto place = [&](int i, int j) { return out + i * P + j * kLanes; };
            Vec c[ROWS][COLS] = {};
            if (k > 0) for_tile<ROWS, COLS>([&](int i, int j) { c[i][j] = load(place(i, j)); });
            multiply_tile<PAIRS>(c, packed + row - f, 1, kStrip, d_out + (p * K + k) * P, P, count,
                                 [&] { next.go_on(); });
            if ((p + 1) * P > panels.B)
              for_tile<ROWS, COLS>([&](int i, int j) {
                c[i][j] = keep_first(c[i][j], panels.B - p * P - j * kLanes);
              });
            if (result.adds)
              for_tile<ROWS, COLS>([&](int i, int j) { c[i][j] = load(place(i, j)) + c[i][j]; });
            for_tile<ROWS, COLS>([&](int i, int j) { store(place(i, j), c[i][j]); });
          });
        next.finish();
      };
      const auto to_columns = [&](auto cols, auto once) {
        constexpr int COLS = decltype(cols)::value;
        constexpr bool ONCE = decltype(once)::value;
        const float* const terms = ONCE ? weight + k * in + first + f : packed;
        const int64_t apart = ONCE ? in : kStrip;
        FetchRows fetch = {terms, in, COLS * kLanes, count};
        PackStrip<PAIRS> next = strip;
        next.begin((panels.B + kTileRows[COLS] - 1) / kTileRows[COLS] * (count / kBurst + 1));
        for (int64_t p = 0; p < panels.count; ++p) {
          const int64_t B = panels.B - p * P < P ? panels.B - p * P : P;
          for_row_tiles<COLS>(0, B, [&](auto tile_rows, int64_t b) {
            constexpr int ROWS = decltype(tile_rows)::value;
            const int64_t row = p * P + b;
            float* out = result.strips + f * panels.B + row * COLS * kLanes;
            // a caller's rows are far, and stores wait for one another
            for (int i = 0; result.rows && k + count == K && i < ROWS; ++i)
              for (int64_t at = 0; at < COLS * kLanes; at += kLineFloats)
                __builtin_prefetch(result.rows + (row + i) * width + f + at, 1);
            Vec c[ROWS][COLS] = {};
            if (k > 0)
              for_tile<ROWS, COLS>(
                  [&](int i, int j) { c[i][j] = load(out + (i * COLS + j) * kLanes); });
            multiply_tile<PAIRS>(c, d_out + (p * K + k) * P + b, 1, P, terms, apart, count, [&] {
              if constexpr (ONCE)
                fetch.go_on();
              else
                next.go_on();
            });
            if (result.rows && k + count == K)
              for_tile<ROWS, COLS>([&](int i, int j) {
                const int64_t column = f + j * kLanes;
                result.put(result.rows + (row + i) * width + column, c[i][j], width - column);
              });
            else
              for_tile<ROWS, COLS>(
                  [&](int i, int j) { store(out + (i * COLS + j) * kLanes, c[i][j]); });
          });
        }
        next.finish();
      };
      if (result.panels)
        with_cols(panels.cols, to_panels);
      else
        with_cols(strip_cols, [&](auto cols) {
          reads_once ? to_columns(cols, Constant<1>{}) : to_columns(cols, Constant<0>{});
        });
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

// Whole rows of a weight gradient wait for the optimizer near the core. It then goes along the rows
// of its arrays, and no product stands between two of its accesses. They are a tile's rows, and
// several tiles' where those take turns on strips.
constexpr int64_t kTileGradientRows = kTileRows[kMaxStripCols], kMostTurns = 4;
constexpr int64_t kGradientColumns = 6 * 1024 / kTileGradientRows / kStrip * kStrip;

// what dense_weight_grad needs of memory: the rows' gradient, then their d_out
inline int64_t weight_grad_floats(const Panels& panels) {
  return kMostTurns * kTileGradientRows * (kGradientColumns + panels.padded());
}

// The weight gradient d_out^T @ concat(sources), some rows at a time: finish(gradient, o, rows, f,
// count) gets columns f .. f + count of rows from o, kGradientColumns apart. PAIRS: of rows, in
// products and in the strips.
template <bool PAIRS, class Finish>
inline void dense_weight_grad(const float* d_out, const StripSource* sources, int num_sources,
                              int64_t H, float* scratch, const Panels& panels, const Share& share,
                              Finish finish) {
  const int64_t P = terms<PAIRS>(panels.P), K = terms<PAIRS>(panels.B), padded = panels.count * P;
  float* gradient = scratch;
  float* d_rows = scratch + kMostTurns * kTileGradientRows * kGradientColumns;
  const Range own = own_part(share, H, kTileGradientRows);
  int64_t strip_floats = 0;  // of all sources
  for (int s = 0; s < num_sources; ++s) strip_floats += K * round_up(sources[s].width);
  for (int64_t o = own.first, rows; o < own.last; o += rows) {
    rows =
        rows_in_turn<kMaxStripCols>(own.last - o, strip_floats, 1, kMostTurns * kTileGradientRows);
    for (int64_t p = 0; p < panels.count; ++p)  // the product then has one run of terms
      for (int64_t i = 0; i < rows; ++i) {
        const float* from = d_out + (p * H + o + i) * panels.P;
        float* to = d_rows + i * padded + p * P;
        if constexpr (PAIRS)
          pair_run(to, from, panels.P);
        else
          copy_run(to, from, panels.P);
      }
    int64_t first = 0;           // columns before this source
    int64_t begun = 0, end = 0;  // the columns in `gradient`
    for (int s = 0; s < num_sources; ++s) {
      const int64_t width = sources[s].width;
      for_strips(width, [&](int64_t f, int strip_cols) {
        if (first + f + strip_cols * kLanes > begun + kGradientColumns) {
          finish(gradient, o, rows, begun, end - begun);
          begun = end;
        }
        // a source's missing columns are the next one's first, which come later
        float* to = gradient + first + f - begun;
        with_cols(strip_cols, [&](auto cols) {
          constexpr int COLS = decltype(cols)::value;
          for_even_tiles<kMaxStripCols>(0, rows, [&](auto tile_rows, int64_t r) {
            constexpr int ROWS = decltype(tile_rows)::value;
            Vec c[ROWS][COLS] = {};
            const float* strips = sources[s].strips;
            ReadingAhead<kBurst * COLS * kLanes> ahead(
                strips + f * panels.B, strips + width * panels.B, o + r == own.first);
            multiply_tile<PAIRS>(c, d_rows + r * padded, padded, 1, strips + f * panels.B,
                                 COLS * kLanes, K, [&] { ahead.go_on(); });
            for_tile<ROWS, COLS>([&](int i, int j) {
              store(to + (r + i) * kGradientColumns + j * kLanes, c[i][j]);
            });
          });
        });
        const int64_t after = f + strip_cols * kLanes;
        end = first + (after < width ? after : width);
      });
      first += width;
    }
    finish(gradient, o, rows, begun, end - begun);
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
