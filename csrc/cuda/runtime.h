// Launches a program, by the device's runtime (runtime.cu) or, in the tests, by its twin on the
// host.
//
// Functions return null, or a text that says what failed. It lives until the thread's next call.
#pragma once

#include <cstdint>

#include "cuda/program.h"
#include "noprop_cuda.h"

namespace noprop::cuda {

constexpr int kThreadsPerBlock = 256;

struct Kernel {
  const void* entry;
  int scratch_bytes;  // of shared memory, before the resident state
};
Kernel kernel_of(Precision precision);

const char* count_devices(int* count);
const char* describe_device(int device, NopropCudaDevice* facts);

// the thread blocks that a multiprocessor holds at the same time
const char* blocks_per_multiprocessor(int device, Precision precision, int64_t shared_bytes,
                                      int* blocks);

// clusters of `blocks` thread blocks that the device holds at the same time
const char* clusters_at_once(int device, Precision precision, int64_t shared_bytes, int blocks,
                             int* clusters);

// Clears the barriers' counters and launches, both on the stream.
const char* launch(int device, const Program& program, int64_t shared_bytes, void* stream);

}  // namespace noprop::cuda
