// The C interface of the machine: its instruction sets, processors and rate. Of the kernels'
// instruction sets calls take the best that runs here, or the one that a caller has set.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/threads/host.h"
#include "cpu/threads/pool.h"
#include "cpu/threads/processors.h"
#include "noprop.h"

namespace noprop {

extern const Isa k_avx512bf16, k_avx512, k_avx2, k_neon, k_baseline;

namespace {

#if defined(__x86_64__)
const Isa* const kIsas[] = {&k_avx512bf16, &k_avx512, &k_avx2, &k_baseline};  // best first
#elif defined(__aarch64__)
const Isa* const kIsas[] = {&k_neon};
#else
const Isa* const kIsas[] = {&k_baseline};
#endif
constexpr int32_t kNumIsas = sizeof kIsas / sizeof kIsas[0];

bool runs_here([[maybe_unused]] const Isa& isa) {
#if defined(__x86_64__)
  if (std::strncmp(isa.name, "avx512", 6) == 0)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           (std::strcmp(isa.name, "avx512bf16") != 0 || __builtin_cpu_supports("avx512bf16"));
  if (std::strcmp(isa.name, "avx2") == 0)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;  // every processor of this architecture has the others
}

int32_t best_isa() {
  for (int32_t i = 0; i < kNumIsas; ++i)
    if (runs_here(*kIsas[i])) return i;
  return kNumIsas - 1;
}

std::atomic<int32_t> used_isa{-1};

int32_t isa_index() {
  int32_t i = used_isa.load();
  if (i < 0) used_isa.store(i = best_isa());
  return i;
}

}  // namespace

const Isa& present_isa() { return *kIsas[isa_index()]; }

}  // namespace noprop

using namespace noprop;

extern "C" {

int32_t noprop_num_isas(void) { return kNumIsas; }
const char* noprop_isa_name(int32_t i) { return kIsas[i]->name; }
int32_t noprop_isa_runs(int32_t i) { return runs_here(*kIsas[i]); }
int32_t noprop_isa_used(void) { return isa_index(); }

int32_t noprop_set_isa(const char* name) {
  for (int32_t i = 0; i < kNumIsas; ++i)
    if (runs_here(*kIsas[i]) && (name == nullptr || std::strcmp(kIsas[i]->name, name) == 0)) {
      used_isa.store(i);
      return 1;
    }
  return 0;
}

int32_t noprop_processors(void) { return available_processors(); }
int32_t noprop_threads(int32_t wanted) { return granted_threads(wanted); }

double noprop_fma_gflop(int32_t threads, int64_t rounds) {
  const NopropHost quiet = {threads, nullptr, nullptr, nullptr};
  Host host(quiet, nullptr, false);
  std::vector<double> done(static_cast<size_t>(threads));
  run_tasks(threads, 0, host, [&](int64_t i, const Worker&) {
    done[static_cast<size_t>(i)] = present_isa().fma_gflop(rounds);
  });
  return std::accumulate(done.begin(), done.end(), 0.0);
}

}  // extern "C"
