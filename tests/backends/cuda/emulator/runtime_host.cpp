// The runtime's twin on the host: one device, which is the emulator, and a launch that runs there
// and then. NOPROP_HOST_SEED chooses the schedule; the device's facts are those of a small one.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/run.cuh"
#include "cuda/runtime.h"

namespace noprop::cuda {
namespace {

constexpr int kMultiprocessors = 16;
constexpr int64_t kSharedBytes = 227 * 1024;  // of sm_90

template <Precision P>
void train(Program p) {
  DYN_SMEM(shared);
  run<P>(p, shared);
}

template <Precision P>
Kernel kernel() {
  return {reinterpret_cast<const void*>(train<P>), Scratch<P>::kBytes};
}

}  // namespace

static_assert(kThreads == kThreadsPerBlock);

Kernel kernel_of(Precision precision) {
  if (precision == Precision::kFloat32) return kernel<Precision::kFloat32>();
  if (precision == Precision::kTf32) return kernel<Precision::kTf32>();
  return kernel<Precision::kBFloat16>();
}

const char* count_devices(int* count) {
  *count = 1;
  return nullptr;
}

const char* describe_device(int device, NopropCudaDevice* facts) {
  if (device != 0) return "the host has device 0 alone";
  *facts = {};
  std::snprintf(facts->name, sizeof(facts->name), "host emulator");
  facts->major = 9;
  facts->multiprocessors = kMultiprocessors;
  facts->cooperative = 1;
  facts->shared_bytes = kSharedBytes;
  facts->l2_bytes = facts->memory_bytes = int64_t{1} << 30;
  return nullptr;
}

const char* blocks_per_multiprocessor(int, Precision, int64_t, int* blocks) {
  *blocks = 1;
  return nullptr;
}

const char* clusters_at_once(int, Precision, int64_t, int blocks, int* clusters) {
  *clusters = kMultiprocessors / blocks;
  return nullptr;
}

const char* launch(int, const Program& program, int64_t shared_bytes, void*) {
  hc::Options options;
  if (const char* seed = std::getenv("NOPROP_HOST_SEED"))
    options.seed = std::strtoull(seed, nullptr, 10);
  if (program.cluster) {
    options.cluster = static_cast<unsigned>(program.blocks);  // the grid need not be resident
  } else {
    options.max_blocks = kMultiprocessors;
  }
  std::memset(program.barriers, 0, sizeof(uint32_t) * static_cast<size_t>(program.groups));
  const auto entry =
      reinterpret_cast<void (*)(Program)>(const_cast<void*>(kernel_of(program.precision).entry));
  const auto grid = static_cast<unsigned>(program.groups * program.blocks);
  const int failed = hc::launch("train", entry, hc::Dim3(grid), hc::Dim3(kThreads),
                                static_cast<size_t>(shared_bytes), options, program);
  return failed ? hc::last_error() : nullptr;
}

}  // namespace noprop::cuda
