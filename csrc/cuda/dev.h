// All that a kernel needs beyond plain C++: shared memory, barriers, warp operations, flags in
// global memory, and arithmetic (dev_convert.h). This header and the two that it includes are the
// only ones that know the compiler: nvcc gets PTX, any other C++20 compiler the twin that runs on
// the host.
//
// Kernels include this and standard headers, nothing else. They use threadIdx, blockIdx, blockDim
// and gridDim as CUDA has them, and expf, logf, tanhf, erff, expm1 of <cmath>, which are accurate
// on both sides as long as no flag asks for fast mathematics. Needs sm_80.
//
// mma fragments, g = lane / 4 and t = lane % 4; the low half of a register has the lower k:
//   bf16 m16n8k16: a[i] row g + 8 (i & 1), k 2 t + 8 (i >> 1) + {0, 1}; b[i] k 2 t + 8 i + {0, 1},
//                  column g
//   tf32 m16n8k8:  a[i] row g + 8 (i & 1), k t + 4 (i >> 1); b[i] k t + 4 i, column g
//   both:          d[i] row g + 8 (i >> 1), column 2 t + (i & 1)
#pragma once

#include <cstdint>

#include "cuda/dev_convert.h"
#include "cuda/dev_target.h"

namespace noprop::dev {

constexpr int kWarp = 32;

// Cuts tiles from shared memory, each aligned to 16 bytes. A launch has to ask for the sum of
// cost(bytes) over the tiles. Under AddressSanitizer the gaps between tiles are poisoned.
struct Carve {
  unsigned char* next;

  static constexpr __host__ __device__ int cost(int bytes) {
#ifdef __CUDACC__
    return (bytes + 15) / 16 * 16;
#else
    return (bytes + 15) / 16 * 16 + hc::kTileGap;
#endif
  }

  template <typename T>
  NOPROP_DEV T* take(int count, NOPROP_SITE) {
    const int bytes = count * static_cast<int>(sizeof(T));
    unsigned char* tile = next;
    next += cost(bytes);
#ifndef __CUDACC__
    hc::carve(tile, bytes, next, {file, line});
#endif
    return reinterpret_cast<T*>(tile);
  }
};

// threadIdx.x, which the compiler must read where the code asks for it. Otherwise it forms every
// stage's indices before the loop over stages, and keeps more of them than there are registers.
NOPROP_DEV int thread_x() {
#ifdef __CUDACC__
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

// The same value, opaque to the compiler, so that a value that is formed from it twice is not kept
// in registers in between.
NOPROP_DEV int fresh(int value) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

NOPROP_DEV void sync_block(NOPROP_SITE) {
#ifdef __CUDACC__
  __syncthreads();
#else
  hc::block_barrier({file, line});
#endif
}

// also orders the lanes' accesses to memory
NOPROP_DEV void sync_warp(NOPROP_SITE) {
#ifdef __CUDACC__
  __syncwarp();
#else
  hc::warp_barrier({file, line});
#endif
}

// the value of lane ^ mask; all 32 lanes must call; T is float, int32_t or uint32_t
template <typename T>
NOPROP_DEV T shfl_xor(T value, int mask, NOPROP_SITE) {
#ifdef __CUDACC__
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
#else
  return hc::shuffle(value, mask, {file, line});
#endif
}

// d += a b for (16, 16) bfloat16 and (16, 8) bfloat16, sums in float; all 32 lanes must call
NOPROP_DEV void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         NOPROP_SITE) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  hc::mma_bf16(d, a, b, {file, line});
#endif
}

// d += a b for (16, 8) tf32 and (8, 8) tf32, sums in float; the low 13 bits of an operand are
// ignored
NOPROP_DEV void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         NOPROP_SITE) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  hc::mma_tf32(d, a, b, {file, line});
#endif
}

// N (8, 8) matrices of 16-bit values from shared memory: lane 8 m + r gives the address of row r of
// matrix m, 16 bytes, aligned. r[m] of a lane holds row lane / 4, columns 2 (lane % 4) + {0, 1}; of
// the transposed matrix with Trans.
template <int N, bool Trans>
NOPROP_DEV void ldmatrix(uint32_t (&r)[N], const void* row, NOPROP_SITE) {
  static_assert(N == 2 || N == 4);
#ifdef __CUDACC__
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (N == 2 && !Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  } else if constexpr (!Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  }
#else
  hc::ldmatrix(r, N, Trans, row, {file, line});
#endif
}

// *p += value, after everything that this thread did or knows of by a barrier
NOPROP_DEV void red_release(uint32_t* p, uint32_t value) {
#ifdef __CUDACC__
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)),
               "r"(value)
               : "memory");
#else
  __atomic_fetch_add(p, value, __ATOMIC_RELEASE);
  hc::after_atomic();
#endif
}

NOPROP_DEV uint32_t ld_acquire(const uint32_t* p) {
#ifdef __CUDACC__
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return value;
#else
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
#endif
}

// Waits until the counter *p has reached `want`. Counters wrap, so the two may be 2^31 apart at
// most. This is the only way to wait for another block: on the host, any other loop would never
// end.
NOPROP_DEV void wait_ge(const uint32_t* p, uint32_t want, [[maybe_unused]] const char* name,
                        NOPROP_SITE) {
  while (static_cast<int32_t>(ld_acquire(p) - want) < 0) {
#ifndef __CUDACC__
    hc::poll_wait(p, want, name, {file, line});
#endif
  }
}

// Waits for all threads of `blocks` blocks, which must be co-resident. *counter is never reset: it
// counts arrivals, and epoch, one and the same number in all threads, the barriers so far, so that
// before the first one *counter = epoch * blocks (both modulo 2^32).
NOPROP_DEV void group_barrier(uint32_t* counter, uint32_t blocks, uint32_t& epoch, NOPROP_SITE) {
  ++epoch;
  sync_block(file, line);
  if (threadIdx.x == 0) {
    red_release(counter, 1);
    wait_ge(counter, epoch * blocks, "group barrier", file, line);
  }
  sync_block(file, line);
}

// Waits for all threads of the blocks of a cluster, and makes what they wrote visible. In machine
// code for devices without clusters it does nothing.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kClusters = true;
#else
constexpr bool kClusters = false;
#endif

NOPROP_DEV void cluster_barrier(NOPROP_SITE) {
#ifndef __CUDACC__
  hc::cluster_barrier({file, line});
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// flags that several blocks raise; relaxed, so read them after a barrier
NOPROP_DEV void atomic_or(int* p, int bits) {
#ifdef __CUDACC__
  atomicOr(p, bits);
#else
  __atomic_fetch_or(p, bits, __ATOMIC_RELAXED);
  hc::after_atomic();
#endif
}

// cycles of this multiprocessor; on the host a count that moves on, which is not a time
NOPROP_DEV int64_t clock_now() {
#ifdef __CUDACC__
  return clock64();
#else
  return hc::ticks();
#endif
}

}  // namespace noprop::dev
