// One thread leads a chain, and others help it with the larger layers, tile by tile. Any thread
// that is there takes the next tile. Nobody waits for a thread that has not come, or that another
// process keeps from running, except for the tile that it holds.
#pragma once

#include "cpu/isa.h"
#include "cpu/kernels/vec.h"

namespace noprop {
namespace {

constexpr uint32_t kLastStage = 0xffffffff;

// waits until done() is true
template <class Done>
NOPROP_INLINE void wait_until(const Crew& crew, Done done) {
  constexpr int kSpins = 2000;  // a tile takes microseconds
  for (int spin = 0; !done(); ++spin) {
    if (spin >= kSpins) crew.yield();
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

inline void open_stage(Crew& crew, uint32_t stage) {
  __atomic_store_n(&crew.done, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&crew.next, (uint64_t)stage << 32, __ATOMIC_RELEASE);
}

// The leader's part of a stage: run(tile) for the tiles that nobody else has taken. All are done
// when it returns.
template <class Run>
inline void lead_stage(Crew& crew, uint32_t stage, int64_t tiles, Run run) {
  open_stage(crew, stage);
  int64_t tile;
  while ((tile = (uint32_t)__atomic_fetch_add(&crew.next, 1, __ATOMIC_RELAXED)) < tiles) {
    run(tile);
    __atomic_fetch_add(&crew.done, 1, __ATOMIC_RELAXED);
  }
  wait_until(crew, [&] { return __atomic_load_n(&crew.done, __ATOMIC_ACQUIRE) == tiles; });
}

// A helper's part of all stages: run(stage, tile) for the tiles it takes, until the last stage is
// opened; tiles(stage) is how many there are.
template <class Tiles, class Run>
inline void help(Crew& crew, Tiles tiles, Run run) {
  for (;;) {
    uint64_t next;
    wait_until(crew, [&] {
      next = __atomic_load_n(&crew.next, __ATOMIC_ACQUIRE);
      return next >> 32 == kLastStage || (int64_t)(uint32_t)next < tiles((uint32_t)(next >> 32));
    });
    if (next >> 32 == kLastStage) return;
    next = __atomic_fetch_add(&crew.next, 1, __ATOMIC_ACQUIRE);  // perhaps of a later stage
    const uint32_t stage = (uint32_t)(next >> 32);
    if (stage == kLastStage || (int64_t)(uint32_t)next >= tiles(stage)) continue;
    run(stage, (int64_t)(uint32_t)next);
    __atomic_fetch_add(&crew.done, 1, __ATOMIC_RELEASE);
  }
}

}  // namespace
}  // namespace noprop
