// Fragments, ldmatrix, shuffles, conversions and arithmetic against plain loops, for seeds 0 to 3.
// Prints a line for each mismatch, and as the last one the number of values compared.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "layout_kernels.h"

namespace {

int compared = 0, wrong = 0;
std::mt19937 numbers(7);

template <typename T>
void expect(const char* what, int at, T got, T want) {
  ++compared;
  if (std::memcmp(&got, &want, sizeof(T)) == 0) return;
  if (++wrong <= 20)
    std::printf("%s[%d]: %.9g, must be %.9g\n", what, at, double(got), double(want));
}

template <typename... P, typename... A>
void launch(const char* name, uint64_t seed, void (*kernel)(P...), A... args) {
  if (hc::launch(name, kernel, 1, 32, 2048, {.seed = seed}, args...) != 0) {
    ++wrong;
    std::printf("%s\n", hc::last_error());
  }
}

// whole numbers, so that products and sums are exact in every order
std::vector<float> draw(int count) {
  std::vector<float> values(count);
  for (float& value : values) value = float(int(numbers() % 15) - 7);
  return values;
}

uint32_t bits(float value) { return __builtin_bit_cast(uint32_t, value); }

std::vector<float> product(const std::vector<float>& a, const std::vector<float>& b, int K) {
  std::vector<float> d(16 * 8);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < K; ++k) d[i * 8 + j] += a[i * K + k] * b[k * 8 + j];
  return d;
}

// The places of elements a0.. b0.. c0.. as the PTX ISA words them for m16n8k16 and m16n8k8; for
// bfloat16, element i is half i % 2 of register i / 2.
struct Place {
  int row, column;
};

Place place_of_a(bool bf16, int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  if (!bf16) return {i == 0 || i == 2 ? group : group + 8, i < 2 ? in_group : in_group + 4};
  const bool upper = i < 2 || (i >= 4 && i < 6);
  return {upper ? group : group + 8, in_group * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}

Place place_of_b(bool bf16, int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  if (!bf16) return {i == 0 ? in_group : in_group + 4, group};
  return {in_group * 2 + (i & 1) + (i < 2 ? 0 : 8), group};
}

Place place_of_d(int lane, int i) {
  return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)};
}

void test_registers(bool bf16, uint64_t seed) {
  const int K = bf16 ? 16 : 8, each = bf16 ? 2 : 1;  // elements of a register
  const auto a = draw(16 * K), b = draw(K * 8), c = draw(16 * 8);
  std::vector<uint32_t> register_a(32 * 4), register_b(32 * 2);
  std::vector<float> register_d(32 * 4);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4 * each; ++i) {
      const Place at = place_of_a(bf16, lane, i);
      const uint32_t value = bits(a[at.row * K + at.column]);
      register_a[4 * lane + i / each] |= bf16 ? value >> 16 << 16 * (i % 2) : value | 0x1FFF;
    }
    for (int i = 0; i < 2 * each; ++i) {
      const Place at = place_of_b(bf16, lane, i);
      const uint32_t value = bits(b[at.row * 8 + at.column]);
      register_b[2 * lane + i / each] |= bf16 ? value >> 16 << 16 * (i % 2) : value | 0x1FFF;
    }
    for (int i = 0; i < 4; ++i) {
      const Place at = place_of_d(lane, i);
      register_d[4 * lane + i] = c[at.row * 8 + at.column];
    }
  }
  if (bf16) {
    launch("mma_bf16", seed, layouts::multiply_registers<true>, register_d.data(),
           register_a.data(), register_b.data());
  } else {  // the low 13 bits, set above, must not count
    launch("mma_tf32", seed, layouts::multiply_registers<false>, register_d.data(),
           register_a.data(), register_b.data());
  }
  const auto d = product(a, b, K);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Place at = place_of_d(lane, i);
      const int from = at.row * 8 + at.column;
      expect(bf16 ? "mma_bf16" : "mma_tf32", from, register_d[4 * lane + i], c[from] + d[from]);
    }
  }
}

template <int N, bool Trans>
void test_matrices(uint64_t seed) {
  std::vector<uint16_t> matrices(N * 64);
  for (int i = 0; i < N * 64; ++i) matrices[i] = uint16_t(1000 + i);
  std::vector<uint32_t> registers(32 * N);
  launch("ldmatrix", seed, layouts::load_matrices<N, Trans>, registers.data(), matrices.data());
  for (int m = 0; m < N; ++m) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        // PTX ISA: row r of the (transposed) matrix lies in lanes 4 r to 4 r + 3, two values each
        const int lane = 4 * row + column / 2, half = column % 2;
        const uint32_t got = registers[N * lane + m] >> 16 * half & 0xFFFF;
        const int from = Trans ? column * 8 + row : row * 8 + column;
        expect("ldmatrix", m * 64 + from, got, uint32_t{matrices[m * 64 + from]});
      }
    }
  }
}

void test_tiles(uint64_t seed) {
  const auto a = draw(16 * 16), b = draw(16 * 8);
  std::vector<float> columns(8 * 16), d(16 * 8);
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < 8; ++j) columns[j * 16 + k] = b[k * 8 + j];
  const auto want = product(a, b, 16);
  launch("rows", seed, layouts::multiply_tiles<false>, d.data(), a.data(), b.data());
  for (int i = 0; i < 128; ++i) expect("rows", i, d[i], want[i]);
  launch("columns", seed, layouts::multiply_tiles<true>, d.data(), a.data(), columns.data());
  for (int i = 0; i < 128; ++i) expect("columns", i, d[i], want[i]);
}

void test_shuffles(uint64_t seed) {
  const auto in = draw(32);
  std::vector<float> out(2 * 32);
  launch("shuffle", seed, layouts::shuffle_all, out.data(), in.data());
  for (int lane = 0; lane < 32; ++lane) {
    expect("shfl_xor", lane, out[lane], in[lane ^ 5]);
    expect("shfl_xor int", lane, out[32 + lane], float(-(lane ^ 16)));
  }
}

// The nearest of the numbers whose low `cut` bits are zero, by distance in double. Of two as near
// the even one, or the one further from zero.
float round_plainly(float value, int cut, bool even) {
  const uint32_t unit = 1u << cut, below = bits(value) & ~(unit - 1), above = below + unit;
  const auto number = [](uint32_t b) {  // infinity counts as the power of two that it stands for
    const float f = __builtin_bit_cast(float, b);
    return std::isinf(f) ? std::copysign(std::ldexp(1.0, 128), f) : double(f);
  };
  const double down = std::abs(double(value) - number(below));
  const double up = std::abs(double(value) - number(above));
  const bool tie_up = even ? (below >> cut & 1) != 0 : true;
  return __builtin_bit_cast(float, up < down || (up == down && tie_up) ? above : below);
}

void test_conversions() {
  namespace dev = noprop::dev;
  for (uint32_t high = 0; high < 0x10000; ++high) {
    for (const uint32_t low :
         {0u, 1u, 0x0FFFu, 0x1000u, 0x1001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      const float value = __builtin_bit_cast(float, high << 16 | low);
      if (std::isnan(value)) {
        expect("NaN to bf16", int(high), dev::to_bf16(value), uint16_t{0x7FFF});
        expect("NaN to tf32", int(high), dev::to_tf32(value), uint32_t{0x7FFFFFFF});
        continue;
      }
      const bool infinite = std::isinf(value);
      expect("to_bf16", int(high), dev::from_bf16(dev::to_bf16(value)),
             infinite ? value : round_plainly(value, 16, true));
      expect("to_tf32", int(high), __builtin_bit_cast(float, dev::to_tf32(value)),
             infinite ? value : round_plainly(value, 13, false));
    }
  }
  expect("pack", 0, dev::pack_bf16(1.0f, -2.0f), 0xC0003F80u);
}

void test_arithmetic() {
  namespace dev = noprop::dev;
  expect("mul_hi", 0, dev::mul_hi(0xD2511F53u, 0xCD9E8D57u),
         uint32_t((unsigned __int128){0xD2511F53u} * 0xCD9E8D57u >> 32));
  const float tiny = 1.0f / (1 << 13);  // (1 + tiny) ** 2 - 1 - 2 tiny is lost without fusion
  expect("fma", 0, dev::fma_rn(1 + tiny, 1 + tiny, -1 - 2 * tiny), tiny * tiny);
  expect("sqrt", 0, dev::sqrt_rn(2.0f), float(std::sqrt(2.0)));
  expect("div", 0, dev::div_rn(1.0f, 3.0f), float(1.0 / 3.0));
  for (int i = -4096; i <= 4096; ++i) {
    const float x = float(i) / 1024;
    float sine, cosine;
    dev::sincos_pi(x, sine, cosine);
    const long double pi = 3.14159265358979323846264338327950288L;
    expect("sin", i, std::abs(sine - sinl(pi * x)) < 1e-7L, true);
    expect("cos", i, std::abs(cosine - cosl(pi * x)) < 1e-7L, true);
    if (i % 512 == 0) {  // exact
      const int quarter = i / 512 & 3;
      expect("exact sin", i, std::abs(sine), quarter % 2 ? 1.0f : 0.0f);
      expect("exact cos", i, std::abs(cosine), quarter % 2 ? 0.0f : 1.0f);
    }
  }
}

}  // namespace

int main() {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    test_registers(true, seed);
    test_registers(false, seed);
    test_matrices<2, false>(seed);
    test_matrices<2, true>(seed);
    test_matrices<4, false>(seed);
    test_matrices<4, true>(seed);
    test_tiles(seed);
    test_shuffles(seed);
  }
  test_conversions();
  test_arithmetic();
  std::printf("%d of %d wrong\n", wrong, compared);
  return wrong != 0;
}
