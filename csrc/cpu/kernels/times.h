// t of the rows of a step, drawn by their addresses, and the embedding of t: sines and cosines, in
// float64 and rounded once.
#pragma once

#include "cpu/kernels/doubles.h"
#include "cpu/kernels/load.h"
#include "cpu/kernels/noise.h"

namespace noprop {
namespace {

constexpr uint32_t kTimeStream = 6;

// t of the B rows of step k and slice i, uniform in [0, 1); of `strata` equal parts of it, the one
// of the row, if that is above 0
inline void draw_times(double* t, const int64_t* seeds, const NopropNoise& noise, int64_t k,
                       int64_t i, int64_t B, int64_t strata) {
  const NoiseKey key = noise_key(noise, (uint64_t)seeds[i], kTimeStream, k, i);
  for (int64_t b = 0; b < B; b += kLanes) {
    const UintVec row = (UintVec)lane_numbers() + (key.first_row + (uint32_t)b);
    UintVec c[4] = {UintVec{}, row, UintVec{} + key.place, UintVec{} + key.draw};
    philox(c, key.seed);
    for (int64_t lane = 0; lane < kLanes && b + lane < B; ++lane) {
      const double u = (double)(c[0][lane] >> 8) * 0x1p-24;
      t[b + lane] = strata > 0 ? ((double)(key.first_row + b + lane) + u) / (double)strata : u;
    }
  }
}

// sin and cos of x, |x| below 1e5, within 1e-15: x less a multiple of pi / 2, whose parts are exact
// products, then the polynomials of fdlibm's k_sin.c and k_cos.c (Sun Microsystems, 1993)
NOPROP_INLINE void sin_cos(DoubleVec x, DoubleVec& sine, DoubleVec& cosine) {
  constexpr double kHigh = 0x1.921fb544p0, kLow = 0x1.0b4611a626331p-34;  // of pi / 2
  const DoubleVec shifted = x * 0x1.45f306dc9c883p-1 + kToInteger;
  const DoubleVec turns = shifted - kToInteger;
  const LongVec quadrant = (LongVec)shifted;
  const DoubleVec r = (x - turns * kHigh) - turns * kLow, s = r * r;
  const DoubleVec sin_r =
      r + r * s *
              (-0x1.5555555555549p-3 +
               s * (0x1.111111110f8a6p-7 +
                    s * (-0x1.a01a019c161d5p-13 +
                         s * (0x1.71de357b1fe7dp-19 +
                              s * (-0x1.ae5e68a2b9cebp-26 + s * 0x1.5d93a5acfd57cp-33)))));
  const DoubleVec cos_r =
      1.0 - s * 0.5 +
      s * s *
          (0x1.555555555554cp-5 +
           s * (-0x1.6c16c16c15177p-10 +
                s * (0x1.a01a019cb159p-16 +
                     s * (-0x1.27e4f809c52adp-22 +
                          s * (0x1.1ee9ebdb4b1c4p-29 - s * 0x1.8fae9be8838d4p-37)))));
  const LongVec is_odd = -(quadrant & 1);
  const DoubleVec a = (DoubleVec)(((LongVec)cos_r & is_odd) | ((LongVec)sin_r & ~is_odd));
  const DoubleVec b = (DoubleVec)(((LongVec)sin_r & is_odd) | ((LongVec)cos_r & ~is_odd));
  sine = (DoubleVec)((LongVec)a ^ ((quadrant & 2) << 62));
  cosine = (DoubleVec)((LongVec)b ^ (((quadrant + 1) & 2) << 62));
}

// rows (count, 2 n): the sines of t times each of n frequencies, then the cosines
inline void embed_times(float* out, const double* t, int64_t count, const double* frequencies,
                        int64_t n) {
  for (int64_t row = 0; row < count; ++row, out += 2 * n)
    for (int64_t i = 0; i < n; i += kDoubles) {
      const int64_t width = n - i < kDoubles ? n - i : kDoubles;
      DoubleVec frequency = {}, sine, cosine;
      __builtin_memcpy(&frequency, frequencies + i, sizeof(double) * (uint64_t)width);
      sin_cos(frequency * t[row], sine, cosine);
      const HalfFloatVec s = __builtin_convertvector(sine, HalfFloatVec);
      const HalfFloatVec c = __builtin_convertvector(cosine, HalfFloatVec);
      __builtin_memcpy(out + i, &s, sizeof(float) * (uint64_t)width);
      __builtin_memcpy(out + n + i, &c, sizeof(float) * (uint64_t)width);
    }
}

}  // namespace
}  // namespace noprop
