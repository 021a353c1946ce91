#pragma once

#include <chrono>

namespace noprop {

constexpr double kPollSeconds = 0.05;

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace noprop
