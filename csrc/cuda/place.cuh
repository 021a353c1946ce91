// Where a tile's work is: the step, the slice and the group, and the addresses that follow from
// them. Every stage is a function of (program, stage, place, tile, scratch), run by all kThreads
// threads of a thread block; scratch is free again when it returns.
#pragma once

#include "cuda/dev.h"
#include "cuda/program.h"

namespace noprop::cuda {

constexpr int kThreads = 256;  // of a thread block
constexpr int kLanes = 32, kWarps = kThreads / kLanes;
constexpr int kScratchBytes = 16 * 1024;  // of dynamic shared memory, aligned to 16 bytes

struct Place {
  int k;          // step of the launch
  int64_t i;      // slice of the call
  int64_t slice;  // of the object: index[k, i]
  int g;          // group of thread blocks
};

// entry of the place's step and slice; null where the buffer is absent
template <typename T>
__device__ inline T* at(const Buffer& buffer, const Place& place) {
  if (buffer.data == nullptr) return nullptr;
  const int64_t entry = buffer.by_group            ? place.g
                        : buffer.places != nullptr ? buffer.places[place.i]
                                                   : place.i;
  return static_cast<T*>(buffer.data) + place.k * buffer.step + entry * buffer.slice;
}

// a number or integer of row 0; row b is b * row further
template <typename N>
__device__ inline auto at(const N& number, const Place& place) -> decltype(number.data) {
  return number.data + place.k * number.step + place.i * number.slice;
}

// indices (B,) of the place's batch; null: there are none
__device__ inline const int64_t* at(const Rows& rows, const Place& place, int B) {
  if (rows.indices == nullptr) return nullptr;
  return rows.indices + (place.k * rows.replicas + rows.replica[place.i]) * B;
}

__device__ inline int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ inline int lane_index() { return thread_index() % kLanes; }
__device__ inline int warp_index() { return thread_index() / kLanes; }

}  // namespace noprop::cuda
