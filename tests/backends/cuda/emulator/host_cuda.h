// A CUDA launch on the host: every CUDA thread is a fiber, all fibers of all blocks take turns on
// one OS thread, and a fiber is left only where it waits. csrc/cuda/dev.h calls what stands here.
//
// One launch at a time in a process. Execution is sequentially consistent: a missing release or
// acquire never gives a wrong number, only a report of ThreadSanitizer, which is told of each
// barrier. What no run on the host can show: the device's weak memory beyond that, stale caches,
// bank conflicts, co-residency, time, and a wrong PTX string.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define HC_ASAN 1
#include <sanitizer/asan_interface.h>
#endif
#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(void* p, unsigned long bytes);
extern "C" void __tsan_write_range(void* p, unsigned long bytes);
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static_assert(false, "static __shared__ is not emulated: carve from DYN_SMEM");
#define threadIdx (::hc::cur->thread_index)
#define blockIdx (::hc::cur->block_index)
#define blockDim (::hc::cur->block_size)
#define gridDim (::hc::cur->grid_size)

namespace hc {

constexpr int kWarp = 32;
#ifdef HC_ASAN
constexpr int kTileGap = 128;  // poisoned bytes after each tile of shared memory
#else
constexpr int kTileGap = 0;
#endif

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned count() const { return x * y * z; }
};

struct Site {
  const char* file;
  int line;
};

// what a kernel sees of the CUDA thread that runs
struct Thread {
  Dim3 thread_index, block_index, block_size, grid_size;
  unsigned char* shared = nullptr;  // of its block
  size_t shared_bytes = 0;
};

extern Thread* cur;

struct Options {
  uint64_t seed = 0;        // 0: first come, first served; else 1, 2, 0 modulo 3: last come first,
                            // random, fixed random priorities of warps and lanes
  int stack_kb = 0;         // 0: 128, or 256 under a sanitizer
  unsigned max_blocks = 0;  // a larger grid is an error, as it would be on a device; 0: any
  unsigned cluster = 1;     // blocks of a cluster, 1 to 8
};

// Text of the last launch that failed, else "".
const char* last_error();

int run(const char* name, void (*entry)(void*), void* closure, Dim3 grid, Dim3 block,
        size_t shared_bytes, const Options& options);

// Runs kernel(args...) and gives 0, or 1 with the reason in last_error().
template <typename... Params, typename... Args>
int launch(const char* name, void (*kernel)(Params...), Dim3 grid, Dim3 block, size_t shared_bytes,
           const Options& options, Args... args) {
  auto call = [&] { kernel(args...); };
  using Call = decltype(call);
  return run(
      name, [](void* closure) { (*static_cast<Call*>(closure))(); }, &call, grid, block,
      shared_bytes, options);
}

// Ends the launch with this text, and the running kernel with it.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail_at(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

void block_barrier(Site site);
void cluster_barrier(Site site);
void warp_barrier(Site site);
void poll_wait(const uint32_t* flag, uint32_t want, const char* name, Site site);
void after_atomic();  // others may be waiting for what was changed
int64_t ticks();      // a clock: switches between threads, and readings of it

// Operations of a warp, done for all lanes by the last one to arrive; these touch only the lanes'
// own registers, and a lane learns nothing from them about another's memory.
uint32_t shuffle_bits(uint32_t value, int mask, Site site);
void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, Site site);
void mma_tf32(float* d, const uint32_t* a, const uint32_t* b, Site site);
void spread_rows(uint32_t* registers, int matrices, bool transposed, const uint32_t (&row)[4],
                 Site site);
void sincos_pi(float x, float& sine, float& cosine);

// what stands for an approximate instruction; infinities, zeros and NaN are exact there too
inline float last_bit_wrong(float value) {
  const bool special = value == 0 || value - value != 0;
  return special ? value : __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) ^ 1);
}

template <typename T>
T shuffle(T value, int mask, Site site) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  return __builtin_bit_cast(T, shuffle_bits(__builtin_bit_cast(uint32_t, value), mask, site));
}

// What follows touches the kernel's memory, so it is compiled with the kernel and its sanitizer.
using Word __attribute__((may_alias)) = uint32_t;

// ThreadSanitizer misses copies that the compiler makes of known size
inline void told_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_THREAD__
  __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}

inline void check_shared(const void* p, size_t bytes, const char* what, Site site) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  const auto begin = reinterpret_cast<uintptr_t>(cur->shared);
  if (at % bytes != 0)
    fail_at(site, "%s: the address %p is not aligned to %zu bytes", what, p, bytes);
  if (at < begin || at + bytes > begin + cur->shared_bytes) {
    fail_at(site, "%s: byte %td of shared memory, which has %zu", what,
            static_cast<ptrdiff_t>(at - begin), cur->shared_bytes);
  }
}

inline void carve(unsigned char* tile, int bytes, unsigned char* next, Site site) {
  if (next > cur->shared + cur->shared_bytes) {
    fail_at(site, "Carve: tiles take %td bytes of shared memory, the launch gave %zu",
            next - cur->shared, cur->shared_bytes);
  }
#ifdef HC_ASAN
  __asan_unpoison_memory_region(tile, bytes);
  __asan_poison_memory_region(tile + bytes, next - (tile + bytes));
#else
  (void)tile, (void)bytes;
#endif
}

inline void ldmatrix(uint32_t* registers, int matrices, bool transposed, const void* row,
                     Site site) {
  uint32_t words[4] = {};
  if (static_cast<int>(cur->thread_index.x % kWarp) < 8 * matrices) {
    check_shared(row, 16, "ldmatrix", site);
    told_read(row, 16);
    for (int i = 0; i < 4; ++i) words[i] = static_cast<const Word*>(row)[i];
  }
  spread_rows(registers, matrices, transposed, words, site);
}

}  // namespace hc
