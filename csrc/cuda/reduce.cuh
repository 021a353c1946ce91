// Sums within a thread block, in an order that depends on nothing but the thread's number. A tile
// of kRows rows gives each row to kRowLanes neighbouring lanes: 16 rows fill 256 threads.
#pragma once

#include "cuda/coord.cuh"

namespace noprop::cuda {

constexpr int kRowLanes = kThreads / kRows;
static_assert(kRowLanes <= kLanes && kLanes % kRowLanes == 0, "a row's lanes are of one warp");

NOPROP_DEV int tile_row() { return thread_index() / kRowLanes; }
NOPROP_DEV int row_lane() { return thread_index() % kRowLanes; }

// over the lanes of a row, of a power of two; all lanes of a warp must call
NOPROP_DEV float row_sum(float value) {
  for (int mask = kRowLanes / 2; mask > 0; mask /= 2) value += dev::shfl_xor(value, mask);
  return value;
}

NOPROP_DEV float row_max(float value) {
  for (int mask = kRowLanes / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, dev::shfl_xor(value, mask));
  }
  return value;
}

NOPROP_DEV float warp_sum(float value) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += dev::shfl_xor(value, mask);
  return value;
}

NOPROP_DEV int32_t warp_or(int32_t value) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value |= dev::shfl_xor(value, mask);
  return value;
}

// over all threads of the block, which all get it
NOPROP_DEV int32_t block_or(int32_t value, unsigned char* scratch) {
  static_assert(dev::Carve::cost(kWarps * 4) <= kScratchBytes);
  int32_t* s_parts = dev::Carve{scratch}.take<int32_t>(kWarps);
  value = warp_or(value);
  if (lane_index() == 0) s_parts[warp_index()] = value;
  dev::sync_block();
  for (int warp = 0; warp < kWarps; ++warp) value |= s_parts[warp];
  dev::sync_block();
  return value;
}

}  // namespace noprop::cuda
