// The device's runtime: facts, occupancy and the launch.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

#include "cuda/runtime.h"

namespace noprop::cuda {
namespace {

thread_local char text[512];

// returns null on success; clears the runtime's last error, unless it is sticky
const char* check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  int driver = 0;
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess &&
      driver == 0) {
    std::snprintf(text, sizeof(text), "%s: there is no NVIDIA driver", what);
  } else {
    std::snprintf(text, sizeof(text), "%s: %s (%s)", what, cudaGetErrorString(error),
                  cudaGetErrorName(error));
  }
  return text;
}

// makes a device current, and restores the previous one
class OnDevice {
 public:
  explicit OnDevice(int device) {
    failed_ = check(cudaGetDevice(&before_), "cudaGetDevice");
    if (failed_ == nullptr) failed_ = check(cudaSetDevice(device), "cudaSetDevice");
    now_ = failed_ == nullptr ? device : before_;
  }
  ~OnDevice() {
    if (now_ != before_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  const char* failed() const { return failed_; }

 private:
  int before_ = 0, now_ = 0;
  const char* failed_ = nullptr;
};

const char* allow_shared(const void* entry, int64_t bytes) {
  return check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)),
               "cudaFuncSetAttribute of the shared memory");
}

cudaLaunchAttribute cooperative() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  return attribute;
}

cudaLaunchAttribute of_cluster(int blocks) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  return attribute;
}

cudaLaunchConfig_t configure(int blocks, int64_t shared_bytes, cudaStream_t stream,
                             cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreadsPerBlock);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

}  // namespace

const char* count_devices(int* count) {
  *count = 0;  // the runtime leaves it alone where there is no driver
  return check(cudaGetDeviceCount(count), "cudaGetDeviceCount");
}

const char* describe_device(int device, NopropCudaDevice* facts) {
  *facts = {};
  cudaDeviceProp properties;
  if (const char* failed =
          check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties")) {
    return failed;
  }
  std::memcpy(facts->name, properties.name, sizeof(facts->name));
  facts->major = properties.major;
  facts->minor = properties.minor;
  facts->multiprocessors = properties.multiProcessorCount;
  facts->cooperative = properties.cooperativeLaunch;
  facts->shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  facts->l2_bytes = properties.l2CacheSize;
  facts->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return nullptr;
}

const char* blocks_per_multiprocessor(int device, Precision precision, int64_t shared_bytes,
                                      int* blocks) {
  const OnDevice on(device);
  if (on.failed()) return on.failed();
  const void* entry = kernel_of(precision).entry;
  if (const char* failed = allow_shared(entry, shared_bytes)) return failed;
  return check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, entry, kThreadsPerBlock,
                                                             static_cast<size_t>(shared_bytes)),
               "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
}

const char* clusters_at_once(int device, Precision precision, int64_t shared_bytes, int blocks,
                             int* clusters) {
  const OnDevice on(device);
  if (on.failed()) return on.failed();
  const void* entry = kernel_of(precision).entry;
  if (const char* failed = allow_shared(entry, shared_bytes)) return failed;
  cudaLaunchAttribute attribute = of_cluster(blocks);
  const cudaLaunchConfig_t config = configure(blocks, shared_bytes, nullptr, &attribute);
  return check(cudaOccupancyMaxActiveClusters(clusters, entry, &config),
               "cudaOccupancyMaxActiveClusters");
}

const char* launch(int device, const Program& program, int64_t shared_bytes, void* stream) {
  const OnDevice on(device);
  if (on.failed()) return on.failed();
  const auto on_stream = static_cast<cudaStream_t>(stream);
  const Kernel kernel = kernel_of(program.precision);
  if (const char* failed = allow_shared(kernel.entry, shared_bytes)) return failed;
  const size_t counters = sizeof(uint32_t) * static_cast<size_t>(program.groups);
  if (const char* failed =
          check(cudaMemsetAsync(program.barriers, 0, counters, on_stream), "cudaMemsetAsync")) {
    return failed;
  }
  void* arguments[] = {const_cast<Program*>(&program)};
  // the device starts a cluster as a whole, and no group waits for another one, so the grid need
  // not be resident
  cudaLaunchAttribute attribute = program.cluster ? of_cluster(program.blocks) : cooperative();
  const cudaLaunchConfig_t config =
      configure(program.groups * program.blocks, shared_bytes, on_stream, &attribute);
  return check(cudaLaunchKernelExC(&config, kernel.entry, arguments), "cudaLaunchKernelExC");
}

}  // namespace noprop::cuda
