// Stacks and shared memory with guard pages, and what is said of an access to one.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host_state.h"

namespace hc {

namespace {

Stack* stacks = nullptr;  // kept from launch to launch
int stack_count = 0;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void* map(size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return at == MAP_FAILED ? nullptr : at;
}

}  // namespace

bool take_stack(int number, size_t bytes, Stack* stack) {
  bytes = round_up(bytes, page());
  if (number >= stack_count) {
    Stack* more = static_cast<Stack*>(realloc(stacks, (number + 1) * sizeof(Stack)));
    if (more == nullptr) return false;
    stacks = more;
    for (; stack_count <= number; ++stack_count) stacks[stack_count] = Stack();
  }
  Stack& kept = stacks[number];
  if (kept.bytes != bytes) {
    if (kept.bytes != 0) munmap(kept.bottom - page(), kept.bytes + page());
    kept = Stack();
    void* at = map(bytes + page());
    if (at == nullptr) return false;
    mprotect(at, page(), PROT_NONE);
    kept = {static_cast<unsigned char*>(at) + page(), bytes};
  }
#ifdef HC_ASAN
  __asan_unpoison_memory_region(kept.bottom, kept.bytes);
#endif
  *stack = kept;
  return true;
}

bool map_shared(Block* block, size_t bytes) {
#ifdef HC_ASAN
  void* at;
  if (posix_memalign(&at, 128, bytes == 0 ? 1 : bytes) != 0) return false;
  block->shared = static_cast<unsigned char*>(at);
  memset(block->shared, 0xFF, bytes);
#else
  // guards on both sides; the end of what was asked for lies less than 128 bytes before its guard
  const size_t used = round_up(bytes, 128), pages = round_up(used, page());
  block->mapped = pages + 2 * page();
  block->mapping = static_cast<unsigned char*>(map(block->mapped));
  if (block->mapping == nullptr) return false;
  mprotect(block->mapping, page(), PROT_NONE);
  mprotect(block->mapping + page() + pages, page(), PROT_NONE);
  block->shared = block->mapping + page() + pages - used;
  memset(block->mapping + page(), 0xFF, pages);
#endif
  return true;
}

void unmap_shared(Block* block) {
#ifdef HC_ASAN
  if (block->shared) __asan_unpoison_memory_region(block->shared, now.shared_bytes);
  free(block->shared);
#else
  if (block->mapping) munmap(block->mapping, block->mapped);
#endif
}

// stores that went neither to shared memory nor as far as a guard page
void check_margins() {
#ifndef HC_ASAN
  for (unsigned b = 0; b < now.grid.count(); ++b) {
    const Block& block = now.blocks[b];
    const unsigned char* first = block.mapping + page();
    const unsigned char* end = block.mapping + block.mapped - page();
    for (const unsigned char* at = first; at < end; ++at) {
      if (at == block.shared) at += now.shared_bytes;
      if (at >= end || *at == 0xFF) continue;
      set_error(
          "kernel '%s' (seed %llu): a store to byte %td of shared memory of block %u, which has "
          "%zu",
          now.name, static_cast<unsigned long long>(now.seed), at - block.shared, b,
          now.shared_bytes);
      now.failed = true;
      return;
    }
  }
#endif
}

// A sanitizer says more of a fault than we could, and ends the process.
#if defined(HC_ASAN) || defined(HC_TSAN)

void catch_faults() {}
void release_faults() {}

#else

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS};
struct sigaction before[2];
stack_t stack_before;
unsigned char* handler_stack = nullptr;
constexpr size_t kHandlerStack = 64 * 1024;

void on_fault(int signal, siginfo_t* info, void*) {
  if (cur == nullptr) {  // not a kernel's: let it happen again, with whoever was there before
    release_faults();
    return;
  }
  const auto* at = static_cast<const unsigned char*>(info->si_addr);
  const Stack& stack = running()->stack;
  if (at < stack.bottom && at >= stack.bottom - page()) fail("signal %d: stack overflow", signal);
  for (unsigned b = 0; b < now.grid.count(); ++b) {
    const Block& block = now.blocks[b];
    const unsigned char* end = block.shared + now.shared_bytes;
    if (at >= end && at < block.mapping + block.mapped) {
      fail("signal %d: %td bytes past the end of shared memory of block %u", signal, at - end, b);
    }
    if (at >= block.mapping && at < block.shared) {
      fail("signal %d: %td bytes before shared memory of block %u", signal, block.shared - at, b);
    }
  }
  fail("signal %d: address %p", signal, info->si_addr);
}

}  // namespace

// fail() goes from the handler straight back to the host, so the signal must not stay blocked
void catch_faults() {
  if (handler_stack == nullptr) handler_stack = static_cast<unsigned char*>(map(kHandlerStack));
  stack_t own = {};
  own.ss_sp = handler_stack;
  own.ss_size = kHandlerStack;
  sigaltstack(&own, &stack_before);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &action, &before[i]);
}

void release_faults() {
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

#endif

}  // namespace hc
