// What a warp does as one: shuffles, matrix products and ldmatrix, by the last lane for all.
#include <math.h>

#include "host_state.h"

namespace hc {

namespace {

struct ShuffleLane {
  uint32_t value, result;
  int mask;
};

struct ProductLane {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

struct RowLane {
  uint32_t* registers;
  uint32_t row[4];
  int matrices;
  bool transposed;
};

template <typename Lane>
Lane& lane_of(Warp& warp, int lane) {
  return *static_cast<Lane*>(warp.lane[lane]);
}

void together(void* arguments, void (*all)(Warp&), const char* what, Site site) {
  Fiber& fiber = *running();
  fiber.warp->lane[fiber.number % kWarp] = arguments;
  meet(fiber.warp->meeting, State::kWarp, what, site, false, all);
}

void shuffle_all(Warp& warp) {
  for (int lane = 0; lane < kWarp; ++lane) {
    auto& own = lane_of<ShuffleLane>(warp, lane);
    const int from = lane ^ own.mask;
    if (from < 0 || from >= kWarp) fail("shuffle: lane %d takes from lane %d", lane, from);
    own.result = lane_of<ShuffleLane>(warp, from).value;
  }
}

float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// products are exact in float; sums are rounded one by one, k ascending
void multiply_bf16(Warp& warp) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& own = lane_of<ProductLane>(warp, lane);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto part = [half](uint32_t pair) {
        return as_float(half ? pair & 0xFFFF0000 : pair << 16);
      };
      for (int i = 0; i < 4; ++i) a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + half] = part(own.a[i]);
      for (int i = 0; i < 2; ++i) b[2 * t + 8 * i + half][g] = part(own.b[i]);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
      float& sum = lane_of<ProductLane>(warp, lane).d[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
    }
  }
}

void multiply_tf32(Warp& warp) {
  constexpr uint32_t kUsed = 0xFFFFE000;
  float a[16][8], b[8][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& own = lane_of<ProductLane>(warp, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + 8 * (i & 1)][t + 4 * (i >> 1)] = as_float(own.a[i] & kUsed);
    for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = as_float(own.b[i] & kUsed);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
      float& sum = lane_of<ProductLane>(warp, lane).d[i];
      for (int k = 0; k < 8; ++k) sum += a[row][k] * b[k][column];
    }
  }
}

void spread_all(Warp& warp) {
  for (int lane = 0; lane < kWarp; ++lane) {
    auto& own = lane_of<RowLane>(warp, lane);
    for (int m = 0; m < own.matrices; ++m) {
      const auto value = [&](int row, int column) {
        const uint32_t word = lane_of<RowLane>(warp, 8 * m + row).row[column / 2];
        return column % 2 ? word >> 16 : word & 0xFFFF;
      };
      const int g = lane / 4, t = 2 * (lane % 4);
      own.registers[m] = own.transposed ? value(t, g) | value(t + 1, g) << 16
                                        : value(g, t) | value(g, t + 1) << 16;
    }
  }
}

}  // namespace

uint32_t shuffle_bits(uint32_t value, int mask, Site site) {
  ShuffleLane lane = {value, 0, mask};
  together(&lane, shuffle_all, "shuffle", site);
  return lane.result;
}

void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  ProductLane lane = {d, a, b};
  together(&lane, multiply_bf16, "mma_bf16", site);
}

void mma_tf32(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  ProductLane lane = {d, a, b};
  together(&lane, multiply_tf32, "mma_tf32", site);
}

void spread_rows(uint32_t* registers, int matrices, bool transposed, const uint32_t (&row)[4],
                 Site site) {
  RowLane lane = {registers, {row[0], row[1], row[2], row[3]}, matrices, transposed};
  together(&lane, spread_all, "ldmatrix", site);
}

void sincos_pi(float x, float& sine, float& cosine) {
  const double halves = rint(2.0 * x), rest = (x - halves / 2) * 3.14159265358979323846;
  const double s = sin(rest), c = cos(rest);
  const int quadrant = static_cast<int>(fmod(halves, 4.0) + 4.0) % 4;
  const double sines[4] = {s, c, -s, -c};
  sine = static_cast<float>(sines[quadrant]);
  cosine = static_cast<float>(sines[(quadrant + 1) % 4]);
}

}  // namespace hc
