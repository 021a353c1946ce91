// The scheduler: fibers of all blocks, and where they wait.
#include "host_cuda.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host_state.h"

#ifdef HC_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace hc {

Thread* cur = nullptr;
Running now;

#ifndef HC_UCONTEXT
extern "C" void hc_switch(void** from, void* to) __attribute__((visibility("hidden")));
// saves what a call must keep, changes stacks, and returns to where the other one left
asm(R"(
.text
.globl hc_switch
.hidden hc_switch
.type hc_switch, @function
hc_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size hc_switch, . - hc_switch
)");
#endif

namespace {

pthread_mutex_t one_at_a_time = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;

void change(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
  ++now.ticks;
  cur = &to == &now.host ? nullptr : &to;
#ifdef HC_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack.bottom,
                                 to.stack.bytes);
#endif
#ifdef HC_TSAN
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
#ifndef HC_UCONTEXT
  hc_switch(&from.context, to.context);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef HC_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void make_ready(Fiber& fiber) {
  fiber.state = State::kReady;
  now.schedule.add(fiber.number);
}

bool reached(const Fiber& fiber) {
  const uint32_t value = *static_cast<const volatile uint32_t*>(fiber.flag);
  return static_cast<int32_t>(value - fiber.want) >= 0;
}

void wake_pollers() {
  int left = 0;
  for (int i = 0; i < now.pollers; ++i) {
    Fiber* fiber = now.polling[i];
    if (reached(*fiber)) {
      make_ready(*fiber);
    } else {
      now.polling[left++] = fiber;
    }
  }
  now.pollers = left;
}

// to whichever fiber is next; the running one is ready, waits, or has ended
void pass_on(bool for_good) {
  int next = now.schedule.take();
  if (next < 0) {
    wake_pollers();  // a flag may have been changed by a plain store
    next = now.schedule.take();
  }
  if (next < 0 && now.live > 0) report_deadlock();
  Fiber& from = *running();
  Fiber& to = next < 0 ? now.host : now.fibers[next];
  if (&from != &to) change(from, to, for_good);
}

void wait(State state, const char* what, Site site) {
  Fiber& fiber = *running();
  fiber.state = state;
  fiber.what = what;
  fiber.site = site;
  pass_on(false);
}

void run_fiber() {
  Fiber& fiber = *running();
#ifdef HC_ASAN
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (now.host.stack.bottom == nullptr) {  // the first fiber comes from the host's stack
    now.host.stack = {static_cast<unsigned char*>(const_cast<void*>(bottom)), bytes};
  }
#endif
  now.entry(now.closure);
  fiber.state = State::kDone;
  --now.live;
  pass_on(true);
  abort();
}

bool prepare(Fiber& fiber, size_t stack_bytes) {
  if (!take_stack(fiber.number, stack_bytes, &fiber.stack)) return false;
#ifndef HC_UCONTEXT
  void** top = reinterpret_cast<void**>(fiber.stack.bottom + fiber.stack.bytes);
  memset(top - 8, 0, 8 * sizeof(void*));
  top[-2] = reinterpret_cast<void*>(run_fiber);  // it returns to null, never
  fiber.context = top - 8;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.bottom;
  fiber.context.uc_stack.ss_size = fiber.stack.bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
#endif
#ifdef HC_TSAN
  char name[64];
  snprintf(name, sizeof name, "block %d thread %d", fiber.number / now.threads,
           fiber.number % now.threads);
  fiber.sanitizer = __tsan_create_fiber(0);
  __tsan_set_fiber_name(fiber.sanitizer, name);
#endif
  return true;
}

bool create_all(size_t stack_bytes) {
  now.fibers = static_cast<Fiber*>(calloc(now.count, sizeof(Fiber)));
  now.blocks = static_cast<Block*>(calloc(now.grid.count(), sizeof(Block)));
  now.clusters = static_cast<Meeting*>(calloc(now.grid.count() / now.cluster, sizeof(Meeting)));
  now.warps = static_cast<Warp*>(calloc(now.count / kWarp, sizeof(Warp)));
  now.polling = static_cast<Fiber**>(calloc(now.count, sizeof(Fiber*)));
  if (!now.fibers || !now.blocks || !now.clusters || !now.warps || !now.polling) return false;
  for (unsigned b = 0; b < now.grid.count(); ++b) {
    now.blocks[b].meeting.size = now.threads;
    now.blocks[b].cluster = &now.clusters[b / now.cluster];
    now.blocks[b].cluster->size = now.threads * now.cluster;
    if (!map_shared(&now.blocks[b], now.shared_bytes)) return false;
  }
  for (int i = 0; i < now.count; ++i) {
    Fiber& fiber = now.fibers[i];
    const unsigned b = i / now.threads, t = i % now.threads;
    fiber.number = i;
    fiber.block = &now.blocks[b];
    fiber.warp = &now.warps[i / kWarp];
    fiber.warp->meeting.size = kWarp;
    fiber.thread_index = Dim3(t, 0, 0);
    fiber.block_index =
        Dim3(b % now.grid.x, b / now.grid.x % now.grid.y, b / now.grid.x / now.grid.y);
    fiber.block_size = now.block;
    fiber.grid_size = now.grid;
    fiber.shared = fiber.block->shared;
    fiber.shared_bytes = now.shared_bytes;
    fiber.what = "";
    fiber.site.file = "";
    if (!prepare(fiber, stack_bytes)) return false;
  }
  return now.schedule.start(now.seed, now.count);
}

// what fibers did, abandoned ones too, comes before what the host does next
void join_all() {
#ifdef HC_TSAN
  for (int i = 0; i < now.count; ++i) {
    Fiber& fiber = now.fibers[i];
    if (fiber.sanitizer == nullptr) break;
    __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
    __tsan_release(&now.end);
    __tsan_switch_to_fiber(now.host.sanitizer, __tsan_switch_to_fiber_no_sync);
    __tsan_destroy_fiber(fiber.sanitizer);
  }
  __tsan_acquire(&now.end);
#endif
}

void destroy_all() {
  if (now.fibers) join_all();
  for (unsigned b = 0; now.blocks && b < now.grid.count(); ++b) unmap_shared(&now.blocks[b]);
  free(now.fibers), free(now.blocks), free(now.clusters), free(now.warps), free(now.polling);
  now.schedule.finish();
}

bool check_launch(const Options& options) {
  const unsigned blocks = now.grid.count();
  if (now.block.y != 1 || now.block.z != 1 || now.block.x == 0 || now.block.x > 1024 ||
      now.block.x % kWarp != 0) {
    set_error(
        "kernel '%s': a block must be (threads, 1, 1), 32 to 1024 in whole warps, is (%u, %u, %u)",
        now.name, now.block.x, now.block.y, now.block.z);
    return false;
  }
  const unsigned most = options.max_blocks == 0 ? 1u << 20 : options.max_blocks;
  if (blocks == 0 || blocks > most) {
    set_error("kernel '%s': the grid must have 1 to %u blocks, so that all are co-resident, has %u",
              now.name, most, blocks);
    return false;
  }
  if (options.cluster < 1 || options.cluster > 8 || now.grid.x % options.cluster != 0) {
    set_error("kernel '%s': a cluster must have 1 to 8 blocks that divide the grid's %u, has %u",
              now.name, now.grid.x, options.cluster);
    return false;
  }
  return true;
}

}  // namespace

void leave() {
  now.failed = true;
  change(*running(), now.host, true);
  abort();
}

void meet(Meeting& meeting, State state, const char* what, Site site, bool orders,
          void (*all)(Warp&)) {
  Fiber& fiber = *running();
  if (meeting.arrived == 0) {
    meeting.site = site;
    meeting.what = what;
  } else if (!same(meeting.what, what) || meeting.site.line != site.line ||
             !same(meeting.site.file, site.file)) {
    fail("divergent %s: %s at %s:%d here, %s at %s:%d in %d other threads",
         state == State::kCluster ? "cluster"
         : state == State::kBlock ? "block"
                                  : "warp",
         what, site.file, site.line, meeting.what, meeting.site.file, meeting.site.line,
         meeting.arrived);
  }
  [[maybe_unused]] char* edge = &meeting.edges[meeting.round & 1];
#ifdef HC_TSAN
  if (orders) __tsan_release(edge);
#endif
  (void)orders;
  if (++meeting.arrived < meeting.size) {
    wait(state, what, site);
  } else {
    if (all) all(*fiber.warp);
    meeting.arrived = 0;
    ++meeting.round;
    const int first = fiber.number / meeting.size * meeting.size;
    for (int i = first; i < first + meeting.size; ++i) {
      if (i != fiber.number) make_ready(now.fibers[i]);
    }
    make_ready(fiber);
    pass_on(false);
  }
#ifdef HC_TSAN
  if (orders) __tsan_acquire(edge);
#endif
}

void cluster_barrier(Site site) {
  meet(meeting_of(*running(), State::kCluster), State::kCluster, "cluster barrier", site, true,
       nullptr);
}

void block_barrier(Site site) {
  meet(running()->block->meeting, State::kBlock, "__syncthreads", site, true, nullptr);
}

void warp_barrier(Site site) {
  meet(running()->warp->meeting, State::kWarp, "__syncwarp", site, true, nullptr);
}

void poll_wait(const uint32_t* flag, uint32_t want, const char* name, Site site) {
  Fiber& fiber = *running();
  fiber.flag = flag;
  fiber.want = want;
  now.polling[now.pollers++] = &fiber;
  wait(State::kPoll, name, site);
  fiber.flag = nullptr;
}

void after_atomic() {
  wake_pollers();
  if (now.schedule.preempts()) {
    make_ready(*running());
    pass_on(false);
  }
}

int64_t ticks() { return ++now.ticks; }

int run(const char* name, void (*entry)(void*), void* closure, Dim3 grid, Dim3 block,
        size_t shared_bytes, const Options& options) {
  if (pthread_mutex_lock(&one_at_a_time) != 0) {  // this thread holds it
    set_error("kernel '%s': a kernel cannot launch another", name);
    return 1;
  }
  set_error("%s", "");
  now = Running();
  now.name = name, now.seed = options.seed, now.entry = entry, now.closure = closure;
  now.grid = grid, now.block = block, now.shared_bytes = shared_bytes;
  now.threads = static_cast<int>(block.x), now.cluster = static_cast<int>(options.cluster);
  now.failed = !check_launch(options);
  if (!now.failed) {
    now.count = now.live = now.threads * static_cast<int>(grid.count());
#if defined(HC_TSAN) || defined(HC_ASAN)
    const int usual_kb = 256;
#else
    const int usual_kb = 128;
#endif
#ifdef HC_TSAN
    now.host.sanitizer = __tsan_get_current_fiber();
#endif
    const size_t stack_kb = options.stack_kb > 0 ? options.stack_kb : usual_kb;
    if (create_all(stack_kb * 1024)) {
      catch_faults();
      change(now.host, now.fibers[now.schedule.take()], false);
      release_faults();
      if (!now.failed) check_margins();
    } else {
      set_error("kernel '%s': no memory for %d threads", name, now.count);
      now.failed = true;
    }
    destroy_all();
  }
  const int failed = now.failed;
  pthread_mutex_unlock(&one_at_a_time);
  return failed;
}

}  // namespace hc
