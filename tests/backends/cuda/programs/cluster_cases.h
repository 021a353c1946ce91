// Cases of behaviour.cpp on clusters of thread blocks and their barrier.
#pragma once

#include <string>
#include <vector>

#include "cuda/dev.h"

namespace {

namespace dev = noprop::dev;

std::string told(int failed) { return failed ? hc::last_error() : "ok"; }

// Each block writes the round to its slot, some late, and after the barrier reads its cluster's
// slots.
__global__ void cluster_rounds(int* slots, int count, int size, int* wrong) {
  const int first = blockIdx.x / size * size, block = blockIdx.x;
  for (int round = 0; round < count; ++round) {
    int* now = slots + round % 2 * gridDim.x;
    for (int late = (round * 7 + block * 3) % 5; late > 0; --late) dev::sync_warp();
    if (threadIdx.x == 0) now[block] = round;
    dev::cluster_barrier();
    for (int other = first + threadIdx.x; other < first + size; other += blockDim.x) {
      if (now[other] != round) dev::atomic_or(wrong, 1);
    }
  }
}

std::string run_cluster_rounds() {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (const unsigned size : {1u, 3u, 6u}) {
      std::vector<int> slots(2 * 6, -1);
      int wrong = 0;
      if (hc::launch("rounds", cluster_rounds, 6, 64, 0, {.seed = seed, .cluster = size},
                     slots.data(), 50, int(size), &wrong)) {
        return hc::last_error();
      }
      if (wrong) return "seed " + std::to_string(seed) + ": a block passed a barrier too early";
    }
  }
  return "ok";
}

template <unsigned kSize>
std::string run_clusters() {
  int slots[18], wrong = 0;
  return told(hc::launch("clusters", cluster_rounds, 9, 32, 0, {.cluster = kSize}, slots, 1,
                         int(kSize), &wrong));
}

__global__ void skip_cluster_barrier() {
  if (threadIdx.x == 37 && blockIdx.x == 1) return;
  dev::cluster_barrier();
}

std::string run_skip_cluster_barrier() {
  return told(hc::launch("bad", skip_cluster_barrier, 4, 64, 0, {.cluster = 2}));
}

__global__ void two_cluster_barriers() {
  if (blockIdx.x == 0) {
    dev::cluster_barrier();
  } else {
    dev::cluster_barrier();
  }
}

std::string run_two_cluster_barriers() {
  return told(hc::launch("bad", two_cluster_barriers, 2, 32, 0, {.cluster = 2}));
}

}  // namespace
