// A kernel that does what the real ones do, and one fault in it that a macro PLANT_... chooses:
// blocks of a group pass their states on, through global memory, group barriers, double-buffered
// copies, ldmatrix and mma, warp and block barriers. All values are whole numbers that bfloat16
// holds, so that without a fault the result is exact and the same in every schedule.
//
// Usage: faults SEED...; a line for each seed: the launch's error, or how many values are wrong.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
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

#ifdef CLUSTER  // all blocks are one
constexpr bool kCluster = true;
#else
constexpr bool kCluster = false;
#endif

#if defined(PLANT_RELAXED_RELEASE) || defined(PLANT_RELAXED_ACQUIRE)
void barrier(uint32_t* counter, uint32_t blocks, uint32_t& epoch) {
  ++epoch;
  dev::sync_block();
  if (threadIdx.x == 0) {
#ifdef PLANT_RELAXED_RELEASE
    __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
    hc::after_atomic();
    dev::wait_ge(counter, epoch * blocks, "barrier");
#else
    dev::red_release(counter, 1);
    while (__atomic_load_n(counter, __ATOMIC_RELAXED) < epoch * blocks) {
      hc::poll_wait(counter, epoch * blocks, "barrier", {__FILE__, __LINE__});
    }
#endif
  }
  dev::sync_block();
}
#else
void barrier(uint32_t* counter, uint32_t blocks, uint32_t& epoch) {
  if (kCluster) return dev::cluster_barrier();
  dev::group_barrier(counter, blocks, epoch);
}
#endif

struct Tiles {
  uint16_t* x[2];  // (16, 16), k ascending along a row
  uint16_t* w[2];  // (16, 16), a row for each k
  float* sums;     // (16, 16)
  float* halves;   // (16, 2): sums of half a row
};

// columns 16 step .. 16 step + 15 of x, rows 16 step .. of w
NOPROP_DEV void fetch(const Tiles& tiles, const uint16_t* x, const uint16_t* w, int step) {
  const int half = threadIdx.x % 2, row = threadIdx.x / 2 % 16;
#ifdef PLANT_MISALIGNED_COPY
  w += 4;
#endif
  if (threadIdx.x < 32) {
    dev::cp_async16(tiles.x[step % 2] + row * kStep + 8 * half,
                    x + row * kDepth + step * kStep + 8 * half, true);
  } else {
    dev::cp_async16(tiles.w[step % 2] + row * kColumns + 8 * half,
                    w + (step * kStep + row) * kColumns + 8 * half, true);
  }
  dev::cp_commit();
}

// sums (16, 16) of this block, 8 columns for each of the two warps
NOPROP_DEV void multiply(const Tiles& tiles, const uint16_t* x, const uint16_t* w) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  constexpr int kSteps = kDepth / kStep;
  float d[4] = {};
  fetch(tiles, x, w, 0);
  for (int step = 0; step < kSteps; ++step) {
#ifdef PLANT_GLOBAL_OVERRUN
    fetch(tiles, x, w, step + 1);  // the last one is never used
#else
    if (step + 1 < kSteps) fetch(tiles, x, w, step + 1);
#endif
#if defined(PLANT_EARLY_COPY_WAIT)
    dev::cp_wait<1>();
#elif !defined(PLANT_MISSING_COPY_WAIT)
    if (step + 1 < kSteps) {
      dev::cp_wait<1>();
    } else {
      dev::cp_wait<0>();
    }
#endif
#ifndef PLANT_MISSING_BARRIER_AFTER_COPY
    dev::sync_block();
#endif
    uint32_t a[4], b[2];
#ifdef PLANT_WRONG_FRAGMENT
    dev::ldmatrix<4, false>(a, tiles.x[step % 2] + lane / 2 * kStep + lane % 2 * 8);
#else
    dev::ldmatrix<4, false>(a, tiles.x[step % 2] + lane % 16 * kStep + lane / 16 * 8);
#endif
#ifdef PLANT_MISSING_TRANSPOSE
    dev::ldmatrix<2, false>(b, tiles.w[step % 2] + lane % 16 * kColumns + 8 * warp);
#else
    dev::ldmatrix<2, true>(b, tiles.w[step % 2] + lane % 16 * kColumns + 8 * warp);
#endif
    dev::mma_bf16(d, a, b);
#ifndef PLANT_MISSING_BARRIER_BEFORE_REFILL
    dev::sync_block();
#endif
  }
#if defined(PLANT_EARLY_COPY_WAIT) || defined(PLANT_MISSING_COPY_WAIT)
  dev::cp_wait<0>();  // as some later wait would
#elif defined(PLANT_COPY_LEFT)
  fetch(tiles, x, w, 0);
#endif
  for (int i = 0; i < 4; ++i) {
#ifdef PLANT_WRONG_ACCUMULATOR
    tiles.sums[(g + 8 * (i & 1)) * kColumns + 8 * warp + 2 * t + (i >> 1)] = d[i];
#else
    tiles.sums[(g + 8 * (i >> 1)) * kColumns + 8 * warp + 2 * t + (i & 1)] = d[i];
#endif
  }
#ifdef PLANT_TILE_OVERRUN
  tiles.sums[kRows * kColumns + lane] = 0;  // into `halves`, which is written later
#endif
}

// adds the sum over its row to each value: each lane takes half a row, and they meet through memory
NOPROP_DEV void add_row_sums(const Tiles& tiles) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = 8 * warp + lane % 8, half = lane / 8;
#ifdef PLANT_SHARED_OVERRUN
  const int rows = 9;  // half a row more of warp 1 lies past the tile
#else
  const int rows = 8;
#endif
  if (half < 2 && lane % 8 < rows) {
    float sum = 0;
    for (int j = 0; j < 8; ++j) sum += tiles.sums[row * kColumns + 8 * half + j];
    tiles.halves[row * 2 + half] = sum;
    if (rows > 8) tiles.halves[(row + 1) * 2 + half] = sum;
  }
#ifndef PLANT_MISSING_WARP_BARRIER
  dev::sync_warp();
#endif
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
#ifdef PLANT_DIVERGENT_BARRIER
    if (threadIdx.x < 32) {
      dev::sync_block();
    } else {
      dev::sync_block();
    }
#elif defined(PLANT_BARRIER_SKIPPED)
    if (threadIdx.x != 40 || round != 1) dev::sync_block();
#elif !defined(PLANT_MISSING_BARRIER_AFTER_STORE)
    dev::sync_block();
#endif
    add_row_sums(tiles);
#ifndef PLANT_MISSING_GROUP_BARRIER
    barrier(counter, blocks, epoch);  // all have read what is now overwritten
#else
    dev::sync_block();
#endif
    for (int i = threadIdx.x; i < kStateSize; i += kThreads) {
      const float sum = tiles.sums[i / kDepth * kColumns + i % kColumns];
      states[block * kStateSize + i] = dev::to_bf16(fold(sum, i % kDepth));
    }
#ifdef PLANT_GROUP_BARRIER_SKIPPED
    if (block == 1 && round + 1 == rounds) return;
#endif
#ifndef PLANT_MISSING_GROUP_BARRIER_AT_END
    barrier(counter, blocks, epoch);
#else
    dev::sync_block();
#endif
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
#ifndef PLANT_NO_CLUSTER
  if (kCluster) options.cluster = kBlocks;
#endif
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

int main(int count, char** seeds) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  for (int i = 1; i < count; ++i) run(std::strtoull(seeds[i], nullptr, 10));
}
