// Checks of what a call's tensors hold, before anything is written.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/threads/pool.h"

namespace noprop {

constexpr NopropResult kFine = {NOPROP_OK, 0, 0};

inline NopropResult check_indices(const int64_t* indices, int64_t count, int64_t rows) {
  for (int64_t at = 0; at < count; ++at)
    if (indices[at] < 0 || indices[at] >= rows) return {NOPROP_BAD_INDEX, at, indices[at]};
  return kFine;
}

// checks the indices, then the labels; the slices' stride may be 0
inline NopropResult check_labels(const NopropLabels& y, int64_t K, int64_t n, int64_t B,
                                 int64_t M) {
  if (y.indices) {
    const int64_t count = K * y.replicas * B;
    if (const auto bad = check_indices(y.indices, count, y.rows); bad.status) return bad;
    for (int64_t at = 0; at < count; ++at) {
      const int64_t label = y.data[y.indices[at]];
      if (label < 0 || label >= M) return {NOPROP_BAD_LABEL, y.indices[at], label};
    }
    return kFine;
  }
  for (int64_t k = 0; k < K && (k == 0 || y.stride_k); ++k)
    for (int64_t i = 0; i < n && (i == 0 || y.stride_slice); ++i)
      for (int64_t b = 0; b < B; ++b) {
        const int64_t label = y.data[k * y.stride_k + i * y.stride_slice + b];
        if (label < 0 || label >= M) return {NOPROP_BAD_LABEL, b, label};
      }
  return kFine;
}

// Checks that all features that the call will read are finite, rows in parallel.
inline NopropResult check_input(const Isa& isa, const NopropInput& input, int64_t j, int64_t width,
                                int64_t K, int64_t n, int64_t B, Host& host) {
  if (input.dtype == NOPROP_UINT8) return kFine;
  const int64_t steps = input.stride_k ? K : 1, slices = input.stride_slice ? n : 1;
  const int64_t runs =
      input.indices ? K * input.replicas : std::min(K, steps) * std::min(n, slices);
  std::atomic<bool> finite{true};
  const auto* data = static_cast<const char*>(input.data);
  const int64_t size = bytes_of(input.dtype);
  const bool ran = run_tasks(runs, 0, host, [&](int64_t run, const Worker&) {
    for (int64_t b = 0; b < B; ++b) {
      const int64_t at = input.indices ? input.indices[run * B + b] * width
                                       : run / slices * input.stride_k +
                                             run % slices * input.stride_slice + b * width;
      if (!isa.all_finite(data + at * size, input.dtype, width)) finite.store(false);
    }
  });
  if (!ran) return host.result(ran);
  return finite ? kFine : NopropResult{NOPROP_BAD_INPUT, 0, j};
}

}  // namespace noprop
