// The C interface of what blocks and the output head share: the levels of a learned gamma, their
// gradient, and the update.
#include <algorithm>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/threads/host.h"
#include "cpu/threads/pool.h"
#include "noprop.h"

using namespace noprop;

namespace {

// Parts of `count` for one task: all where the work, in hyperbolic tangents, is less than handing
// out takes, else a few vectors.
int64_t part_of(int64_t count, int64_t tangents, int64_t least) {
  return tangents < 16384 ? std::max<int64_t>(count, 1) : least;
}

}  // namespace

extern "C" {

NopropResult noprop_levels_cpu(const NopropLevels* out, const NopropGamma* gamma,
                               const NopropWeighting* weighting, const double* t,
                               const double* u_squared, int64_t D, int64_t B,
                               const NopropHost* caller) {
  Host host(*caller, nullptr, false);
  if (host.status()) return host.result(false);
  const LevelsTask task = {
      .out = out,
      .gamma = gamma,
      .weighting = weighting,
      .t = t,
      .u_squared = u_squared,
      .D = D,
      .B = B,
  };
  const int64_t most = part_of(B, B * gamma->hidden, 64);
  const int64_t bytes = present_isa().levels_bytes(gamma->hidden);
  const auto run = [&](int64_t r, int64_t first, int64_t rows, char* workspace) {
    present_isa().levels_rows(task, r, first, rows, workspace);
  };
  return run_rows(gamma->R, B, most, bytes, host, run);
}

NopropResult noprop_levels_gradient_cpu(const NopropGammaGrads* out, const NopropGamma* gamma,
                                        const NopropWeighting* weighting, const double* t,
                                        const double* net, const double* net_slope,
                                        const NopropLevelsGrads* given, const double* u_squared,
                                        int64_t D, int64_t B, const NopropHost* caller) {
  Host host(*caller, nullptr, false);
  if (host.status()) return host.result(false);
  const LevelsGradientTask task = {
      .out = out,
      .gamma = gamma,
      .weighting = weighting,
      .t = t,
      .net = net,
      .net_slope = net_slope,
      .given = given,
      .u_squared = u_squared,
      .D = D,
      .B = B,
  };
  const int64_t H = gamma->hidden, most = part_of(H, B * H, 128);
  const int64_t bytes = present_isa().levels_gradient_bytes(most, B);
  const auto run = [&](int64_t r, int64_t first, int64_t units, char* workspace) {
    present_isa().levels_gradient(task, r, first, units, workspace);
  };
  return run_rows(gamma->R, H, most, bytes, host, run);
}

NopropResult noprop_update_shared_cpu(const NopropParam* params, const int64_t* counts,
                                      int32_t num_params, int64_t R, const uint8_t* apply,
                                      uint8_t* applied, int64_t* updates, int64_t* draws,
                                      const NopropUpdateRule* rule, const NopropHost* caller) {
  Host host(*caller, nullptr, true);
  if (host.status()) return host.result(false);
  // one task, in whose middle nothing polls: a signal handler meets no half of an update
  return host.result(run_tasks(1, 0, host, [&](int64_t, const Worker&) {
    for (int64_t r = 0; r < R; ++r) {
      bool moves = apply[r] != 0;
      for (int32_t p = 0; moves && p < num_params; ++p)
        moves = present_isa().all_finite(params[p].grad + r * counts[p], NOPROP_FLOAT32, counts[p]);
      applied[r] = moves;
      draws[r] += 1;
      if (!moves) continue;
      present_isa().update_shared(params, counts, num_params, r, *rule, updates[r]);
      updates[r] += 1;
    }
  }));
}

}  // extern "C"
