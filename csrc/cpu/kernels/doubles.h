// Vectors of float64, for what is rounded once at its end: t, and the noise levels there. Functions
// are within a few units of the last place.
#pragma once

#include "cpu/kernels/vec.h"

namespace noprop {
namespace {

typedef double DoubleVec __attribute__((vector_size(4 * NOPROP_LANES)));  // half as many lanes
typedef int64_t LongVec __attribute__((vector_size(4 * NOPROP_LANES)));
typedef float HalfFloatVec __attribute__((vector_size(2 * NOPROP_LANES)));
constexpr int kDoubles = kLanes / 2;

constexpr double kToInteger = 0x1.8p52;  // adding it leaves an integer in the last bits

// the first `count` (0..kDoubles) lanes, the others zero
NOPROP_INLINE DoubleVec load_doubles(const double* p, int64_t count) {
  DoubleVec v = {};
  if (count >= kDoubles)
    __builtin_memcpy(&v, p, sizeof v);
  else
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

NOPROP_INLINE void store_doubles(double* p, DoubleVec v, int64_t count) {
  if (count >= kDoubles)
    __builtin_memcpy(p, &v, sizeof v);
  else
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// float32 in memory
NOPROP_INLINE DoubleVec load_floats(const float* p, int64_t count) {
  HalfFloatVec v = {};
  if (count >= kDoubles)
    __builtin_memcpy(&v, p, sizeof v);
  else
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return __builtin_convertvector(v, DoubleVec);
}

NOPROP_INLINE void store_floats(float* p, DoubleVec v, int64_t count) {
  const HalfFloatVec f = __builtin_convertvector(v, HalfFloatVec);
  if (count >= kDoubles)
    __builtin_memcpy(p, &f, sizeof f);
  else
    for (int64_t i = 0; i < count; ++i) p[i] = f[i];
}

NOPROP_INLINE DoubleVec sqrt(DoubleVec x) {
#if defined(__AVX512F__)
  return (DoubleVec)_mm512_maskz_sqrt_pd((__mmask8)-1, (__m512d)x);
#elif defined(__AVX2__)
  return (DoubleVec)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (DoubleVec)_mm_sqrt_pd((__m128d)x);
#elif defined(__aarch64__)
  return (DoubleVec)vsqrtq_f64((float64x2_t)x);
#else
  DoubleVec r;
  for (int i = 0; i < kDoubles; ++i) r[i] = __builtin_sqrt(x[i]);
  return r;
#endif
}

NOPROP_INLINE DoubleVec absolute(DoubleVec x) {
  return (DoubleVec)((LongVec)x & INT64_C(0x7fffffffffffffff));
}

constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;  // fdlibm's

// e^x = power + power * rest, where power is of 2 and rest = e^r - 1, |r| <= ln(2) / 2, by Taylor's
// series as far as float64 has digits; x in [-708, 709], or NaN
NOPROP_INLINE void exp_parts(DoubleVec x, DoubleVec& power, DoubleVec& rest) {
  const DoubleVec shifted = x * 0x1.71547652b82fep0 + kToInteger;  // x / ln 2, rounded
  const DoubleVec n = shifted - kToInteger;
  power = (DoubleVec)(((LongVec)shifted + 1023) << 52);
  const DoubleVec r = (x - n * kLn2High) - n * kLn2Low;
  DoubleVec p = r * (1.0 / 6227020800) + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  rest = p * (r * r) + r;
}

// 0 below -708, infinite above 709
NOPROP_INLINE DoubleVec exp(DoubleVec x) {
  const DoubleVec low = DoubleVec{} - 708.0, high = DoubleVec{} + 709.0;
  const DoubleVec clamped = x < low ? low : (x > high ? high : x);
  DoubleVec power, rest;
  exp_parts(clamped, power, rest);
  const DoubleVec result = power + power * rest;
  return x < low ? DoubleVec{} : (x > high ? result * __DBL_MAX__ : result);
}

// by e^(-2|x|) - 1, which keeps the digits of a small x
NOPROP_INLINE DoubleVec tanh(DoubleVec x) {
  const DoubleVec most = DoubleVec{} + 20.0, size = absolute(x);  // beyond, it rounds to 1
  DoubleVec power, rest;
  exp_parts((size > most ? most : size) * -2.0, power, rest);
  const DoubleVec less_one = (power - 1.0) + power * rest;
  const DoubleVec found = -less_one / (less_one + 2.0);
  return (DoubleVec)((LongVec)found | ((LongVec)x & INT64_MIN));
}

// ln(x) of a normal x > 0: fdlibm's e_log.c (Sun Microsystems, 1993)
NOPROP_INLINE DoubleVec log(DoubleVec x) {
  const LongVec bits = (LongVec)x;
  LongVec exponent = (LongVec)((WideVec)bits >> 52) - 1023;
  DoubleVec m = (DoubleVec)((bits & INT64_C(0xfffffffffffff)) | INT64_C(0x3ff0000000000000));
  const LongVec upper = m > DoubleVec{} + 0x1.6a09e667f3bcdp0;
  m = upper ? m * 0.5 : m;
  exponent -= upper;  // a true lane is -1
  const DoubleVec shift = DoubleVec{} + kToInteger;
  const DoubleVec e = (DoubleVec)((LongVec)shift + exponent) - shift;
  const DoubleVec f = m - 1.0, s = f / (f + 2.0), z = s * s, half = f * f * 0.5;
  DoubleVec p = z * 0x1.2f112df3e5244p-3 + 0x1.39a09d078c69fp-3;
  p = p * z + 0x1.7466496cb03dep-3;
  p = p * z + 0x1.c71c51d8e78afp-3;
  p = p * z + 0x1.2492494229359p-2;
  p = p * z + 0x1.999999997fa04p-2;
  p = p * z + 0x1.5555555555593p-1;
  return e * kLn2High - ((half - (s * (half + p * z) + e * kLn2Low)) - f);
}

// ln(1 + x), x in [0, 2^1000]: the logarithm of the sum, and what its rounding lost
NOPROP_INLINE DoubleVec log1p(DoubleVec x) {
  const DoubleVec sum = x + 1.0, added = sum - 1.0;
  const DoubleVec lost = (1.0 - (sum - added)) + (x - added);
  return log(sum) + lost / sum;
}

// ln(1 + e^x), and above 20 x, as PyTorch has it
NOPROP_INLINE DoubleVec softplus(DoubleVec x) {
  const DoubleVec most = DoubleVec{} + 20.0;
  return x > most ? x : log1p(exp(x > most ? most : x));
}

// 1 / (1 + e^-x) by e^-|x|
NOPROP_INLINE DoubleVec sigmoid(DoubleVec x) {
  const DoubleVec e = exp(-absolute(x));
  return (x < DoubleVec{} ? e : DoubleVec{} + 1.0) / (e + 1.0);
}

NOPROP_INLINE DoubleVec softplus_gradient(DoubleVec x) {
  return x > DoubleVec{} + 20.0 ? DoubleVec{} + 1.0 : sigmoid(x);
}

// of one number
NOPROP_INLINE double softplus_of(float x) { return softplus(DoubleVec{} + (double)x)[0]; }

}  // namespace
}  // namespace noprop
