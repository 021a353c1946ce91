#include "cpu/threads/host.h"

#include <algorithm>
#include <atomic>

#include "cpu/isa.h"
#include "cpu/threads/apart.h"
#include "cpu/threads/clock.h"
#include "cpu/threads/denormals.h"

namespace noprop {
namespace {

constexpr int64_t kMostNested = 16;  // each takes a part of the thread's stack

thread_local Host* innermost = nullptr;  // of this thread's calls that have their turn

struct Range {
  const float *begin, *end;
};

// the parameters of all slices up to the last one that the call names
std::vector<Range> parameters(const NopropSlices& slices) {
  const NopropPlan& plan = *slices.plan;
  const int64_t N =
      slices.n == 0 ? 0 : 1 + *std::max_element(slices.index, slices.index + slices.n);
  std::vector<Range> found;
  for (int32_t l = 0; l < plan.num_layers; ++l) {
    const NopropLayer& layer = plan.layers[l];
    const NopropState& state = slices.layers[l];
    int64_t inputs = 0;
    for (int32_t s = 0; s < layer.num_sources; ++s) {
      const int32_t source = layer.sources[s], j = source - plan.num_inputs;
      inputs += j < 0 ? plan.input_widths[source] : plan.layers[j].width;
    }
    const auto add = [&](const float* data, int64_t size) {
      if (data != nullptr) found.push_back({data, data + N * size});
    };
    add(state.weight.value, weights_of(layer, inputs));
    for (const float* data :
         {state.bias.value, state.norm_weight.value, state.norm_bias.value, state.running_mean})
      add(data, outputs_of(layer));
  }
  return found;
}

}  // namespace

Host::Host(const NopropHost& caller, const NopropSlices* slices, bool writes)
    : caller_(caller),
      slices_(slices),
      writes_(writes),
      outer_(innermost),
      depth_(outer_ == nullptr ? 0 : outer_->depth_ + 1),
      float_mode_(float_mode()) {
  if (outer_ != nullptr) {
    if (depth_ > kMostNested || conflicts()) status_ = NOPROP_BUSY;
    next_poll_ = now() + kPollSeconds;  // so that a short call is not interrupted in its turn
  } else {
    // a handler that runs while this waits may have forked, and made another call before
    while (!take_turn())
      if (!go_on(0)) {
        status_ = NOPROP_STOPPED;
        return;
      }
  }
  innermost = this;
}

Host::~Host() {
  if (innermost != this) return;
  innermost = outer_;
  if (pool_ != nullptr) end_turn();
}

bool Host::conflicts() const {
  if (slices_ == nullptr) return false;
  const auto ours = parameters(*slices_);
  for (const Host* other = outer_; other != nullptr; other = other->outer_) {
    if (other->slices_ == nullptr || !(writes_ || other->writes_)) continue;
    for (const Range& theirs : parameters(*other->slices_))
      for (const Range& range : ours)
        if (range.begin < theirs.end && theirs.begin < range.end) return true;
  }
  return false;
}

Workspace& Host::packed(int32_t input) {
  static thread_local std::vector<Workspace> kept(kMaxResults);
  auto& inputs = outer_ == nullptr ? kept : packed_;
  if (inputs.empty()) inputs = std::vector<Workspace>(kMaxResults);
  return inputs[static_cast<size_t>(input)];
}

NopropResult Host::result(bool ran) const {
  if (status_ != NOPROP_OK) return {status_, depth_ > kMostNested ? kMostNested : 0, 0};
  if (!ran) return {NOPROP_NO_MEMORY, 0, 0};
  return {stopped() ? NOPROP_STOPPED : NOPROP_OK, 0, 0};
}

bool Host::go_on(int32_t worker) {
  if (apart_ != nullptr) apart_->keep(worker);
  std::atomic_ref<int> stop(stopped_);
  if (stop.load(std::memory_order_relaxed)) return false;
  if (worker != 0 || caller_.poll == nullptr) return true;
  const double time = now();
  if (time < next_poll_) return true;
  next_poll_ = time + kPollSeconds;
  bool goes_on;
  {
    const FloatMode as_the_caller_has_it(float_mode_);
    goes_on = caller_.poll(caller_.poll_data) == 0;
  }
  if (pool_ != nullptr && forked()) throw Forked();
  if (!goes_on) stop.store(1, std::memory_order_relaxed);
  return goes_on;
}

bool Host::stopped() const {
  return std::atomic_ref<int>(const_cast<int&>(stopped_)).load(std::memory_order_relaxed) != 0;
}

}  // namespace noprop
