// A dense layer's repeated call: every tensor is what it was in the last checked call, or the
// answer is None, and Python's checks say what is wrong.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "dense_call.h"

namespace noprop {

inline bool same_shape(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// The tensors and options of a module with one dense layer, as a checked call found them.
class KnownLayer {
 public:
  // Of the module's __dict__ `state`, whose values `options` name, and the tensors among its
  // parameters and buffers: weight, bias, weight_m, weight_v, bias_m, bias_v, updates, or None what
  // it lacks. Null where they are not plain or share memory.
  static std::unique_ptr<KnownLayer> of(const py::object& plan, const py::dict& state,
                                        const py::tuple& options, const py::tuple& tensors) {
    std::unique_ptr<KnownLayer> made(new KnownLayer(plan));
    if (!torch().exchange || !is_dense_layer(made->plan_) ||
        !holds([&] { return made->take(state, options, tensors); }))
      return nullptr;
    return made;
  }

  // y and saved of x as `done`, or None
  py::object forward(const py::dict& state, const py::object& x, int32_t threads) const {
    Held rows;
    const bool fits = holds([&] {
      if (is_followed() || !is_same(state) || !rows.take_rows(x, in_)) return false;
      for (const Tensor& tensor : tensors_)
        if (!is_unmoved(tensor) || !is_as_before(tensor)) return false;
      return true;
    });
    if (!fits) return py::none();
    const py::object y = new_rows(x, rows.view, out_);
    const py::object saved = LayerSaved::made(plan_, rows.B);
    State own(*this);
    NopropInput input = {};
    input.data = rows.view.as<float>();
    input.replicas = 1;
    float* const to = floats_of(y);
    char* const kept = LayerSaved::in(saved)->data();
    const Result status = without_gil(threads, [&](const NopropHost* host) {
      return noprop_forward_cpu(to, kept, &own.slices, &input, nullptr, nullptr, rows.B, false,
                                host);
    });
    return done(y, saved, status);
  }

  // d_x or None of d_y, for whose layer `saved` was made, and an update, as `done`; or None
  py::object backward(const py::object& saved_given, const py::object& d_y, bool input_grad,
                      const Optimizer& optimizer, double lr, double weight_decay,
                      int32_t threads) const {
    const LayerSaved* const saved = LayerSaved::in(saved_given);
    Held rows;
    std::array<Storage, kTensors> storages;
    const bool fits =
        saved && saved->is_of_present_isa() && has(optimizer) && holds([&] {
          if (is_followed() || !rows.take_rows(d_y, out_) || !saved->fits(plan_, rows.B))
            return false;
          for (size_t i = 0; i < tensors_.size(); ++i)
            if (!is_unmoved(tensors_[i]) || !is_held(tensors_[i], storages[i]) ||
                tensors_[i].extent.meets(rows.extent))
              return false;
          return true;
        });
    if (!fits) return py::none();
    const py::object d_x = input_grad ? new_rows(d_y, rows.view, in_) : py::none();
    float* to = input_grad ? floats_of(d_x) : nullptr;
    State own(*this);
    NopropUpdateRule rule = optimizer.rule;
    rule.lr = &lr;
    rule.weight_decay = &weight_decay;
    uint8_t applied = 0;
    Writes writes = {*this};
    const Result status = without_gil(threads, [&](const NopropHost* host) {
      return noprop_backward_cpu(&own.slices, saved->data(), rows.view.as<float>(), &to, &rule,
                                 &applied, rows.B, false, host);
    });
    if (std::get<0>(status) == NOPROP_NO_MEMORY) writes.any = false;
    return done(d_x, py::none(), status);
  }

 private:
  static constexpr size_t kTensors = 7;

  struct Named {
    py::object name, value;
  };
  struct Tensor {
    py::object object;
    PyTypeObject* type;
    TensorView view;
    Extent extent;
    bool requires_grad;
  };

  // a call's own view of the layer; what it lacks are zeros
  struct State {
    explicit State(const KnownLayer& of) : state(of.state_) {
      if (!state.bias.value) {
        zeros.resize(static_cast<size_t>(3 * of.out_));
        state.bias.value = zeros.data();
        if (state.weight.m) state.bias.m = zeros.data() + of.out_;
        if (state.weight.v) state.bias.v = zeros.data() + 2 * of.out_;
      }
      slices = {&of.plan_.plan, &state, nullptr, nullptr, of.updates_, &kOnlySlice, 1};
    }
    State(const State&) = delete;

    static constexpr int64_t kOnlySlice = 0;
    NopropState state;
    std::vector<float> zeros;
    NopropSlices slices;
  };

  // tells PyTorch which tensors were written, also where a signal has stopped the call
  struct Writes {
    const KnownLayer& of;
    bool any = true;

    ~Writes() {
      if (!any) return;
      PyObject *type, *value, *trace;
      PyErr_Fetch(&type, &value, &trace);
      Py_XDECREF(PyObject_CallOneArg(torch().increment_version, of.written_.ptr()));
      PyErr_Restore(type, value, trace);
    }
  };

  explicit KnownLayer(const py::object& plan)
      : held_plan_(plan),
        plan_(plan.cast<const Plan&>()),
        in_(plan_.in_widths[0]),
        out_(plan_.layers[0].width) {}

  bool take(const py::dict& state, const py::tuple& options, const py::tuple& tensors) {
    for (const py::handle name : options) options_.push_back(named(state, name));
    const auto entries = [&](const char* of, std::vector<Named>& found) {
      for (const auto& [name, value] : py::dict(state[of]))
        found.push_back(
            {py::reinterpret_borrow<py::object>(name), py::reinterpret_borrow<py::object>(value)});
    };
    entries("_parameters", parameters_);
    entries("_buffers", buffers_);
    float** const to[] = {&state_.weight.value, &state_.bias.value, &state_.weight.m,
                          &state_.weight.v,     &state_.bias.m,     &state_.bias.v};
    for (size_t i = 0; i < kTensors; ++i) {
      const py::object tensor = tensors[i];
      const bool counts = i == kTensors - 1, is_matrix = i == 0 || i == 2 || i == 3;
      if (tensor.is_none()) continue;
      Held held;
      if (!is_plain(tensor) || !held.take(tensor, counts ? Kind::kInt64 : Kind::kFloat32))
        return false;
      const TensorView& view = held.view;
      const int64_t width = counts ? 1 : is_matrix ? in_ : out_;
      if (view.ndim != (is_matrix ? 2 : 1) || view.shape[view.ndim - 1] != width ||
          (is_matrix && view.shape[0] != out_))
        return false;
      for (const Tensor& other : tensors_)
        if (other.extent.meets(held.extent)) return false;
      tensors_.push_back(
          {tensor, Py_TYPE(tensor.ptr()), view, held.extent, flag(tensor, requires_grad_name())});
      written_.append(tensor);
      if (counts)
        updates_ = view.as<int64_t>();
      else
        *to[i] = view.as<float>();
    }
    return state_.weight.value && updates_ && is_same(state) && !is_followed();
  }

  static Named named(const py::dict& state, py::handle name) {
    return {py::reinterpret_borrow<py::object>(name), state[name]};
  }

  static bool flag(py::handle tensor, PyObject* name) {
    return called(PyObject_GetAttr(tensor.ptr(), name)).ptr() == Py_True;
  }
  static PyObject* requires_grad_name() {
    static PyObject* const name = PyUnicode_InternFromString("requires_grad");
    return name;
  }
  static PyObject* is_leaf_name() {
    static PyObject* const name = PyUnicode_InternFromString("is_leaf");
    return name;
  }

  // whether the module's options, parameters and buffers are the same objects
  bool is_same(const py::dict& state) const {
    static PyObject* const parameters = PyUnicode_InternFromString("_parameters");
    static PyObject* const buffers = PyUnicode_InternFromString("_buffers");
    for (const Named& option : options_)
      if (PyDict_GetItemWithError(state.ptr(), option.name.ptr()) != option.value.ptr())
        return false;
    const auto are = [&](PyObject* name, const std::vector<Named>& entries) {
      PyObject* const dict = PyDict_GetItemWithError(state.ptr(), name);
      if (!dict || !PyDict_Check(dict) ||
          static_cast<size_t>(PyDict_GET_SIZE(dict)) != entries.size())
        return false;
      for (const Named& entry : entries)
        if (PyDict_GetItemWithError(dict, entry.name.ptr()) != entry.value.ptr()) return false;
      return true;
    };
    return are(parameters, parameters_) && are(buffers, buffers_);
  }

  // where it was, in the same form
  static bool is_unmoved(const Tensor& tensor) {
    if (Py_TYPE(tensor.object.ptr()) != tensor.type) return false;
    TensorView now;
    if (!describe(tensor.object, now)) throw py::error_already_set();
    return now.data == tensor.view.data && now.kind == tensor.view.kind && now.on_cpu &&
           same_shape(now, tensor.view) &&
           std::equal(now.strides, now.strides + now.ndim, tensor.view.strides);
  }
  static bool is_held(const Tensor& tensor, Storage& storage) {
    storage = storage_of(tensor.object);
    return storage.extent.covers(tensor.extent) && !is_negated(tensor.object);
  }
  // and what autograd says of it, which a forward depends on
  static bool is_as_before(const Tensor& tensor) {
    Storage storage;
    return is_held(tensor, storage) &&
           flag(tensor.object, requires_grad_name()) == tensor.requires_grad &&
           flag(tensor.object, is_leaf_name());
  }

  // whether the moments are those of the optimizer
  bool has(const Optimizer& optimizer) const {
    return optimizer.has_m == (state_.weight.m != nullptr) &&
           optimizer.has_v == (state_.weight.v != nullptr) &&
           (!state_.bias.value || (optimizer.has_m == (state_.bias.m != nullptr) &&
                                   optimizer.has_v == (state_.bias.v != nullptr)));
  }

  const py::object held_plan_;
  const Plan& plan_;
  const int64_t in_, out_;
  std::vector<Named> options_, parameters_, buffers_;
  std::vector<Tensor> tensors_;
  py::list written_;
  NopropState state_ = {};
  int64_t* updates_ = nullptr;
};

}  // namespace noprop
