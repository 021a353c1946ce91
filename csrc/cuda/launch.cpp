// The C interface: it checks a launch, and keeps the text of an error.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "cuda/runtime.h"
#include "noprop_cuda.h"

namespace noprop::cuda {
namespace {

thread_local char text[512];

[[gnu::format(printf, 1, 2)]] int fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return 1;
}

int done(const char* reason) {
  if (reason == nullptr) {
    text[0] = 0;
    return 0;
  }
  return fail("%s", reason);
}

// the last value of an enum
template <class Enum>
constexpr int32_t kLast = static_cast<int32_t>(kNames<Enum>.size()) - 1;

bool is_precision(int32_t code) { return code >= 0 && code <= kLast<Precision>; }

int64_t shared_bytes(Precision precision, int32_t resident_floats) {
  return kernel_of(precision).scratch_bytes + int64_t{resident_floats} * 4;
}

int resident_blocks(int32_t device, Precision precision, int32_t resident_floats, int32_t* blocks) {
  NopropCudaDevice facts;
  if (const char* reason = describe_device(device, &facts)) return done(reason);
  if (facts.cooperative == 0) return fail("device %d has no cooperative launch", device);
  const int64_t bytes = shared_bytes(precision, resident_floats);
  if (bytes > facts.shared_bytes) {
    return fail("a thread block of device %d may have %lld bytes of shared memory, got %lld",
                device, static_cast<long long>(facts.shared_bytes), static_cast<long long>(bytes));
  }
  int each = 0;
  if (const char* reason = blocks_per_multiprocessor(device, precision, bytes, &each)) {
    return done(reason);
  }
  *blocks = each * facts.multiprocessors;
  return done(nullptr);
}

int resident_clusters(int32_t device, Precision precision, int32_t resident_floats, int32_t blocks,
                      int32_t* clusters) {
  NopropCudaDevice facts;
  if (const char* reason = describe_device(device, &facts)) return done(reason);
  if (facts.major < 9) {
    return fail("thread-block clusters need compute capability 9.0, device %d has %d.%d", device,
                facts.major, facts.minor);
  }
  if (blocks < 1 || blocks > kMostOfCluster) {
    return fail("a cluster may have 1 to %d thread blocks, got %d", kMostOfCluster, blocks);
  }
  int32_t most = 0;  // of thread blocks: whether one of this size fits at all
  if (resident_blocks(device, precision, resident_floats, &most)) return 1;
  *clusters = 0;
  return done(clusters_at_once(device, precision, shared_bytes(precision, resident_floats), blocks,
                               clusters));
}

// fails unless the thread blocks that wait for each other are sure to run at the same time
int check_residency(const Program& p, int32_t device) {
  int32_t most = 0;
  if (p.cluster) {
    if (resident_clusters(device, p.precision, p.resident_floats, p.blocks, &most)) return 1;
    if (most > 0) return 0;
    return fail("device %d has no room for a cluster of %d thread blocks of this program", device,
                p.blocks);
  }
  if (resident_blocks(device, p.precision, p.resident_floats, &most)) return 1;
  if (int64_t{p.groups} * p.blocks <= most) return 0;
  return fail(
      "device %d holds %d thread blocks of this program at the same time, got %d groups "
      "of %d",
      device, most, p.groups, p.blocks);
}

int check_sizes(const Program& p) {
  struct {
    const char* name;
    int64_t value, least, most;
  } const fields[] = {
      {"n", p.n, 0, INT32_MAX},
      {"K", p.K, 0, INT32_MAX},
      {"B", p.B, 1, INT32_MAX},
      {"groups", p.groups, 1, INT32_MAX},
      {"blocks", p.blocks, 1, INT32_MAX},
      {"cluster", p.cluster, 0, 1},
      {"precision", static_cast<int32_t>(p.precision), 0, kLast<Precision>},
      {"rule", static_cast<int32_t>(p.hyper.rule), 0, kLast<UpdateRule>},
      {"resident_floats", p.resident_floats, 0, INT32_MAX},
      {"num_stages", p.num_stages, 1, kMaxStages},
  };
  for (const auto& field : fields) {
    if (field.value < field.least || field.value > field.most) {
      return fail("%s of a program must be in %lld..%lld, got %lld", field.name,
                  static_cast<long long>(field.least), static_cast<long long>(field.most),
                  static_cast<long long>(field.value));
    }
  }
  return 0;
}

int check_tile(int stage, int32_t tile) {
  if (tile == 16 || tile == 32 || tile == 64) return 0;
  return fail("tile of stage %d must be 16, 32 or 64, got %d", stage, tile);
}

int check_resident(const Program& p, int stage, const UpdateWeightStage& s) {
  const int64_t end =
      s.resident + int64_t{s.resident_tiles} * moments(p.hyper.rule) * kTileH * kTileF;
  if (s.resident_tiles >= 0 && s.resident >= 0 && end <= p.resident_floats) return 0;
  return fail("resident moments of stage %d must lie in 0..resident_floats = %d, got %d..%lld",
              stage, p.resident_floats, s.resident, static_cast<long long>(end));
}

int check_stages(const Program& p) {
  for (int i = 0; i < p.num_stages; ++i) {
    const Stage& s = p.stages[i];
    const auto kind = static_cast<int32_t>(s.kind);
    if (kind < 0 || kind > kLast<Kind>) {
      return fail("kind of stage %d must be one of program.h, got %d", i, kind);
    }
    if (s.tiles < 0 || s.first < 0) {
      return fail("tiles and first of stage %d must be at least 0, got %d and %d", i, s.tiles,
                  s.first);
    }
    if (s.kind == Kind::kDense && check_tile(i, s.dense.tile)) return 1;
    if (s.kind == Kind::kResultGradient && check_tile(i, s.result_gradient.tile)) return 1;
    if (s.kind == Kind::kUpdateWeight && check_resident(p, i, s.update_weight)) return 1;
  }
  if (p.stages[p.num_stages - 1].barrier == 0) {
    return fail("the last stage of a program must have a barrier, stage %d has none",
                p.num_stages - 1);
  }
  return 0;
}

int launch_program(const Program& p, int32_t device, void* stream) {
  if (check_sizes(p) || check_stages(p)) return 1;
  if (check_residency(p, device)) return 1;
  if (p.n == 0 || p.K == 0) return done(nullptr);
  return done(launch(device, p, shared_bytes(p.precision, p.resident_floats), stream));
}

}  // namespace
}  // namespace noprop::cuda

using namespace noprop::cuda;

extern "C" {

int noprop_cuda_device_count(int32_t* count) { return done(count_devices(count)); }

int noprop_cuda_device(int32_t device, NopropCudaDevice* facts) {
  return done(describe_device(device, facts));
}

int noprop_cuda_scratch_bytes(int32_t precision, int64_t* bytes) {
  if (!is_precision(precision))
    return fail("precision must be in 0..%d, got %d", kLast<Precision>, precision);
  *bytes = kernel_of(static_cast<Precision>(precision)).scratch_bytes;
  return done(nullptr);
}

int noprop_cuda_resident_blocks(int32_t device, int32_t precision, int32_t resident_floats,
                                int32_t* blocks) {
  if (!is_precision(precision))
    return fail("precision must be in 0..%d, got %d", kLast<Precision>, precision);
  if (resident_floats < 0) {
    return fail("resident_floats must be at least 0, got %d", resident_floats);
  }
  return resident_blocks(device, static_cast<Precision>(precision), resident_floats, blocks);
}

int noprop_cuda_resident_clusters(int32_t device, int32_t precision, int32_t resident_floats,
                                  int32_t blocks, int32_t* clusters) {
  if (!is_precision(precision))
    return fail("precision must be in 0..%d, got %d", kLast<Precision>, precision);
  if (resident_floats < 0) {
    return fail("resident_floats must be at least 0, got %d", resident_floats);
  }
  return resident_clusters(device, static_cast<Precision>(precision), resident_floats, blocks,
                           clusters);
}

int noprop_cuda_launch(const void* program, int64_t bytes, int32_t device, void* stream) {
  if (bytes != static_cast<int64_t>(sizeof(Program))) {
    return fail("a program must have %zu bytes, got %lld", sizeof(Program),
                static_cast<long long>(bytes));
  }
  return launch_program(*static_cast<const Program*>(program), device, stream);
}

const char* noprop_cuda_error(void) { return text; }

}  // extern "C"
