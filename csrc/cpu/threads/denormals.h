// How the processor treats numbers below 1e-38, a mode of each thread.
#pragma once

#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace noprop {

#if defined(__SSE2__)
constexpr uint64_t kFlush = 0x8040;
inline uint64_t float_mode() { return _mm_getcsr(); }
inline void set_float_mode(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
constexpr uint64_t kFlush = uint64_t{1} << 24;
inline uint64_t float_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
constexpr uint64_t kFlush = 0;
inline uint64_t float_mode() { return 0; }
inline void set_float_mode(uint64_t) {}
#endif

// A mode for as long as this lives.
class FloatMode {
 public:
  explicit FloatMode(uint64_t mode) : before_(float_mode()) { set_float_mode(mode); }
  FloatMode(const FloatMode&) = delete;
  ~FloatMode() { set_float_mode(before_); }

 private:
  const uint64_t before_;
};

}  // namespace noprop
