#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace noprop {

// A turn of a loop that waits for another thread, which may be on the same core.
inline void relax() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace noprop
