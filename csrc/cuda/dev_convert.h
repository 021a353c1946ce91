// Conversions and arithmetic with one rounding of a stated kind, the same on device and host.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/dev_target.h"

namespace noprop::dev {

NOPROP_DEV float bits_to_float(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

NOPROP_DEV uint32_t float_to_bits(float value) {
#ifdef __CUDACC__
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(uint32_t, value);
#endif
}

// bfloat16 is kept as its 16 bits; rounding is to nearest, ties to even, and any NaN becomes 0x7FFF
NOPROP_DEV float from_bf16(uint16_t value) { return bits_to_float(uint32_t{value} << 16); }

NOPROP_DEV uint16_t to_bf16(float value) {
#ifdef __CUDACC__
  uint16_t rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  return rounded;
#else
  const uint32_t bits = float_to_bits(value);
  if (value != value) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
#endif
}

// two bfloat16 in a register
NOPROP_DEV uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return uint32_t{to_bf16(low)} | uint32_t{to_bf16(high)} << 16;
#endif
}

// float to tf32, the bits of a float: rounded to 10 bits, ties away from zero
NOPROP_DEV uint32_t to_tf32(float value) {
#ifdef __CUDACC__
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
#else
  if (value != value) return 0x7FFFFFFF;
  const uint32_t bits = float_to_bits(value);
  const bool finite = (bits & 0x7F800000) != 0x7F800000;
  return (finite ? bits + 0x1000 : bits) & ~uint32_t{0x1FFF};
#endif
}

// a b + c rounded once; a product and a sum as such may or may not be contracted by the compiler
NOPROP_DEV float fma_rn(float a, float b, float c) {
#ifdef __CUDACC__
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

NOPROP_DEV float sqrt_rn(float x) {
#ifdef __CUDACC__
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

NOPROP_DEV float div_rn(float a, float b) {
#ifdef __CUDACC__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

// 1 / x and 1 / sqrt(x), except for the last bits; the host's twins get one of them wrong too
NOPROP_DEV float rcp_approx(float x) {
#ifdef __CUDACC__
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return hc::last_bit_wrong(1.0f / x);
#endif
}

NOPROP_DEV float rsqrt_approx(float x) {
#ifdef __CUDACC__
  float r;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return hc::last_bit_wrong(1.0f / __builtin_sqrtf(x));
#endif
}

// sine and cosine of pi x, exact at multiples of 1/2
NOPROP_DEV void sincos_pi(float x, float& sine, float& cosine) {
#ifdef __CUDACC__
  sincospif(x, &sine, &cosine);
#else
  hc::sincos_pi(x, sine, cosine);
#endif
}

// the high 32 bits of a b
NOPROP_DEV uint32_t mul_hi(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
#endif
}

}  // namespace noprop::dev
