// The update of what blocks and the output head share, replica by replica.
#pragma once

#include "cpu/isa.h"
#include "cpu/kernels/update.h"

namespace noprop {
namespace {

// of each parameter that has `count` numbers a replica, by its gradient
inline void update_shared(const NopropParam* params, const int64_t* counts, int32_t num, int64_t r,
                          const NopropUpdateRule& rule, int64_t updates) {
  const UpdateScalars scalars =
      make_scalars(rule, rule.lr[r * rule.lr_stride_slice],
                   rule.weight_decay[r * rule.decay_stride_slice], updates);
  for (int32_t p = 0; p < num; ++p) {
    const int64_t count = counts[p], at = r * count;
    const NopropParam& param = params[p];
    const Run run = {param.value + at, param.m ? param.m + at : nullptr,
                     param.v ? param.v + at : nullptr};
    update_run(run, param.grad + at, count, scalars);
  }
}

}  // namespace
}  // namespace noprop
