// Every primitive of dev.h in one kernel, for nvcc: that the device branch compiles, and into what.
#include "layout_kernels.h"

namespace dev = noprop::dev;

__global__ void __launch_bounds__(128)
    touch(float* out, const float* in, const uint16_t* halves, uint32_t* counter, int* flags) {
  DYN_SMEM(shared);
  dev::Carve carve{shared};
  uint16_t* tile = carve.take<uint16_t>(64 * 8);
  float* row = carve.take<float>(128);
  static_assert(dev::Carve::cost(20) == 32);
  const int thread = threadIdx.x, lane = thread % dev::kWarp;

  for (int i = thread; i < 64 * 8; i += 128) tile[i] = halves[i];
  row[thread] = in[thread];
  dev::sync_block();

  uint32_t two[2], two_t[2], four[4], four_t[4];
  dev::ldmatrix<2, false>(two, tile + lane * 8);
  dev::ldmatrix<2, true>(two_t, tile + lane * 8);
  dev::ldmatrix<4, false>(four, tile + lane * 8);
  dev::ldmatrix<4, true>(four_t, tile + lane * 8);
  float sums[4] = {};
  dev::mma_bf16(sums, four, two);
  dev::mma_bf16(sums, four_t, two_t);
  for (int i = 0; i < 4; ++i) four[i] = dev::to_tf32(row[lane + i]);
  for (int i = 0; i < 2; ++i) two[i] = dev::to_tf32(row[lane + i + 32]);
  dev::mma_tf32(sums, four, two);
  dev::sync_warp();

  float value = dev::shfl_xor(sums[0], 16) + sums[1] + sums[2];
  int whole = dev::shfl_xor(lane, 1);
  uint32_t word = dev::shfl_xor(dev::pack_bf16(value, sums[3]), 2);
  word += dev::mul_hi(word, 0xD2511F53u) + dev::float_to_bits(value);
  value += dev::from_bf16(dev::to_bf16(row[thread])) + dev::bits_to_float(word);
  value = dev::fma_rn(value, value, 1.0f);
  value = dev::div_rn(dev::sqrt_rn(value), expf(value) + logf(value));
  float sine, cosine;
  dev::sincos_pi(value, sine, cosine);
  out[thread] = sine + cosine + static_cast<float>(whole);

  uint32_t epoch = 0;
  dev::group_barrier(counter, gridDim.x, epoch);
  if (dev::kClusters) dev::cluster_barrier();
  dev::red_release(counter + 1, 1);
  dev::wait_ge(counter + 1, gridDim.x, "everyone");
  dev::atomic_or(flags, dev::ld_acquire(counter) > 7 ? 1 : 2);
  flags[1] = static_cast<int>(dev::clock_now());
}

template __global__ void layouts::multiply_registers<false>(float*, const uint32_t*,
                                                            const uint32_t*);
template __global__ void layouts::multiply_registers<true>(float*, const uint32_t*,
                                                           const uint32_t*);
template __global__ void layouts::load_matrices<4, true>(uint32_t*, const uint16_t*);
template __global__ void layouts::multiply_tiles<false>(float*, const float*, const float*);
template __global__ void layouts::multiply_tiles<true>(float*, const float*, const float*);
