// The one matrix product: a tile of ROWS x COLS vectors stays in registers while the summed index
// ascends, one accumulator an element, never split. So an element's value depends on nothing but
// its operands' order.
#pragma once

#include "panels.h"

namespace noprop {
namespace {

// c[i][j] += sum over k of a[i * a_row + k * a_k] * b[k * b_k + j * kLanes ...]
template <int ROWS, int COLS>
NOPROP_INLINE void multiply_tile(Vec (&c)[ROWS][COLS], const float* a, int64_t a_row, int64_t a_k,
                                 const float* b, int64_t b_k, int64_t K) {
  for (int64_t k = 0; k < K; ++k) {
    Vec row[COLS];
    for (int j = 0; j < COLS; ++j) row[j] = load(b + j * kLanes);
    for (int i = 0; i < ROWS; ++i) {
      const Vec factor = broadcast(a[i * a_row]);
      for (int j = 0; j < COLS; ++j) c[i][j] += factor * row[j];
    }
    a += a_k;
    b += b_k;
  }
}

// body(Constant<ROWS>, first row) over tiles of the best height for COLS, then smaller ones
template <int COLS, class Body>
NOPROP_INLINE void for_row_tiles(int64_t rows, Body body) {
  constexpr int kRows = kTileRows[COLS];
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) body(Constant<kRows>{}, row);
  if constexpr (kRows > 8)
    for (; row + 8 <= rows; row += 8) body(Constant<8>{}, row);
  for (; row + 4 <= rows; row += 4) body(Constant<4>{}, row);
  for (; row + 2 <= rows; row += 2) body(Constant<2>{}, row);
  for (; row < rows; ++row) body(Constant<1>{}, row);
}

}  // namespace
}  // namespace noprop
