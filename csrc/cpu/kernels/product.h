// The one matrix product: a tile of ROWS x COLS vectors stays in registers while the summed index
// ascends, one accumulator an element, never split. So an element's value depends on the order of
// its operands alone.
#pragma once

#include "cpu/kernels/panels.h"

namespace noprop {
namespace {

// body(i, j) for each vector of a tile. Unrolled, or the tile would not stay in registers.
template <int ROWS, int COLS, class Body>
NOPROP_INLINE void for_tile(Body body) {
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < COLS; ++j) body(i, j);
  }
}

// Keeps a value that was loaded in its register: GCC would load it again for each use.
NOPROP_INLINE Vec held(Vec v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

template <bool PAIRS, int ROWS, int COLS>
NOPROP_INLINE void multiply_step(Vec (&c)[ROWS][COLS], const float* a, int64_t a_row,
                                 const float* b) {
  Vec row[COLS];
#pragma GCC unroll 4
  for (int j = 0; j < COLS; ++j) row[j] = load(b + j * kLanes);
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i) {
    if constexpr (PAIRS) {
      const Vec factor = broadcast_bits(a + i * a_row);
#pragma GCC unroll 4
      for (int j = 0; j < COLS; ++j) c[i][j] = add_pairs(c[i][j], factor, row[j]);
    } else {
      const Vec factor = broadcast(a[i * a_row]);
#pragma GCC unroll 4
      for (int j = 0; j < COLS; ++j) c[i][j] += factor * row[j];
    }
  }
}

// c[i][j] += sum over k of a[i * a_row + k * a_k] * b[k * b_k + j * kLanes ...]; between() is
// called every kBurst steps, for work that hides behind the product. PAIRS: each float of an
// operand is a pair of bfloat16, and k counts pairs.
constexpr int64_t kBurst = 8;
constexpr int64_t kLineFloats = 16;  // in a cache line

template <bool PAIRS = false, int ROWS, int COLS, class Between>
NOPROP_INLINE void multiply_tile(Vec (&c)[ROWS][COLS], const float* a, int64_t a_row, int64_t a_k,
                                 const float* b, int64_t b_k, int64_t K, Between between) {
  int64_t k = 0;
  for (; k + kBurst <= K; k += kBurst) {
    between();
#pragma GCC unroll 8
    for (int64_t i = 0; i < kBurst; ++i, a += a_k, b += b_k) multiply_step<PAIRS>(c, a, a_row, b);
  }
  for (; k < K; ++k, a += a_k, b += b_k) multiply_step<PAIRS>(c, a, a_row, b);
}

template <bool PAIRS = false, int ROWS, int COLS>
NOPROP_INLINE void multiply_tile(Vec (&c)[ROWS][COLS], const float* a, int64_t a_row, int64_t a_k,
                                 const float* b, int64_t b_k, int64_t K) {
  multiply_tile<PAIRS>(c, a, a_row, a_k, b, b_k, K, [] {});
}

// Fetches rows of a matrix from memory, `count` floats of each, between the bursts of a product. It
// is always inlined: GCC takes a function that only prefetches for one that does nothing.
struct Fetching {
  const float* at;
  int64_t rows, stride, row_lines, line = 0, a_burst;

  NOPROP_INLINE Fetching(const float* first, int64_t num_rows, int64_t stride, int64_t count,
                         int64_t bursts)
      : at(first), rows(num_rows), stride(stride) {
    if (count == stride) {  // the rows are one
      rows = rows > 0;
      count *= num_rows;
    }
    row_lines = (count + kLineFloats - 1) / kLineFloats;
    a_burst = bursts ? (rows * row_lines + bursts - 1) / bursts : 0;
  }
  NOPROP_INLINE void go_on() {
    for (int64_t i = 0; i < a_burst && rows > 0; ++i) {
      __builtin_prefetch(at + line * kLineFloats);
      if (++line < row_lines) continue;
      line = 0;
      at += stride;
      --rows;
    }
  }
};

// Fetches what the first tile of a product reads in order, as far ahead as the last-level cache is
// away; the processor's own prefetch follows a stream less closely. For the tiles after it the
// operand is in a core's own caches. With 32 registers a tile reads less for its work, and the
// fetches would cost what they save. FLOATS: of a burst.
template <int64_t FLOATS>
struct ReadingAhead {
  static constexpr int64_t kAhead = 3072;  // floats
  const float *at = nullptr, *end = nullptr;

  NOPROP_INLINE ReadingAhead(const float* first, const float* end_of_all, bool is_first_tile) {
    if constexpr (NOPROP_REGISTERS == 16)
      if (is_first_tile) at = first + kAhead, end = end_of_all;
  }
  NOPROP_INLINE void go_on() {
    if constexpr (NOPROP_REGISTERS == 16) {
      if (at >= end) return;
#pragma GCC unroll 32
      for (int64_t i = 0; i < FLOATS; i += kLineFloats) __builtin_prefetch(at + i);
      at += FLOATS;
    }
  }
};

// so many rows are two tiles of 8, since 4 after 12 would wait for their own sums; 0: there are
// none
template <int COLS>
constexpr int64_t kTwoTiles = kTileRows[COLS] > 8 ? 16 : 0;

// calls body(Constant<ROWS>, first row) over row .. rows, in tiles of the best height for COLS,
// then in smaller ones
template <int COLS, class Body>
NOPROP_INLINE void for_row_tiles(int64_t row, int64_t rows, Body body) {
  constexpr int kRows = kTileRows[COLS];
  for (; row + kRows <= rows && rows - row != kTwoTiles<COLS>; row += kRows)
    body(Constant<kRows>{}, row);
  if constexpr (kRows > 8)
    for (; row + 8 <= rows; row += 8) body(Constant<8>{}, row);
  for (; row + 4 <= rows; row += 4) body(Constant<4>{}, row);
  for (; row + 2 <= rows; row += 2) body(Constant<2>{}, row);
  for (; row < rows; ++row) body(Constant<1>{}, row);
}

// The same for products over many rows. Where registers are few, tiles are as even as possible: the
// sums of a low one would wait for one another. tile_height is the first one's over `left` rows.
constexpr bool kEvenTiles = NOPROP_REGISTERS == 16;
template <int COLS>
inline int64_t tile_height(int64_t left) {
  constexpr int64_t kRows = kTileRows[COLS];
  if (!kEvenTiles) return left < kRows ? left : kRows;
  const auto rows = (uint32_t)left, tiles = (rows + (uint32_t)kRows - 1) / (uint32_t)kRows;
  return (rows + tiles - 1) / tiles;
}

template <int COLS, class Body>
NOPROP_INLINE void for_even_tiles(int64_t row, int64_t rows, Body body) {
  if constexpr (!kEvenTiles || COLS == 1) {
    for_row_tiles<COLS>(row, rows, body);
  } else {
    static_assert(kTileRows[COLS] == 6);
    for (int64_t height; row < rows; row += height) {
      height = tile_height<COLS>(rows - row);
      if (height == 6) body(Constant<6>{}, row);
      if (height == 5) body(Constant<5>{}, row);
      if (height == 4) body(Constant<4>{}, row);
      if (height == 3) body(Constant<3>{}, row);
      if (height == 2) body(Constant<2>{}, row);
      if (height == 1) body(Constant<1>{}, row);
    }
  }
}

}  // namespace
}  // namespace noprop
