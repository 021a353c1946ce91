// The compiler: nvcc for a device, or any other one, whose CUDA is host_cuda.h, found by -I.
#pragma once

#ifdef __CUDACC__
#define NOPROP_DEV __device__ __forceinline__
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#else
#include "host_cuda.h"
#define NOPROP_DEV inline
// the one shared array of a block: static ones would be shared by all blocks on the host
#define DYN_SMEM(name) unsigned char* const name = hc::cur->shared
#endif

// the source line of a call, for the messages of the host; these must be direct default arguments
#define NOPROP_SITE \
  [[maybe_unused]] const char *file = __builtin_FILE(), [[maybe_unused]] int line = __builtin_LINE()
