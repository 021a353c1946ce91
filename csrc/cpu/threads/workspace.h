// Memory that a thread keeps from call to call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace noprop {

// Megabytes that a step passes again and again lie in huge pages where the system lends them, else
// the processor would look up the address of each 4 KB.
constexpr size_t kHugePage = size_t{1} << 21;

inline void* new_memory(size_t bytes) {
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
  if (bytes >= 2 * kHugePage) {
    void* data = std::aligned_alloc(kHugePage, bytes);
    if (data != nullptr) madvise(data, bytes, MADV_HUGEPAGE);  // a hint: without it nothing is lost
    return data;
  }
#endif
  return std::aligned_alloc(64, bytes);
}

// Grows and is kept, since fresh pages cost more than a small step. Under AddressSanitizer it has
// the exact size each time, and holds NaN, so that reading too far or too early shows.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  ~Workspace() { std::free(data_); }
  char* get(int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    const bool fits = false;
#else
    const bool fits = data_ != nullptr && bytes <= size_;
#endif
    if (!fits) {
      std::free(data_);
      size_ = 0;
      data_ = nullptr;
      const int64_t whole = std::max<int64_t>(64, (bytes + 63) / 64 * 64);
      data_ = static_cast<char*>(new_memory(static_cast<size_t>(whole)));
      if (data_ == nullptr) return nullptr;
      size_ = whole;
#if defined(__SANITIZE_ADDRESS__)
      std::memset(data_, 0xff, static_cast<size_t>(whole));
#endif
    }
    return data_;
  }

 private:
  char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace noprop
