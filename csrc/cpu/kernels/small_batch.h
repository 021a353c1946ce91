// The product of a batch with too few rows to fill a vector. Lanes are output features. Weights are
// contiguous along the inputs, so squares of them are transposed in registers. An element has one
// accumulator that ascends over its inputs, as everywhere, and so the same bits.
#pragma once

#include "cpu/kernels/product.h"

namespace noprop {
namespace {

// whether a forward pass without batch statistics has such products; training has none
inline bool has_few_rows(const Panels& panels) {
  return panels.B <= kMostFewRows && panels.cols == 1;
}

// The rows that such a product has: a power of two.
inline int64_t few_rows(int64_t B) {
  int64_t rows = 1;
  while (rows < B) rows *= 2;
  return rows;
}

typedef float Quarter __attribute__((vector_size(16)));
typedef float UnalignedQuarter __attribute__((vector_size(16), aligned(4), may_alias));

NOPROP_INLINE Quarter load_quarter(const float* p) {
  return *reinterpret_cast<const UnalignedQuarter*>(p);
}

// a vector of 128-bit parts, of which part(i) is the i-th
template <class Part>
NOPROP_INLINE Vec join_quarters(Part part) {
#if NOPROP_LANES == 16
  const auto low = __builtin_shufflevector(part(0), part(1), 0, 1, 2, 3, 4, 5, 6, 7);
  const auto high = __builtin_shufflevector(part(2), part(3), 0, 1, 2, 3, 4, 5, 6, 7);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif NOPROP_LANES == 8
  return __builtin_shufflevector(part(0), part(1), 0, 1, 2, 3, 4, 5, 6, 7);
#else
  return part(0);
#endif
}

// Rows of a weight (out, in) as lanes of whole vectors; where there are fewer, the last is
// repeated.
template <bool FULL>
struct OutputRows {
  const float* weight;
  int64_t in, count;

  NOPROP_INLINE const float* row(int64_t i) const {
    return weight + (FULL || i < count ? i : count - 1) * in;
  }
};

// w[i] = the outputs' weights of input k + i; four inputs at once make the cheapest square
template <bool FULL>
NOPROP_INLINE void load_square(Vec (&w)[4], const OutputRows<FULL>& outputs, int g, int64_t k) {
  Vec mixed[4];  // 128-bit part q of the j-th: output 4 q + j
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
    mixed[j] = join_quarters([&](int q) __attribute__((always_inline)) {
      return load_quarter(outputs.row(g * kLanes + 4 * q + j) + k);
    });
  transpose_quarters(w, mixed);
}

// c[g][r] += sum over k of the weights of the outputs from g * kLanes times x[k * ROWS + r].
// rounds: weights are rounded to bfloat16, as x is. If the processor multiplies pairs, x has pairs
// of k, and all weights are rounded.
template <bool FULL, int VECTORS, int ROWS>
NOPROP_INLINE void multiply_few(Vec (&c)[VECTORS][ROWS], const OutputRows<FULL>& outputs,
                                const float* x, int64_t K, bool rounds) {
  constexpr int kStep = kHasPairs ? 2 : 1;
  // one of k, or the pair from k
  const auto step = [&](int g, Vec w, Vec odd, int64_t k) __attribute__((always_inline)) {
    if constexpr (kHasPairs) w = zip_pairs(w, odd);
    const float* row = x + k / kStep * ROWS;
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
      if constexpr (kHasPairs)
        c[g][r] = add_pairs(c[g][r], w, broadcast_bits(row + r));
      else
        c[g][r] += w * row[r];
  };
  int64_t k = 0;
  for (; k + 4 <= K; k += 4) {
#pragma GCC unroll 4
    for (int g = 0; g < VECTORS; ++g) {
      Vec w[4];
      load_square(w, outputs, g, k);
      if (!kHasPairs && rounds)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) w[i] = round_bfloat16(w[i]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i += kStep) step(g, w[i], w[i + kStep - 1], k + i);
    }
  }
  for (; k < K; k += kStep)
    for (int g = 0; g < VECTORS; ++g) {
      Vec w = {}, odd = {};
      for (int i = 0; i < kLanes; ++i) {
        const float* row = outputs.row(g * kLanes + i) + k;
        w[i] = row[0];
        if (kHasPairs && k + 1 < K) odd[i] = row[1];
      }
      if (!kHasPairs && rounds) w = round_bfloat16(w);
      step(g, w, odd, k);
    }
}

// body(Constant<ROWS>) for few_rows(B)
template <class Body>
NOPROP_INLINE void with_few_rows(int64_t B, Body body) {
  if (B <= 1) return body(Constant<1>{});
#if NOPROP_LANES >= 8
  if (B <= 2) return body(Constant<2>{});
#endif
#if NOPROP_LANES >= 16
  if (B <= 4) return body(Constant<4>{});
#endif
  return body(Constant<kMostFewRows>{});
}

}  // namespace
}  // namespace noprop
