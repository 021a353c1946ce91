// One warp moves known values through the matrix primitives of dev.h. What must come out stands in
// layouts.cpp as plain loops. These are the first kernels to run on a GPU: nvcc compiles them too.
#pragma once

#include "cuda/dev.h"

namespace layouts {

namespace dev = noprop::dev;

// registers in, registers out: d (32, 4) += a (32, 4) b (32, 2), each lane its row
template <bool Bf16>
__global__ void multiply_registers(float* d, const uint32_t* a, const uint32_t* b) {
  const int lane = threadIdx.x;
  float own_d[4];
  uint32_t own_a[4], own_b[2];
  for (int i = 0; i < 4; ++i) own_d[i] = d[4 * lane + i];
  for (int i = 0; i < 4; ++i) own_a[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) own_b[i] = b[2 * lane + i];
  if constexpr (Bf16) {
    dev::mma_bf16(own_d, own_a, own_b);
  } else {
    dev::mma_tf32(own_d, own_a, own_b);
  }
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = own_d[i];
}

// registers (32, N) from matrices (N, 8, 8)
template <int N, bool Trans>
__global__ void load_matrices(uint32_t* registers, const uint16_t* matrices) {
  DYN_SMEM(shared);
  dev::Carve carve{shared};
  uint16_t* tile = carve.take<uint16_t>(N * 64);
  const int lane = threadIdx.x;
  for (int i = lane; i < N * 64; i += dev::kWarp) tile[i] = matrices[i];
  dev::sync_warp();
  uint32_t own[N];
  dev::ldmatrix<N, Trans>(own, tile + lane % (8 * N) * 8);
  for (int i = 0; i < N; ++i) registers[N * lane + i] = own[i];
}

// d (16, 8) = a (16, 16) b, where b is (16, 8) by rows, or its transpose (8, 16) with Columns. The
// way from memory to fragments that the kernels take.
template <bool Columns>
__global__ void multiply_tiles(float* d, const float* a, const float* b) {
  DYN_SMEM(shared);
  dev::Carve carve{shared};
  uint16_t* s_a = carve.take<uint16_t>(16 * 16);
  uint16_t* s_b = carve.take<uint16_t>(16 * 8);
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 16 * 16; i += dev::kWarp) s_a[i] = dev::to_bf16(a[i]);
  for (int i = lane; i < 16 * 8; i += dev::kWarp) s_b[i] = dev::to_bf16(b[i]);
  dev::sync_warp();
  uint32_t own_a[4], own_b[2];
  // in the order of the registers: rows 0-7 and 8-15 of k 0-7, then of k 8-15
  dev::ldmatrix<4, false>(own_a, s_a + lane % 16 * 16 + lane / 16 * 8);
  if constexpr (Columns) {
    dev::ldmatrix<2, false>(own_b, s_b + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    dev::ldmatrix<2, true>(own_b, s_b + lane % 16 * 8);
  }
  float own_d[4] = {};
  dev::mma_bf16(own_d, own_a, own_b);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = own_d[i];
}

// values (32,) float and int of other lanes: out (2, 32)
__global__ void shuffle_all(float* out, const float* in) {
  const int lane = threadIdx.x;
  const float value = in[lane];
  out[lane] = dev::shfl_xor(value, 5);
  out[32 + lane] = static_cast<float>(dev::shfl_xor(-lane, 16));
}

}  // namespace layouts
