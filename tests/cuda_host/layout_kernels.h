// One warp moves known values through each primitive of dev.h. The first thing to run on a GPU:
// these kernels compile with nvcc too, and what they must give stands in layouts.cpp as plain
// loops.
#pragma once

#include "cuda/dev.h"

namespace layouts {

namespace dev = noprop::dev;

// d (16, 8) += a (16, 16) b (16, 8); b is stored by columns where Trans, else by rows. a goes
// through ldmatrix x4, b through x2.
template <bool Columns>
__global__ void product_bf16(float* d, const float* a, const float* b) {
  DYN_SMEM(shared);
  dev::Carve carve{shared};
  uint16_t* s_a = carve.take<uint16_t>(16 * 16);
  uint16_t* s_b = carve.take<uint16_t>(16 * 8);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) s_a[i] = dev::to_bf16(a[i]);
  for (int i = lane; i < 128; i += 32) s_b[i] = dev::to_bf16(b[i]);
  dev::sync_warp();
  uint32_t fragment_a[4], fragment_b[2];
  // matrices in the order of a[0..3]: rows 0-7 and 8-15 of k 0-7, then of k 8-15
  dev::ldmatrix<4, false>(fragment_a, s_a + lane % 16 * 16 + lane / 16 * 8);
  if constexpr (Columns) {  // b[column][k]: 8 columns of 16
    dev::ldmatrix<2, false>(fragment_b, s_b + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    dev::ldmatrix<2, true>(fragment_b, s_b + lane % 16 * 8);
  }
  const int g = lane / 4, t = lane % 4;
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)];
  dev::mma_bf16(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = sums[i];
}

// d (16, 8) += a (16, 8) b (8, 8)
__global__ void product_tf32(float* d, const float* a, const float* b) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t fragment_a[4], fragment_b[2];
  for (int i = 0; i < 4; ++i) {
    fragment_a[i] = dev::to_tf32(a[(g + 8 * (i & 1)) * 8 + t + 4 * (i >> 1)]);
  }
  for (int i = 0; i < 2; ++i) fragment_b[i] = dev::to_tf32(b[(t + 4 * i) * 8 + g]);
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)];
  dev::mma_tf32(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = sums[i];
}

}  // namespace layouts
