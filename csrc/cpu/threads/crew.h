// One thread leads a chain, and others help it with the larger layers, tile by tile. Any thread
// that is there takes the next tile. Nobody waits for a thread that has not come, or that another
// process keeps from running, except for the tile that it holds.
#pragma once

#include "cpu/isa.h"
#include "cpu/kernels/vec.h"
#include "cpu/threads/relax.h"

namespace noprop {
namespace {

constexpr uint32_t kNoMoreStages = 0xffffffff;  // in place of a stage's tiles

// waits until done() is true; idle() is called now and then while that takes long
template <class Done, class Idle>
NOPROP_INLINE void wait_until(const Crew& crew, Done done, Idle idle) {
  constexpr int kSpins = 2000;  // a tile takes microseconds
  for (int spin = 0; !done(); ++spin) {
    if (spin >= kSpins) {
      idle();
      crew.yield();
    }
    relax();
  }
}

// Tiles and the next one's number are one word: who takes a number knows whether there is such a
// tile. If there is, the stage stays open until it is done.
inline void open_stage(Crew& crew, const CrewStage& stage, uint32_t tiles) {
  crew.stage = stage;
  __atomic_store_n(&crew.done, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&crew.next, (uint64_t)tiles << 32, __ATOMIC_RELEASE);
}

inline void end_stages(Crew& crew) { open_stage(crew, {}, kNoMoreStages); }

// The leader's part of a stage: run(tile) for the tiles that nobody else has taken. All are done
// when it returns.
template <class Run>
inline void lead_stage(Crew& crew, const CrewStage& stage, int64_t tiles, Run run) {
  open_stage(crew, stage, (uint32_t)tiles);
  int64_t tile;
  while ((tile = (uint32_t)__atomic_fetch_add(&crew.next, 1, __ATOMIC_RELAXED)) < tiles) {
    run(tile);
    __atomic_fetch_add(&crew.done, 1, __ATOMIC_RELAXED);
  }
  wait_until(crew, [&] { return __atomic_load_n(&crew.done, __ATOMIC_ACQUIRE) == tiles; }, [] {});
}

// A helper's part of all stages: run(stage, tile) for the tiles it takes, until there are no more
// stages. idle() is called while it holds no tile.
template <class Run, class Idle>
inline void help(Crew& crew, Run run, Idle idle) {
  for (;;) {
    uint64_t next;
    const auto has_tile = [&] { return (uint32_t)next < next >> 32; };
    wait_until(
        crew,
        [&] {
          next = __atomic_load_n(&crew.next, __ATOMIC_ACQUIRE);
          return has_tile();
        },
        idle);
    if (next >> 32 == kNoMoreStages) return;
    next = __atomic_fetch_add(&crew.next, 1, __ATOMIC_ACQUIRE);  // perhaps of a later stage
    if (next >> 32 == kNoMoreStages) return;
    if (!has_tile()) continue;
    run(crew.stage, (int64_t)(uint32_t)next);
    __atomic_fetch_add(&crew.done, 1, __ATOMIC_RELEASE);
    idle();
  }
}

}  // namespace
}  // namespace noprop
