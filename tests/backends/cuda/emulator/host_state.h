// The state of the running launch, shared by the emulator's own sources. They are compiled without
// ThreadSanitizer, with HC_TSAN where the kernels have it, and use no code from headers that an
// instrumented unit may have compiled too: the linker keeps one copy.
#pragma once

#include "host_cuda.h"

#ifdef HC_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifndef __x86_64__
#define HC_UCONTEXT  // twenty times slower, but works anywhere
#endif
#ifdef HC_UCONTEXT
#include <ucontext.h>
#endif

namespace hc {

enum class State : unsigned char { kReady, kCluster, kBlock, kWarp, kPoll, kDone };

struct Stack {
  unsigned char* bottom = nullptr;  // lowest usable byte; the page below is a guard
  size_t bytes = 0;
};

struct Block;
struct Warp;

// a CUDA thread, or the host's own thread where it left for the first fiber
struct Fiber : Thread {
#ifdef HC_UCONTEXT
  ucontext_t context;
#else
  void* context = nullptr;  // its stack pointer
#endif
  Stack stack;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int number = 0;  // in the launch
  State state = State::kReady;
  const char* what = "";  // it waits for
  Site site = {"", 0};
  const uint32_t* flag = nullptr;
  uint32_t want = 0;
  void* fake_stack = nullptr;  // of AddressSanitizer
  void* sanitizer = nullptr;   // its state in ThreadSanitizer
};

// where threads meet, again and again
struct Meeting {
  int arrived = 0, size = 0;
  uint32_t round = 0;
  Site site = {"", 0};
  const char* what = nullptr;
  char edges[2] = {};  // for ThreadSanitizer: the order that rounds give, even and odd ones apart
};

struct Block {
  Meeting* cluster = nullptr;  // of the cluster's blocks
  Meeting meeting;
  unsigned char* shared = nullptr;
  unsigned char* mapping = nullptr;
  size_t mapped = 0;
};

struct Warp {
  Meeting meeting;
  void* lane[kWarp] = {};  // each lane's arguments
};

// Which fiber runs next; the order depends on the seed and on nothing else.
class Schedule {
 public:
  bool start(uint64_t seed, int fibers);
  void finish();
  void add(int fiber);
  int take();  // -1: none is ready
  bool preempts() const { return policy_ != kFirst; }

 private:
  enum Policy { kFirst, kLast, kRandom, kPriority };
  uint64_t random();
  Policy policy_ = kFirst;
  uint64_t state_ = 0;
  int fibers_ = 0, ready_ = 0, head_ = 0;
  int* queue_ = nullptr;     // the ready fibers
  int* rank_ = nullptr;      // of each fiber; the lowest goes first
  int* fiber_of_ = nullptr;  // each rank
  uint64_t* set_ = nullptr;  // the ranks of the ready fibers
};

struct Running {
  const char* name = "";
  uint64_t seed = 0;
  Dim3 grid, block;
  size_t shared_bytes = 0;
  Fiber* fibers = nullptr;
  Block* blocks = nullptr;
  Meeting* clusters = nullptr;
  Warp* warps = nullptr;
  int cluster = 1;  // blocks of a cluster
  int count = 0, threads = 0, live = 0, pollers = 0;
  Fiber** polling = nullptr;
  Schedule schedule;
  Fiber host;
  void (*entry)(void*) = nullptr;
  void* closure = nullptr;
  bool failed = false;
  int64_t ticks = 0;
  char end = 0;  // for ThreadSanitizer: where fibers end
};

extern Running now;

inline Fiber* running() { return static_cast<Fiber*>(cur); }

// where the fiber meets others of its block, warp or cluster
inline Meeting& meeting_of(const Fiber& fiber, State state) {
  if (state == State::kCluster) return *fiber.block->cluster;
  return state == State::kBlock ? fiber.block->meeting : fiber.warp->meeting;
}

void set_error(const char* format, ...) __attribute__((format(printf, 1, 2)));
void add_error(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void report_deadlock();
[[noreturn]] void leave();  // to the host, for good
bool same(const char* a, const char* b);
// the last lane to arrive runs `all` for the others
void meet(Meeting& meeting, State state, const char* what, Site site, bool orders,
          void (*all)(Warp&));

// memory
bool take_stack(int number, size_t bytes, Stack* stack);
bool map_shared(Block* block, size_t bytes);
void unmap_shared(Block* block);
void check_margins();
void catch_faults();
void release_faults();

}  // namespace hc
