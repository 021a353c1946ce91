// A dense layer's call on tensors as torch.nn.Linear has them: one slice, without a record, so that
// a small layer does not pay for reading one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "call_reader.h"
#include "cpu/threads/workspace.h"
#include "without_gil.h"

namespace noprop {

inline bool is_dense_layer(const Plan& plan) {
  return plan.layers.size() == 1 && plan.input_widths.size() == 1 && !plan.layers[0].norm &&
         plan.layers[0].kind == NOPROP_DENSE;
}

// What a layer's forward of B rows leaves for its backward. Python has it as a capsule, which costs
// less than an object of a bound class.
class LayerSaved {
 public:
  LayerSaved(const Plan& plan, int64_t B)
      : B_(plan.rows(B)),
        isa_(noprop_isa_used()),
        bytes_(noprop_saved_bytes_cpu(&plan.plan, B)),
        data_(static_cast<char*>(new_memory(static_cast<size_t>((bytes_ + 63) / 64 * 64)))) {
    if (!data_) throw std::bad_alloc();
  }

  static py::object made(const Plan& plan, int64_t B) {
    auto saved = std::make_unique<LayerSaved>(plan, B);
    PyObject* const capsule = PyCapsule_New(saved.get(), kName, [](PyObject* of) {
      delete static_cast<LayerSaved*>(PyCapsule_GetPointer(of, kName));
    });
    if (!capsule) throw py::error_already_set();
    saved.release();
    return py::reinterpret_steal<py::object>(capsule);
  }
  // null for None
  static const LayerSaved* in(py::handle capsule) {
    if (capsule.is_none()) return nullptr;
    const void* const saved = PyCapsule_GetPointer(capsule.ptr(), kName);
    if (!saved) throw py::error_already_set();
    return static_cast<const LayerSaved*>(saved);
  }

  char* data() const { return data_.get(); }
  int64_t B() const { return B_; }
  bool is_of_present_isa() const { return isa_ == noprop_isa_used(); }
  std::string isa() const { return noprop_isa_name(isa_); }
  bool fits(const Plan& plan, int64_t B) const {
    return B == B_ && noprop_saved_bytes_cpu(&plan.plan, B) == bytes_;
  }

 private:
  static constexpr const char* kName = "noprop_kernels.LayerSaved";
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };

  int64_t B_;
  int32_t isa_;
  int64_t bytes_;
  std::unique_ptr<char, Free> data_;
};

// Checks and addresses the tensors of a call. `op` and the tensors' names are for errors.
class LayerCall {
 public:
  LayerCall(const Plan& plan, const char* op)
      : tensors(op), plan_(plan), in_(plan.in_widths[0]), out_(plan.layers[0].width) {
    if (!is_dense_layer(plan))
      throw py::value_error(std::string(op) + ": plan must be one dense layer");
  }
  LayerCall(const LayerCall&) = delete;

  // weight (out, in) and bias (out,), or None: zeros of this call's own
  void take_params(py::handle weight, const py::object& bias, bool written) {
    state_.weight.value = matrix(weight, {"weight"}, written);
    state_.bias.value = vector(bias, {"bias"}, written);
    if (state_.bias.value) return;
    zeros_.resize(static_cast<size_t>(out_));
    state_.bias.value = zeros_.data();
  }

  // the moments that the optimizer keeps; of a bias that is None zeros of this call's own
  void take_moments(const Optimizer& optimizer, const py::tuple& moments, py::handle updates) {
    const auto part = [&](NopropParam& param, size_t m, size_t v, bool is_weight) {
      const char* const names[] = {"weight_m", "weight_v", "bias_m", "bias_v"};
      const auto take = [&](size_t i) {
        const py::object given = moments[i];
        if (is_weight) return matrix(given, {names[i]}, true);
        float* const found = vector(given, {names[i]}, true);
        return found ? found : own_zeros();
      };
      if (optimizer.has_m) param.m = take(m);
      if (optimizer.has_v) param.v = take(v);
    };
    part(state_.weight, 0, 1, true);
    part(state_.bias, 2, 3, false);
    const int64_t one = 1;
    updates_ = tensors.take(updates, {"updates"}, Kind::kInt64, &one, 1, 0, true).as<int64_t>();
  }

  void take_grads(py::handle weight, const py::object& bias) {
    state_.weight.grad = matrix(weight, {"weight's gradient"}, true);
    state_.bias.grad = vector(bias, {"bias' gradient"}, true);
  }

  // (*, width) of B rows; the first one that is taken sets B
  float* rows(py::handle tensor, const Name& name, int64_t width, bool written) {
    py::handle looked_at = tensor;
    const TensorView view = tensors.look(looked_at, name, written);
    int64_t shape[kMostDims];
    std::fill_n(shape, kMostDims, kAny);
    const int last = view.ndim > 0 ? view.ndim - 1 : 0;  // a number fits no shape of 1 dimension
    shape[last] = width;
    tensors.check(looked_at, name, view, Kind::kFloat32, shape, last + 1, 0);
    int64_t count = 1;
    for (int i = 0; i < last; ++i) count *= view.shape[i];
    if (B < 0) B = plan_.rows(count);
    if (count != B)
      tensors.refuse(name, "have " + std::to_string(B) + " rows, got " + std::to_string(count));
    tensors.hold(looked_at, name, view, written);
    return view.as<float>();
  }
  float* rows_or_null(const py::object& tensor, const Name& name, int64_t width, bool written) {
    return tensor.is_none() ? nullptr : rows(tensor, name, width, written);
  }

  void check_saved(const LayerSaved* saved) const {
    if (saved && !saved->fits(plan_, B))
      tensors.refuse({"saved"}, "be of the plan and its " + std::to_string(B) + " rows, got " +
                                    std::to_string(saved->B()) + " rows");
  }

  NopropSlices slices() const {
    return {&plan_.plan, &state_, nullptr, nullptr, updates_, &kOnlySlice, 1};
  }
  int64_t in() const { return in_; }
  int64_t out() const { return out_; }

  Tensors tensors;
  int64_t B = -1;

 private:
  static constexpr int64_t kOnlySlice = 0;

  float* matrix(py::handle tensor, const Name& name, bool written) {
    const int64_t shape[] = {out_, in_};
    return tensors.take(tensor, name, Kind::kFloat32, shape, 2, 0, written).as<float>();
  }
  float* vector(const py::object& tensor, const Name& name, bool written) {
    if (tensor.is_none()) return nullptr;
    return tensors.take(tensor, name, Kind::kFloat32, &out_, 1, 0, written).as<float>();
  }
  float* own_zeros() {
    more_zeros_.emplace_back(static_cast<size_t>(out_));
    return more_zeros_.back().data();
  }

  const Plan& plan_;
  int64_t in_, out_;
  NopropState state_ = {};
  int64_t* updates_ = nullptr;
  std::vector<float> zeros_;
  std::vector<std::vector<float>> more_zeros_;
};

// y (*, out) of x (*, in), and what backward needs in `saved`; either may be None
inline Result forward_layer(const Plan& plan, const char* op, const char* x_name,
                            const py::object& x, const py::object& weight, const py::object& bias,
                            const py::object& y_given, const py::object& saved_given,
                            int32_t threads) {
  LayerCall call(plan, op);
  const float* const from = call.rows(x, {x_name}, call.in(), false);
  call.take_params(weight, bias, false);
  if (y_given.is_none() && plan.layers[0].activation)
    call.tensors.refuse({"y"}, "be a tensor, as the layer is more than a product");
  float* const y = call.rows_or_null(y_given, {"y"}, call.out(), true);
  const LayerSaved* const saved = LayerSaved::in(saved_given);
  call.check_saved(saved);
  NopropInput input = {};
  input.data = from;
  input.replicas = 1;
  const NopropSlices slices = call.slices();
  return without_gil(call.tensors, threads, [&](const NopropHost* host) {
    return noprop_forward_cpu(y, saved ? saved->data() : nullptr, &slices, &input, nullptr, nullptr,
                              call.B, false, host);
  });
}

// d_x (*, in) or None, and the gradients (weight's, bias') or, with an optimizer, an update.
// `moments` are weight_m, weight_v, bias_m, bias_v; `applied` may be None.
inline Result backward_layer(const Plan& plan, const char* op, const py::object& saved_given,
                             const py::object& weight, const py::object& bias,
                             const py::object& d_y, const py::object& d_x_given,
                             const py::object& grads, const Optimizer* optimizer,
                             const py::tuple& moments, const py::object& updates, double lr,
                             double weight_decay, const py::object& applied_given,
                             int32_t threads) {
  LayerCall call(plan, op);
  const float* const from = call.rows(d_y, {"d_y"}, call.out(), false);
  call.take_params(weight, bias, optimizer != nullptr);
  if (optimizer) call.take_moments(*optimizer, moments, updates);
  if (!grads.is_none()) call.take_grads(item(grads, py::int_(0)), item(grads, py::int_(1)));
  float* d_x = call.rows_or_null(d_x_given, {"d_x"}, call.in(), true);
  const LayerSaved* const saved = LayerSaved::in(saved_given);
  if (!saved) call.tensors.refuse({"saved"}, "be of a forward, got None");
  call.check_saved(saved);
  NopropUpdateRule rule = {};
  if (optimizer) rule = optimizer->rule;
  rule.lr = &lr;
  rule.weight_decay = &weight_decay;
  uint8_t own_applied = 0;
  uint8_t* applied = &own_applied;
  if (!applied_given.is_none())
    applied = call.tensors.write(applied_given, {"applied"}, Kind::kBool, {1}).as<uint8_t>();
  const NopropSlices slices = call.slices();
  return without_gil(call.tensors, threads, [&](const NopropHost* host) {
    return noprop_backward_cpu(&slices, saved->data(), from, &d_x, &rule, applied, call.B, false,
                               host);
  });
}

}  // namespace noprop
