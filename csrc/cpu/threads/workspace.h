// Memory that a thread keeps from call to call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace noprop {

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
      data_ = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(whole)));
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
