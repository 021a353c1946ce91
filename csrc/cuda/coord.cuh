// A tile's coordinates: the step, the slice and the group, and the addresses that follow from them.
// Every stage is a function of (program, stage, coord, tile, scratch), run by all kThreads threads
// of a thread block; scratch is free again when it returns.
#pragma once

#include "cuda/dev.h"
#include "cuda/program.h"

namespace noprop::cuda {

constexpr int kThreads = 256;  // of a thread block
constexpr int kLanes = 32, kWarps = kThreads / kLanes;
constexpr int kScratchBytes = 20 * 1024;  // of dynamic shared memory, aligned to 16 bytes

struct Coord {
  int k;          // step of the launch
  int64_t i;      // slice of the call
  int64_t slice;  // of the object: index[k, i]
  int g;          // group of thread blocks
};

// neighbours that are loaded at once
template <typename T, int W>
struct alignas(sizeof(T) * W) Neighbours {
  T value[W];
};

// entry of the step and slice; null where the buffer is absent
template <typename T>
NOPROP_DEV T* at(const Buffer& buffer, const Coord& coord) {
  if (buffer.data == nullptr) return nullptr;
  const int64_t entry = buffer.by_group ? coord.g : coord.i;
  return static_cast<T*>(buffer.data) + coord.k * buffer.stride_k + entry * buffer.stride_slice;
}

// the value of row 0; that of row b is b * stride_row further
template <typename Values>
NOPROP_DEV auto at(const Values& values, const Coord& coord) -> decltype(values.data) {
  return values.data + coord.k * values.stride_k + coord.i * values.stride_slice;
}

// the indices (B,) of the batch, or null
NOPROP_DEV const int64_t* at(const Rows& rows, const Coord& coord, int B) {
  if (rows.indices == nullptr) return nullptr;
  return rows.indices + (coord.k * rows.replicas + rows.replica[coord.i]) * B;
}

// running = (1 - momentum) * running + momentum * batch
NOPROP_DEV void move_statistic(float& running, float batch, float momentum) {
  running = (1.0f - momentum) * running + momentum * batch;
}

NOPROP_DEV int min_of(int a, int b) { return a < b ? a : b; }

// rows of a tile of kRows
NOPROP_DEV int tile_rows(const Program& p, int tile) { return min_of(kRows, p.B - tile * kRows); }

NOPROP_DEV int thread_index() { return dev::thread_x(); }
NOPROP_DEV int lane_index() { return thread_index() % kLanes; }
NOPROP_DEV int warp_index() { return thread_index() / kLanes; }

}  // namespace noprop::cuda
