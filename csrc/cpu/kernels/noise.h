// Normal noise as a function of (seed, stream, draw, block, row, column): Philox4x32-10 (Salmon et
// al. 2011) and Box-Muller. A lane is a row; one counter gives four columns.
#pragma once

#include "cpu/kernels/panels.h"

namespace noprop {
namespace {

struct NoiseKey {
  uint64_t seed;
  uint32_t place;  // block | stream << 16 | site << 24
  uint32_t draw;
  uint32_t first_row;
};

// the products of the even lanes, whole
NOPROP_INLINE WideVec multiply_even(WideVec a, uint32_t b) {
#if defined(__AVX512F__)
  return (WideVec)_mm512_maskz_mul_epu32((__mmask8)-1, (__m512i)a, _mm512_set1_epi32((int)b));
#elif defined(__AVX2__)
  return (WideVec)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi32((int)b));
#elif defined(__SSE2__)
  return (WideVec)_mm_mul_epu32((__m128i)a, _mm_set1_epi32((int)b));
#else
  return (a & 0xffffffff) * (uint64_t)b;
#endif
}

NOPROP_INLINE void multiply_wide(UintVec a, uint32_t b, UintVec& high, UintVec& low) {
  const WideVec even = multiply_even((WideVec)a, b), odd = multiply_even((WideVec)a >> 32, b);
#if NOPROP_LANES == 8
  // the blends of which GCC makes one instruction
  high = __builtin_shufflevector((UintVec)(even >> 32), (UintVec)odd, 0, 9, 2, 11, 4, 13, 6, 15);
  low = __builtin_shufflevector((UintVec)even, (UintVec)(odd << 32), 0, 9, 2, 11, 4, 13, 6, 15);
#elif defined(__AVX512F__)
  constexpr __mmask16 kEven = 0x5555, kOdd = 0xaaaa;
  const __m512i e = (__m512i)even, o = (__m512i)odd;
  high = (UintVec)_mm512_mask_shuffle_epi32(o, kEven, e, _MM_PERM_CDAB);
  low = (UintVec)_mm512_mask_shuffle_epi32(e, kOdd, o, _MM_PERM_CDAB);
#else
  constexpr uint64_t kLow = 0xffffffff;
  high = (UintVec)(even >> 32 | (odd & ~kLow));
  low = (UintVec)((even & kLow) | odd << 32);
#endif
}

constexpr uint32_t kPhiloxFactor0 = 0xD2511F53u, kPhiloxFactor1 = 0xCD9E8D57u;
constexpr int kPhiloxRounds = 10;

struct PhiloxKey {
  uint32_t first, second;

  NOPROP_INLINE PhiloxKey(uint64_t seed, uint32_t round)
      : first((uint32_t)seed + round * 0x9E3779B9u),
        second((uint32_t)(seed >> 32) + round * 0xBB67AE85u) {}
};

// the rounds from `round` on
NOPROP_INLINE void philox(UintVec (&c)[4], uint64_t seed, int round = 0) {
  for (; round < kPhiloxRounds; ++round) {
    const PhiloxKey key(seed, (uint32_t)round);
    UintVec high0, low0, high1, low1;
    multiply_wide(c[0], kPhiloxFactor0, high0, low0);
    multiply_wide(c[2], kPhiloxFactor1, high1, low1);
    c[0] = high1 ^ c[1] ^ key.first;
    c[2] = high0 ^ c[3] ^ key.second;
    c[1] = low1;
    c[3] = low0;
  }
}

// Philox of a vector of rows, whose counters have all words but the row in common, at one column
// after another. What the first two rounds make of the rows is the same for all columns, and the
// rest of these rounds is the same for all rows.
struct RowsPhilox {
  uint64_t seed;
  uint32_t place_high, place_low, draw;
  UintVec high, low;

  NOPROP_INLINE RowsPhilox(UintVec row, uint32_t place, uint32_t draw, uint64_t seed)
      : seed(seed), draw(draw) {
    const uint64_t product = (uint64_t)place * kPhiloxFactor1;
    place_high = (uint32_t)(product >> 32);
    place_low = (uint32_t)product;
    multiply_wide(row ^ (place_high ^ PhiloxKey(seed, 0).first), kPhiloxFactor0, high, low);
  }

  NOPROP_INLINE void words(UintVec (&c)[4], uint32_t column) const {
    const PhiloxKey key0(seed, 0), key1(seed, 1), key2(seed, 2);
    const uint64_t first = (uint64_t)column * kPhiloxFactor0;
    const uint64_t second =
        (uint64_t)((uint32_t)(first >> 32) ^ draw ^ key0.second) * kPhiloxFactor1;
    const uint64_t third =
        (uint64_t)((uint32_t)(second >> 32) ^ place_low ^ key1.first) * kPhiloxFactor0;
    UintVec high1, low1;
    multiply_wide(high ^ ((uint32_t)first ^ key1.second), kPhiloxFactor1, high1, low1);
    c[0] = high1 ^ ((uint32_t)second ^ key2.first);
    c[1] = low1;
    c[2] = low ^ ((uint32_t)(third >> 32) ^ key2.second);
    c[3] = UintVec{} + (uint32_t)third;
    philox(c, seed, 3);
  }
};

// two normals from two words: sqrt(-2 ln u) {cos, sin}(2 pi v)
NOPROP_INLINE void box_muller(UintVec r0, UintVec r1, Vec& first, Vec& second) {
  const float unit = 1.0f / (1 << 24);
  const Vec u = __builtin_convertvector((IntVec)(r0 >> 8) + 1, Vec) * unit;  // in (0, 1]
  const Vec v = __builtin_convertvector((IntVec)(r1 >> 8), Vec) * unit;
  const Vec squared = log(u) * -2.0f;
  const Vec radius = sqrt(squared < Vec{} ? Vec{} : squared);
  Vec cosine, sine;
  cos_sin_turns(v, cosine, sine);
  first = radius * cosine;
  second = radius * sine;
}

// standard normals to panels (D, P); missing rows are zero
inline void draw_normal(float* values, const NoiseKey& key, int64_t D, const Panels& panels) {
  for (int64_t g = 0; g < panels.vectors(); ++g) {
    const UintVec row = (UintVec)lane_numbers() + (key.first_row + (uint32_t)(g * kLanes));
    for (int64_t column = 0; column < D; column += 4) {
      UintVec c[4] = {UintVec{} + (uint32_t)(column / 4), row, UintVec{} + key.place,
                      UintVec{} + key.draw};
      philox(c, key.seed);
      const auto put = [&](int64_t first, UintVec r0, UintVec r1) {
        Vec normal[2];
        box_muller(r0, r1, normal[0], normal[1]);
        for (int64_t i = 0; i < 2 && first + i < D; ++i)
          store(values + panels.at(D, first + i, g), keep_first(normal[i], panels.B - g * kLanes));
      };
      put(column, c[0], c[1]);
      if (column + 2 < D) put(column + 2, c[2], c[3]);
    }
  }
}

}  // namespace
}  // namespace noprop
