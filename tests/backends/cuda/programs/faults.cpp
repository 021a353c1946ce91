// A kernel that does what the real ones do, and faults in it, of which a run has one: blocks of a
// group pass their states on, through global memory, group barriers, double-buffered tiles,
// ldmatrix and mma, warp and block barriers. All values are whole numbers that bfloat16 holds, so
// that without a fault the result is exact and the same in every schedule.
//
// Usage: faults FAULT group|cluster SEED...; all blocks are one of either, and any other word is no
// fault. A line for each seed: the launch's error, or how many values are wrong.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "cuda/dev.h"

namespace {

namespace dev = noprop::dev;

constexpr int kBlocks = 3, kThreads = 64, kRounds = 3;
constexpr int kRows = 16, kDepth = 64, kStep = 16, kColumns = 16;  // x (16, 64) times w (64, 16)
constexpr int kStateSize = kRows * kDepth;

int shared_bytes() {
  using dev::Carve;
  return 2 * Carve::cost(kRows * kStep * 2) + 2 * Carve::cost(kStep * kColumns * 2) +
         Carve::cost(kRows * kColumns * 4) + Carve::cost(kRows * 2 * 4);
}

// whole numbers from -3 to 3
NOPROP_DEV float fold(float sum, int column) {
  const int whole = static_cast<int>(sum) + column;
  return static_cast<float>((whole % 7 + 7) % 7 - 3);
}

std::string_view planted;  // the fault
bool cluster = false;

NOPROP_DEV bool has(std::string_view fault) { return planted == fault; }

void barrier(uint32_t* counter, uint32_t blocks, uint32_t& epoch) {
  if (cluster) return dev::cluster_barrier();
  if (!has("RELAXED_RELEASE") && !has("RELAXED_ACQUIRE")) {
    return dev::group_barrier(counter, blocks, epoch);
  }
  ++epoch;
  dev::sync_block();
  if (threadIdx.x == 0) {
    if (has("RELAXED_RELEASE")) {
      __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
      hc::after_atomic();
      dev::wait_ge(counter, epoch * blocks, "barrier");
    } else {
      dev::red_release(counter, 1);
      while (__atomic_load_n(counter, __ATOMIC_RELAXED) < epoch * blocks) {
        hc::poll_wait(counter, epoch * blocks, "barrier", {__FILE__, __LINE__});
      }
    }
  }
  dev::sync_block();
}

struct Tiles {
  uint16_t* x[2];  // (16, 16), k ascending along a row
  uint16_t* w[2];  // (16, 16), a row for each k
  float* sums;     // (16, 16)
  float* halves;   // (16, 2): sums of half a row
};

// columns 16 step .. 16 step + 15 of x, rows 16 step .. of w
NOPROP_DEV void fetch(const Tiles& tiles, const uint16_t* x, const uint16_t* w, int step) {
  const int half = threadIdx.x % 2, row = threadIdx.x / 2 % 16;
  const uint16_t* from = w + (step * kStep + row) * kColumns;
  uint16_t* to = tiles.w[step % 2] + row * kColumns;
  if (threadIdx.x < 32) {
    from = x + row * kDepth + step * kStep;
    to = tiles.x[step % 2] + row * kStep;
  }
  for (int i = 8 * half; i < 8 * half + 8; ++i) to[i] = from[i];
}

// sums (16, 16) of this block, 8 columns for each of the two warps
NOPROP_DEV void multiply(const Tiles& tiles, const uint16_t* x, const uint16_t* w) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  constexpr int kSteps = kDepth / kStep;
  float d[4] = {};
  fetch(tiles, x, w, 0);
  for (int step = 0; step < kSteps; ++step) {
    // with the overrun, the last one is never used
    if (step + 1 < kSteps || has("GLOBAL_OVERRUN")) fetch(tiles, x, w, step + 1);
    if (!has("MISSING_BARRIER_AFTER_COPY")) dev::sync_block();
    uint32_t a[4], b[2];
    const int a_place =
        has("WRONG_FRAGMENT") ? lane / 2 * kStep + lane % 2 * 8 : lane % 16 * kStep + lane / 16 * 8;
    dev::ldmatrix<4, false>(a, tiles.x[step % 2] + a_place);
    const uint16_t* const b_rows = tiles.w[step % 2] + lane % 16 * kColumns + 8 * warp;
    if (has("MISSING_TRANSPOSE")) {
      dev::ldmatrix<2, false>(b, b_rows);
    } else {
      dev::ldmatrix<2, true>(b, b_rows);
    }
    dev::mma_bf16(d, a, b);
    if (!has("MISSING_BARRIER_BEFORE_REFILL")) dev::sync_block();
  }
  for (int i = 0; i < 4; ++i) {
    const int low = i & 1, high = i >> 1, down = has("WRONG_ACCUMULATOR") ? low : high;
    tiles.sums[(g + 8 * down) * kColumns + 8 * warp + 2 * t + low + high - down] = d[i];
  }
  if (has("TILE_OVERRUN")) {
    tiles.sums[kRows * kColumns + lane] = 0;  // into `halves`, which is written later
  }
}

// adds the sum over its row to each value: each lane takes half a row, and they meet through memory
NOPROP_DEV void add_row_sums(const Tiles& tiles) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = 8 * warp + lane % 8, half = lane / 8;
  const int rows = has("SHARED_OVERRUN") ? 9 : 8;  // half a row more of warp 1 lies past the tile
  if (half < 2 && lane % 8 < rows) {
    float sum = 0;
    for (int j = 0; j < 8; ++j) sum += tiles.sums[row * kColumns + 8 * half + j];
    tiles.halves[row * 2 + half] = sum;
    if (rows > 8) tiles.halves[(row + 1) * 2 + half] = sum;
  }
  if (!has("MISSING_WARP_BARRIER")) dev::sync_warp();
  const float sum = tiles.halves[row * 2] + tiles.halves[row * 2 + 1];
  for (int j = 0; j < 4; ++j) tiles.sums[row * kColumns + 4 * half + j] += sum;
}

__global__ void relay(uint16_t* states, const uint16_t* w, uint32_t* counter, int rounds) {
  DYN_SMEM(shared);
  dev::Carve carve{shared};
  Tiles tiles;
  for (int i = 0; i < 2; ++i) tiles.x[i] = carve.take<uint16_t>(kRows * kStep);
  for (int i = 0; i < 2; ++i) tiles.w[i] = carve.take<uint16_t>(kStep * kColumns);
  tiles.sums = carve.take<float>(kRows * kColumns);
  tiles.halves = carve.take<float>(kRows * 2);

  const int block = blockIdx.x, blocks = gridDim.x;
  uint32_t epoch = 0;
  for (int round = 0; round < rounds; ++round) {
    multiply(tiles, states + (block + 1) % blocks * kStateSize, w);
    if (has("DIVERGENT_BARRIER") && threadIdx.x < 32) {
      dev::sync_block();
    } else if (!has("MISSING_BARRIER_AFTER_STORE") &&
               !(has("BARRIER_SKIPPED") && threadIdx.x == 40 && round == 1)) {
      dev::sync_block();
    }
    add_row_sums(tiles);
    if (has("MISSING_GROUP_BARRIER")) {
      dev::sync_block();
    } else {
      barrier(counter, blocks, epoch);  // all have read what is now overwritten
    }
    for (int i = threadIdx.x; i < kStateSize; i += kThreads) {
      const float sum = tiles.sums[i / kDepth * kColumns + i % kColumns];
      states[block * kStateSize + i] = dev::to_bf16(fold(sum, i % kDepth));
    }
    if (has("GROUP_BARRIER_SKIPPED") && block == 1 && round + 1 == rounds) return;
    if (has("MISSING_GROUP_BARRIER_AT_END")) {
      dev::sync_block();
    } else {
      barrier(counter, blocks, epoch);
    }
  }
}

// the same by plain loops
void relay_plainly(std::vector<float>& states, const std::vector<float>& w) {
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<float> old = states;
    for (int block = 0; block < kBlocks; ++block) {
      const float* x = old.data() + (block + 1) % kBlocks * kStateSize;
      for (int row = 0; row < kRows; ++row) {
        float sums[kColumns] = {}, total = 0;
        for (int j = 0; j < kColumns; ++j)
          for (int k = 0; k < kDepth; ++k) sums[j] += x[row * kDepth + k] * w[k * kColumns + j];
        for (float sum : sums) total += sum;
        for (int c = 0; c < kDepth; ++c)
          states[block * kStateSize + row * kDepth + c] = fold(sums[c % kColumns] + total, c);
      }
    }
  }
}

// its own allocation, exact in size, so that AddressSanitizer sees its end; aligned to 16 bytes
std::unique_ptr<uint16_t[]> to_bf16(const std::vector<float>& values) {
  auto halves = std::make_unique<uint16_t[]>(values.size());
  for (size_t i = 0; i < values.size(); ++i) halves[i] = dev::to_bf16(values[i]);
  return halves;
}

void run(uint64_t seed) {
  std::mt19937 numbers(5);
  std::vector<float> states(kBlocks * kStateSize), w(kDepth * kColumns);
  for (float& value : states) value = float(int(numbers() % 7) - 3);
  for (float& value : w) value = float(int(numbers() % 7) - 3);
  const auto got = to_bf16(states), halves = to_bf16(w);
  auto counter = std::make_unique<uint32_t>(0);
  hc::Options options{.seed = seed};
  if (cluster && !has("NO_CLUSTER")) options.cluster = kBlocks;
  if (hc::launch("relay", relay, kBlocks, kThreads, shared_bytes(), options, got.get(),
                 halves.get(), counter.get(), kRounds)) {
    std::printf("seed %d: %s\n", int(seed), hc::last_error());
    return;
  }
  relay_plainly(states, w);
  int wrong = 0;
  for (size_t i = 0; i < states.size(); ++i) wrong += dev::from_bf16(got[i]) != states[i];
  std::printf("seed %d: %d wrong\n", int(seed), wrong);
}

}  // namespace

int main(int count, char** words) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (count < 4) return 2;
  planted = words[1];
  cluster = std::string_view(words[2]) == "cluster";
  for (int i = 3; i < count; ++i) run(std::strtoull(words[i], nullptr, 10));
}
