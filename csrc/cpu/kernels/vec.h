// Vectors of the widest register that this unit is compiled for, in GCC's and Clang's vector
// extensions. No standard header with code in it here: an inline function compiled for AVX-512
// could be the copy the linker keeps.
#pragma once

#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>  // always inlined: leaves no copy behind
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define NOPROP_LANES 16
#elif defined(__AVX2__)
#define NOPROP_LANES 8
#else
#define NOPROP_LANES 4
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define NOPROP_REGISTERS 32
#else
#define NOPROP_REGISTERS 16
#endif
#define NOPROP_INLINE inline __attribute__((always_inline))

namespace noprop {
namespace {

constexpr int kLanes = NOPROP_LANES;

typedef float Vec __attribute__((vector_size(4 * NOPROP_LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * NOPROP_LANES), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * NOPROP_LANES)));
typedef uint32_t UintVec __attribute__((vector_size(4 * NOPROP_LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * NOPROP_LANES)));
typedef uint8_t ByteVec __attribute__((vector_size(NOPROP_LANES)));
typedef uint64_t WideVec __attribute__((vector_size(4 * NOPROP_LANES)));  // half as many lanes

NOPROP_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
NOPROP_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
NOPROP_INLINE Vec broadcast(float x) { return x - Vec{}; }  // x - 0 is x, the sign of zero included

// calls body(i) for the first `count` of a square's vectors. Unrolled, or the square would not stay
// in registers.
template <class Body>
NOPROP_INLINE void for_first(int64_t count, Body body) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (i < count) body(i);
}

// lane numbers 0, 1, 2, ...
NOPROP_INLINE IntVec lane_numbers() {
  IntVec v = {};
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// the first `count` (1..kLanes) lanes, the others zero
NOPROP_INLINE Vec load_partial(const float* p, int count) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
#elif defined(__AVX2__)
  return (Vec)_mm256_maskload_ps(p, (__m256i)(lane_numbers() < count));
#else
  Vec v = {};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

NOPROP_INLINE void store_partial(float* p, Vec v, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
#else
  for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
}

NOPROP_INLINE void copy_run(float* out, const float* in, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(in + i));
  if (i < count) store_partial(out + i, load_partial(in + i, (int)(count - i)), (int)(count - i));
}

// to bfloat16 and back: to nearest, ties to even; NaN stays NaN
NOPROP_INLINE Vec round_bfloat16(Vec x) {
  const UintVec bits = (UintVec)x;
  const UintVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
  return x == x ? (Vec)rounded : x;
}

inline void round_run(float* out, const float* in, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, round_bfloat16(load(in + i)));
  const int rest = (int)(count - i);
  if (rest) store_partial(out + i, round_bfloat16(load_partial(in + i, rest)), rest);
}

// Two bfloat16 in each lane, for processors that multiply them in pairs: the even term of a sum in
// the lower half, the odd one in the upper.
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;

// c + the odd terms' product, then + the even terms', each rounded once
NOPROP_INLINE Vec add_pairs(Vec c, Vec a, Vec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}

NOPROP_INLINE Vec broadcast_bits(const float* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return (Vec)_mm512_set1_epi32(bits);
}

// lanes (even[0], odd[0]), (even[1], odd[1]), ...
NOPROP_INLINE Vec zip_pairs(Vec even, Vec odd) {
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const IntVec place = (16 << 16) + lane_numbers() * 0x10001;
  return (Vec)_mm512_permutexvar_epi16((__m512i)place, (__m512i)both);
}

// converts `count` floats to half as many pairs of neighbours; a last one alone is paired with 0
inline void pair_run(float* out, const float* in, int64_t count) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes)
    store(out + i / 2,
          (Vec)_mm512_cvtne2ps_pbh((__m512)load(in + i + kLanes), (__m512)load(in + i)));
  const int rest = (int)(count - i);
  if (rest == 0) return;
  const Vec low = load_partial(in + i, rest < kLanes ? rest : kLanes);
  const Vec high = rest > kLanes ? load_partial(in + i + kLanes, rest - kLanes) : Vec{};
  store_partial(out + i / 2, (Vec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low), (rest + 1) / 2);
}
#else
constexpr bool kHasPairs = false;  // in float32 they would take more work than unpaired ones

NOPROP_INLINE Vec even_terms(Vec pairs) { return (Vec)((UintVec)pairs << 16); }
NOPROP_INLINE Vec odd_terms(Vec pairs) { return (Vec)((UintVec)pairs & 0xffff0000); }
NOPROP_INLINE Vec add_pairs(Vec c, Vec a, Vec b) {
  return c + odd_terms(a) * odd_terms(b) + even_terms(a) * even_terms(b);
}
NOPROP_INLINE Vec broadcast_bits(const float* p) { return broadcast(*p); }
NOPROP_INLINE Vec zip_pairs(Vec even, Vec odd) {
  return (Vec)((UintVec)round_bfloat16(odd) | (UintVec)round_bfloat16(even) >> 16);
}
inline void pair_run(float* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i += 2) {
    const Vec pair = zip_pairs(broadcast(in[i]), i + 1 < count ? broadcast(in[i + 1]) : Vec{});
    __builtin_memcpy(out + i / 2, &pair, sizeof *out);
  }
}
#endif

// v where lane < count, else 0
NOPROP_INLINE Vec keep_first(Vec v, int64_t count) {
  if (count >= kLanes) return v;
  return lane_numbers() < (int32_t)count ? v : Vec{};
}

NOPROP_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

// 0 below 0, NaN stays NaN
NOPROP_INLINE Vec relu(Vec x) { return x < Vec{} ? Vec{} : x; }

NOPROP_INLINE Vec sqrt(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_sqrt_ps((__mmask16)-1, (__m512)x);  // GCC 12 warns of the unmasked one
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (Vec)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
  return (Vec)vsqrtq_f32((float32x4_t)x);
#else
  Vec r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(x[i]);
  return r;
#endif
}

// numerator / (sqrt(v) * scale + eps), v >= 0, eps > 0. With AVX-512 from the 14-bit estimates of
// the root and of the reciprocal and one Newton step each, since the divider would be the update's
// bottleneck. That leaves 2^-28 beside the final rounding, but 14 bits of a root below 1e-16, which
// is far below eps; an infinite v counts as the largest number.
NOPROP_INLINE Vec divide_by_root(Vec numerator, Vec v, float scale, float eps) {
#if defined(__AVX512F__)
  const Vec largest = broadcast(__FLT_MAX__);
  v = v < largest ? v : largest;
  // a v of 0 has an estimate of 0 and so a root of 0
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(__FLT_MIN__), _CMP_GE_OQ);
  const Vec estimate = (Vec)_mm512_maskz_rsqrt14_ps(above, (__m512)v);
  const Vec rough = v * estimate;
  const Vec root = (v - rough * rough) * (estimate * 0.5f) + rough;
  const Vec d = root * scale + eps;
  const Vec reciprocal = (Vec)_mm512_maskz_rcp14_ps((__mmask16)-1, (__m512)d);
  const Vec q = numerator * reciprocal;
  return (numerator - q * d) * reciprocal + q;
#else
  return numerator / (sqrt(v) * scale + eps);
#endif
}

// sum of the lanes, in halves: the order is fixed by kLanes
NOPROP_INLINE float sum_lanes(Vec v) {
  float part[kLanes];
  __builtin_memcpy(part, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}

// PAIR_LOW (PAIR_HIGH) interleaves the elements of the first (last) halves of each 128 bits of two
// vectors; HALF_LOW (HALF_HIGH) joins these halves.
#if NOPROP_LANES == 16
#define NOPROP_PAIR_LOW(a, b) \
  __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define NOPROP_PAIR_HIGH(a, b) \
  __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define NOPROP_HALF_LOW(a, b) \
  __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define NOPROP_HALF_HIGH(a, b) \
  __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#elif NOPROP_LANES == 8
#define NOPROP_PAIR_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define NOPROP_PAIR_HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define NOPROP_HALF_LOW(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define NOPROP_HALF_HIGH(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#else
#define NOPROP_PAIR_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define NOPROP_PAIR_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define NOPROP_HALF_LOW(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define NOPROP_HALF_HIGH(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#endif

// the transposes of the 4 x 4 squares in each 128 bits of four vectors
NOPROP_INLINE void transpose_quarters(Vec* out, const Vec* rows) {
  const Vec low = NOPROP_PAIR_LOW(rows[0], rows[1]), high = NOPROP_PAIR_HIGH(rows[0], rows[1]);
  const Vec low_2 = NOPROP_PAIR_LOW(rows[2], rows[3]), high_2 = NOPROP_PAIR_HIGH(rows[2], rows[3]);
  out[0] = NOPROP_HALF_LOW(low, low_2);
  out[1] = NOPROP_HALF_HIGH(low, low_2);
  out[2] = NOPROP_HALF_LOW(high, high_2);
  out[3] = NOPROP_HALF_HIGH(high, high_2);
}

// transpose of a kLanes x kLanes square: of its 4 x 4 squares, and then of what these are in it
NOPROP_INLINE void transpose(Vec (&rows)[kLanes]) {
  Vec quarters[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) transpose_quarters(quarters + i, rows + i);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#if NOPROP_LANES == 16
    const Vec a = quarters[i], b = quarters[4 + i], c = quarters[8 + i], d = quarters[12 + i];
#define NOPROP_JOIN(x, y, p, q)                                                                 \
  __builtin_shufflevector(x, y, 4 * p, 4 * p + 1, 4 * p + 2, 4 * p + 3, 4 * q, 4 * q + 1,       \
                          4 * q + 2, 4 * q + 3, 4 * p + 16, 4 * p + 17, 4 * p + 18, 4 * p + 19, \
                          4 * q + 16, 4 * q + 17, 4 * q + 18, 4 * q + 19)
    const Vec low = NOPROP_JOIN(a, b, 0, 1), high = NOPROP_JOIN(a, b, 2, 3);
    const Vec low_2 = NOPROP_JOIN(c, d, 0, 1), high_2 = NOPROP_JOIN(c, d, 2, 3);
    rows[i] = NOPROP_JOIN(low, low_2, 0, 2);
    rows[4 + i] = NOPROP_JOIN(low, low_2, 1, 3);
    rows[8 + i] = NOPROP_JOIN(high, high_2, 0, 2);
    rows[12 + i] = NOPROP_JOIN(high, high_2, 1, 3);
#elif NOPROP_LANES == 8
    const Vec a = quarters[i], b = quarters[4 + i];
    rows[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    rows[4 + i] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
#else
    rows[i] = quarters[i];
#endif
  }
}

// exp(x), error below 2 ulp; 0 below -87.3, NaN stays NaN. The coefficients are Taylor's, enough on
// |r| <= ln(2) / 2.
NOPROP_INLINE Vec exp(Vec x) {
  const Vec low = broadcast(-87.3f), high = broadcast(88.3f);
  const Vec clamped = x < low ? low : (x > high ? high : x);
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (clamped * 1.44269504f + magic) - magic;
  const Vec r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  Vec p = broadcast(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.0f;
  const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
  const Vec result = p * (Vec)power;
  return x < low ? Vec{} : result;
}

// ln(x) for normal x > 0, error below 2 ulp: x = m 2^e with m in [sqrt(1/2), sqrt(2)), and
// ln m = 2 atanh(s), s = (m - 1) / (m + 1), the series cut where its terms fall below 2^-25
NOPROP_INLINE Vec log(Vec x) {
  const IntVec bits = (IntVec)x;
  IntVec exponent = (bits >> 23) - 127;
  Vec m = (Vec)((bits & 0x007fffff) | 0x3f800000);
  const IntVec upper = m > broadcast(1.41421356f);
  m = upper ? m * 0.5f : m;
  exponent -= upper;  // a true lane is -1
  const Vec f = m - 1.0f;
  const Vec s = f / (m + 1.0f);
  const Vec s2 = s * s;
  Vec p = broadcast(2.0f / 9);
  p = p * s2 + 2.0f / 7;
  p = p * s2 + 2.0f / 5;
  p = p * s2 + 2.0f / 3;
  // 2 s = f - s f exactly, so that a small f keeps its full precision
  const Vec ln_m = f - s * (f - s2 * p);
  const Vec e = __builtin_convertvector(exponent, Vec);
  return e * 0.693359375f + (ln_m + e * -2.12194440e-4f);
}

// cos and sin of 2 pi v for v = k 2^-24 in [0, 1): the quadrant and what remains of it are exact
NOPROP_INLINE void cos_sin_turns(Vec v, Vec& cosine, Vec& sine) {
  const Vec magic = broadcast(12582912.0f);
  const Vec quarter = v * 4.0f;
  const Vec n = (quarter + magic) - magic;
  const Vec r = quarter - n;  // in [-1/2, 1/2], in quarter turns
  const Vec r2 = r * r;
  // Taylor's coefficients of sin(pi/2 r) and cos(pi/2 r)
  Vec s = broadcast(1.6044118e-4f);
  s = s * r2 - 4.6817541e-3f;
  s = s * r2 + 7.9692626e-2f;
  s = s * r2 - 6.4596409e-1f;
  s = s * r2 + 1.5707963f;
  s = s * r;
  Vec c = broadcast(-2.5202042e-5f);
  c = c * r2 + 9.1926028e-4f;
  c = c * r2 - 2.0863481e-2f;
  c = c * r2 + 2.5366951e-1f;
  c = c * r2 - 1.2337006f;
  c = c * r2 + 1.0f;
  const IntVec quadrant = __builtin_convertvector(n, IntVec) & 3;
  const IntVec odd = (quadrant & 1) != 0;
  const Vec a = odd ? s : c, b = odd ? c : s;
  cosine = ((quadrant == 1) | (quadrant == 2)) ? -a : a;
  sine = quadrant >= 2 ? -b : b;
}

}  // namespace
}  // namespace noprop
