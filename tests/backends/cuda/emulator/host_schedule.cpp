// The order in which ready fibers run, by seed.
#include <stdlib.h>

#include "host_state.h"

namespace hc {

uint64_t Schedule::random() {  // splitmix64
  uint64_t z = state_ += 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

bool Schedule::start(uint64_t seed, int fibers) {
  constexpr Policy kBySeed[] = {kPriority, kLast, kRandom};
  policy_ = seed == 0 ? kFirst : kBySeed[seed % 3];
  state_ = seed;
  fibers_ = fibers;
  ready_ = head_ = 0;
  const int warps = fibers / kWarp;
  queue_ = static_cast<int*>(calloc(fibers, sizeof(int)));
  rank_ = static_cast<int*>(calloc(fibers, sizeof(int)));
  fiber_of_ = static_cast<int*>(calloc(fibers, sizeof(int)));
  set_ = static_cast<uint64_t*>(calloc(fibers / 64 + 1, sizeof(uint64_t)));
  if (!queue_ || !rank_ || !fiber_of_ || !set_) return false;
  // warps in random order, the lanes of each in random order; a warp's whole is ahead or behind
  for (int i = 0; i < fibers; ++i) fiber_of_[i] = i;
  for (int warp = warps - 1; warp > 0; --warp) {
    const int other = static_cast<int>(random() % (warp + 1));
    for (int lane = 0; lane < kWarp; ++lane) {
      int& a = fiber_of_[warp * kWarp + lane];
      int& b = fiber_of_[other * kWarp + lane];
      const int kept = a;
      a = b, b = kept;
    }
  }
  for (int i = 0; i < fibers; ++i) {
    const int other = i + static_cast<int>(random() % (kWarp - i % kWarp));
    const int kept = fiber_of_[i];
    fiber_of_[i] = fiber_of_[other], fiber_of_[other] = kept;
  }
  for (int i = 0; i < fibers; ++i) rank_[fiber_of_[i]] = i;
  for (int i = 0; i < fibers; ++i) add(policy_ == kLast ? fiber_of_[i] : i);
  return true;
}

void Schedule::finish() {
  free(queue_), free(rank_), free(fiber_of_), free(set_);
  queue_ = rank_ = fiber_of_ = nullptr;
  set_ = nullptr;
}

void Schedule::add(int fiber) {
  if (policy_ == kPriority) {
    set_[rank_[fiber] / 64] |= uint64_t{1} << rank_[fiber] % 64;
  } else {
    const int at = head_ + ready_;  // head_ moves with kFirst only
    queue_[at < fibers_ ? at : at - fibers_] = fiber;
  }
  ++ready_;
}

int Schedule::take() {
  if (ready_ == 0) return -1;
  --ready_;
  if (policy_ == kPriority) {
    int word = 0;
    while (set_[word] == 0) ++word;
    const int rank = word * 64 + __builtin_ctzll(set_[word]);
    set_[word] &= set_[word] - 1;
    return fiber_of_[rank];
  }
  if (policy_ == kLast) return queue_[ready_];
  if (policy_ == kRandom) {
    const int at = static_cast<int>(random() % (ready_ + 1));
    const int fiber = queue_[at];
    queue_[at] = queue_[ready_];
    return fiber;
  }
  const int fiber = queue_[head_];
  if (++head_ == fibers_) head_ = 0;
  return fiber;
}

}  // namespace hc
