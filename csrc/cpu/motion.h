// What changes from one evaluation of a chain's network to the next, so that the rest need not be
// computed again.
#pragma once

#include "cpu/isa.h"

namespace noprop {
namespace {  // each instruction set has a copy of its own

// What an evaluation computes of a result.
enum class Pace : uint8_t {
  kStill,   // nothing, unless it runs another block than the one before
  kTimed,   // it once, for all samples
  kMoving,  // it for each sample
};

struct Motion {
  Pace pace[kMaxResults];
  // Results that depend on t alone are the same for all rows: they are computed for many
  // evaluations at once, which are then the rows of a batch.
  bool of_t[kMaxResults];
  bool spread[kMaxResults];  // of those, the ones that a layer then needs for each row
  // By layer: its leading sources that are still, whose sums are kept, and its trailing sources
  // that depend on t alone, whose sums are numbers beside its bias.
  int leading[kMaxResults], trailing[kMaxResults];

  // t_input: the input that changes with the evaluation and is the same for all rows, or -1
  Motion(const NopropPlan& plan, int32_t t_input, bool keeps_sums) {
    for (int32_t j = 0; j < plan.num_inputs; ++j) {
      pace[j] = j == plan.z ? Pace::kMoving : j == t_input ? Pace::kTimed : Pace::kStill;
      of_t[j] = j == t_input;
      spread[j] = false;
    }
    for (int32_t l = 0; l < plan.num_layers; ++l) {
      const NopropLayer& layer = plan.layers[l];
      const int32_t r = plan.num_inputs + l;
      const bool is_dense = layer.kind == NOPROP_DENSE;
      pace[r] = layer.add >= 0 ? pace[layer.add] : Pace::kStill;
      of_t[r] = is_dense && (layer.add < 0 || of_t[layer.add]);
      spread[r] = false;
      leading[l] = trailing[l] = 0;
      for (int32_t s = 0; s < layer.num_sources; ++s) {
        const int32_t source = layer.sources[s];
        if (pace[source] > pace[r]) pace[r] = pace[source];
        of_t[r] = of_t[r] && of_t[source];
      }
      if (of_t[r]) continue;
      if (is_dense) split(layer, r, l, keeps_sums);
      for (int32_t s = 0; s < layer.num_sources - trailing[l]; ++s)
        spread[layer.sources[s]] = of_t[layer.sources[s]] || spread[layer.sources[s]];
      if (layer.add >= 0) spread[layer.add] = of_t[layer.add] || spread[layer.add];
    }
  }

 private:
  void split(const NopropLayer& layer, int32_t r, int32_t l, bool keeps_sums) {
    const int32_t count = layer.num_sources;
    while (trailing[l] < count && of_t[layer.sources[count - 1 - trailing[l]]]) ++trailing[l];
    if (!keeps_sums || pace[r] == Pace::kStill) return;
    while (leading[l] < count && pace[layer.sources[leading[l]]] == Pace::kStill) ++leading[l];
  }
};

}  // namespace
}  // namespace noprop
