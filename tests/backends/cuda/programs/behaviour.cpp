// What the emulator does with kernels, good and bad: cases by name, as a program and as a library.
// Each case gives a text; test_emulator.py says what it must be.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cluster_cases.h"

namespace {

namespace dev = noprop::dev;

__global__ void load_at(int byte) {
  DYN_SMEM(shared);
  uint32_t r[2];
  dev::ldmatrix<2, false>(r, shared + byte);
}

template <int kByte>
std::string run_load_at() {
  return told(hc::launch("load_at", load_at, 1, 32, 64, {}, kByte));
}

__global__ void read_never_written(int* not_nan) {
  DYN_SMEM(shared);
  const float value = reinterpret_cast<float*>(shared)[threadIdx.x];
  const float half = dev::from_bf16(dev::float_to_bits(value) & 0xFFFF);
  if (value == value || half == half) dev::atomic_or(not_nan, 1);
  reinterpret_cast<float*>(shared)[threadIdx.x] = 1.0f;  // the next block's is its own
}

std::string run_never_written() {
  int not_nan = 0;
  for (int again = 0; again < 2; ++again) {
    if (hc::launch("read", read_never_written, 3, 64, 256, {}, &not_nan)) return hc::last_error();
  }
  return not_nan ? "a number in memory that was never written" : "ok";
}

// Each block writes the round to its slot, some late, and after the barrier reads all slots.
__global__ void rounds(uint32_t* counter, uint32_t epoch, int* slots, int count, int* wrong) {
  const int blocks = gridDim.x, block = blockIdx.x;
  for (int round = 0; round < count; ++round) {
    int* now = slots + round % 2 * blocks;
    for (int late = (round * 7 + block * 3) % 5; late > 0; --late) dev::sync_warp();
    if (threadIdx.x == 0) now[block] = round;
    dev::group_barrier(counter, blocks, epoch);
    for (int other = threadIdx.x; other < blocks; other += blockDim.x) {
      if (now[other] != round) dev::atomic_or(wrong, 1);
    }
  }
}

std::string run_rounds(int blocks, int threads, int count, uint32_t epoch, uint64_t seed) {
  uint32_t counter = epoch * blocks;
  std::vector<int> slots(2 * blocks, -1);
  int wrong = 0;
  if (hc::launch("rounds", rounds, blocks, threads, 0, {.seed = seed}, &counter, epoch,
                 slots.data(), count, &wrong)) {
    return hc::last_error();
  }
  if (wrong) return "a block passed a barrier too early";
  return counter == (epoch + count) * blocks ? "ok" : "arrivals are missing";
}

std::string run_many_rounds() { return run_rounds(3, 32, 100000, 0, 0); }

// fewer, on every schedule, while the counter passes 2^32
std::string run_wrapping_rounds() {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const std::string text = run_rounds(5, 64, 60, uint32_t(-1) / 5 - 30, seed);
    if (text != "ok") return "seed " + std::to_string(seed) + ": " + text;
  }
  return "ok";
}

__global__ void flags(int* raised) { dev::atomic_or(raised, 1 << threadIdx.x % 8); }

std::string run_flags() {
  int raised = 0;
  const int failed = hc::launch("flags", flags, 2, 64, 0, {.seed = 2}, &raised);
  return failed || raised != 255 ? "wrong flags" : "ok";
}

__global__ void indices(int* seen) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  seen[block * blockDim.x + threadIdx.x] += 1 + block;
}

std::string run_indices() {
  std::vector<int> seen(24 * 32);
  if (hc::launch("indices", indices, hc::Dim3(2, 3, 4), 32, 0, {}, seen.data())) return "failed";
  for (int i = 0; i < 24 * 32; ++i)
    if (seen[i] != 1 + i / 32) return "wrong index";
  return "ok";
}

// the order in which threads come between two barriers
__global__ void order(int* next, int* who) {
  dev::sync_block();
  who[(*next)++] = blockIdx.x * blockDim.x + threadIdx.x;
  dev::sync_block();
}

std::vector<int> order_of(uint64_t seed) {
  int next = 0;
  std::vector<int> who(128);
  if (hc::launch("order", order, 2, 64, 0, {.seed = seed}, &next, who.data())) who.clear();
  return who;
}

std::string run_orders() {
  std::vector<std::vector<int>> orders;
  for (uint64_t seed = 0; seed < 7; ++seed) {
    orders.push_back(order_of(seed));
    if (orders.back().empty() || orders.back() != order_of(seed)) return "a seed gave two orders";
    for (uint64_t other = 0; other < seed; ++other)
      if (orders[other] == orders[seed]) return "two seeds gave one order";
  }
  return "ok";
}

// each warp comes three times; lane 0 notes when
__global__ void phases(int* next, int* who) {
  for (int phase = 0; phase < 3; ++phase) {
    if (threadIdx.x % 32 == 0) who[(*next)++] = threadIdx.x / 32;
    dev::sync_warp();
  }
}

// In turn with seed 0; with 1 and 3, last come first and priorities, each warp runs to its end
// before the next one; at random with 2.
std::string run_policies() {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    int next = 0, who[24], in_turn = 0, followed = 0;
    if (hc::launch("phases", phases, 1, 256, 0, {.seed = seed}, &next, who)) return "failed";
    for (int i = 0; i < 24; ++i) in_turn += who[i] == i % 8;
    for (int i = 1; i < 24; ++i) followed += who[i] == who[i - 1];
    const bool as_expected = seed == 0   ? in_turn == 24
                             : seed == 2 ? in_turn < 24 && followed < 16
                                         : followed == 16;
    if (!as_expected) return "seed " + std::to_string(seed) + " has another order";
  }
  return "ok";
}

__global__ void skip_barrier() {
  if (threadIdx.x == 37 && blockIdx.x == 1) return;
  dev::sync_block();
}

__global__ void skip_group_barrier(uint32_t* counter) {
  uint32_t epoch = 0;
  dev::group_barrier(counter, gridDim.x, epoch);
  if (blockIdx.x != 0) dev::group_barrier(counter, gridDim.x, epoch);
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    dev::sync_block();
  } else {
    dev::sync_block();
  }
}

__global__ void two_warp_operations(float* out) {
  if (threadIdx.x % 2 == 0) {
    dev::sync_warp();
  } else {
    *out = dev::shfl_xor(1.0f, 1);
  }
}

__global__ void half_a_warp(float* out) {
  if (threadIdx.x < 16) *out = dev::shfl_xor(1.0f, 1);
}

__global__ void wide_shuffle(float* out) { *out = dev::shfl_xor(1.0f, 32); }

__global__ void carve_too_much() {
  DYN_SMEM(shared);
  dev::Carve carve{shared};
  carve.take<float>(64);
  carve.take<float>(64)[threadIdx.x] = 0;
}

// after a failed launch the next one runs as ever
template <typename... P, typename... A>
std::string run_bad(void (*kernel)(P...), unsigned blocks, unsigned threads, A... args) {
  const std::string text = told(hc::launch("bad", kernel, blocks, threads, 256, {}, args...));
  const std::string next = run_flags();
  return next == "ok" && *hc::last_error() == 0 ? text : "the next launch: " + next;
}

std::string run_skip_group_barrier() {
  uint32_t counter = 0;
  return run_bad(skip_group_barrier, 3, 32, &counter);
}

template <void (*kernel)(float*)>
std::string run_bad_warp() {
  float out;
  return run_bad(kernel, 1, 32, &out);
}

__global__ void write_at(int byte) {
  DYN_SMEM(shared);
  if (threadIdx.x == 5) static_cast<volatile unsigned char*>(shared)[byte] = 1;
}

__global__ void write_null(int* nothing) { *static_cast<volatile int*>(nothing) = 1; }

__global__ void overflow(int depth) {
  volatile char room[4096];
  room[0] = char(depth);
  if (depth > 0) overflow(depth - 1);
  room[1] = room[0];
}

__global__ void launch_inside() {
  if (threadIdx.x == 0 && hc::launch("inner", skip_barrier, 1, 32, 0, {}) == 0) abort();
}

std::string run_launch_inside() {
  const int failed = hc::launch("outer", launch_inside, 1, 32, 0, {});
  return failed ? "the outer launch failed" : hc::last_error();
}

std::string run_odd_threads() { return told(hc::launch("odd", skip_barrier, 1, 48, 0, {})); }

std::string run_flat() { return told(hc::launch("flat", skip_barrier, 1, {32, 2}, 0, {})); }

std::string run_too_many_blocks() {
  return told(hc::launch("many", skip_barrier, 133, 32, 0, {.max_blocks = 132}));
}

struct Case {
  const char* name;
  std::string (*run)();
};

const Case kCases[] = {
    {"ldmatrix_outside", run_load_at<64>},
    {"ldmatrix_misaligned", run_load_at<2>},
    {"never_written", run_never_written},
    {"rounds", run_many_rounds},
    {"rounds_wrap", run_wrapping_rounds},
    {"cluster_rounds", run_cluster_rounds},
    {"cluster_too_large", run_clusters<9>},
    {"cluster_uneven", run_clusters<2>},
    {"skip_cluster_barrier", run_skip_cluster_barrier},
    {"two_cluster_barriers", run_two_cluster_barriers},
    {"flags", run_flags},
    {"indices", run_indices},
    {"orders", run_orders},
    {"policies", run_policies},
    {"skip_barrier", [] { return run_bad(skip_barrier, 2, 64); }},
    {"skip_group_barrier", run_skip_group_barrier},
    {"two_barriers", [] { return run_bad(two_barriers, 1, 64); }},
    {"two_warp_operations", run_bad_warp<two_warp_operations>},
    {"half_a_warp", run_bad_warp<half_a_warp>},
    {"wide_shuffle", run_bad_warp<wide_shuffle>},
    {"carve_too_much", [] { return run_bad(carve_too_much, 1, 32); }},
    {"launch_inside", run_launch_inside},
    {"odd_threads", run_odd_threads},
    {"flat", run_flat},
    {"too_many_blocks", run_too_many_blocks},
    {"write_past_end", [] { return run_bad(write_at, 2, 32, 256 + 128); }},
    {"write_before", [] { return run_bad(write_at, 1, 32, -1); }},
    {"write_far_before", [] { return run_bad(write_at, 2, 32, -4096); }},
    {"write_null", [] { return run_bad(write_null, 1, 32, static_cast<int*>(nullptr)); }},
    {"overflow", [] { return run_bad(overflow, 1, 32, 1000); }},
};

}  // namespace

// the text of a case, valid until this thread calls again; null: there is no such case
extern "C" const char* run_case(const char* name) {
  static thread_local std::string text;
  for (const Case& one : kCases) {
    if (std::strcmp(one.name, name) != 0) continue;
    text = one.run();
    return text.c_str();
  }
  return nullptr;
}

int main(int count, char** names) {
  for (int i = 1; i < count; ++i) {
    const char* text = run_case(names[i]);
    if (text == nullptr) return 2;
    std::printf("[%s] %s\n", names[i], text);
    std::fflush(stdout);
  }
}
