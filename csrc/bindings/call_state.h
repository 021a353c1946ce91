// The slices of a call (calls.py's Slices): the state's memory, and which slices run.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <unordered_map>
#include <vector>

#include "call_plan.h"
#include "tensors.h"

namespace noprop {

constexpr int64_t kMost64 = std::numeric_limits<int64_t>::max();

// an attribute, whose name is a literal: Python's text of it is made once
inline py::object get(py::handle object, const char* name) {
  static thread_local std::unordered_map<const char*, PyObject*> made;
  PyObject*& text = made[name];
  if (text == nullptr) text = PyUnicode_InternFromString(name);
  PyObject* const found = text == nullptr ? nullptr : PyObject_GetAttr(object.ptr(), text);
  if (found == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

inline py::object item(const py::object& mapping, py::handle key) {
  PyObject* found = PyObject_GetItem(mapping.ptr(), key.ptr());
  if (found) return py::reinterpret_steal<py::object>(found);
  if (!PyErr_ExceptionMatches(PyExc_KeyError)) throw py::error_already_set();
  PyErr_Clear();
  return py::none();
}

inline int64_t integer(const Tensors& tensors, py::handle object, const char* name, int64_t least,
                       int64_t most = kMost64) {
  const py::object value = get(object, name);
  int overflow = 0;
  const int64_t number = PyLong_Check(value.ptr())
                             ? PyLong_AsLongLongAndOverflow(value.ptr(), &overflow)
                             : (overflow = 1, int64_t{0});
  if (overflow || number < least || number > most)
    tensors.refuse({name}, "be an integer in " + std::to_string(least) + ".." +
                               std::to_string(most) + ", got " + std::string(py::repr(value)));
  return number;
}

// How a call uses the state.
struct Use {
  bool updates = false;     // params, moments and `updates` are written
  bool statistics = false;  // the running ones are written
  bool draws = false;       // `draws` is written, and seeds are read
};

// The state of the slices and which of them run.
struct Slices {
  std::vector<NopropState> states;
  std::vector<int64_t> index;  // our own, since it is checked here and read later
  NopropSlices slices = {};
  int64_t N = kAny, n = 0;

  Slices(Tensors& tensors, const Plan& plan, py::handle call, const Use& use,
         const Optimizer* optimizer)
      : state_(call.attr("slices")), tensors_(tensors) {
    const py::object params = get(state_, "params"), stats = get(state_, "stats");
    const py::object m = get(state_, "m"), v = get(state_, "v");
    const bool moves_m = use.updates && optimizer->has_m;
    const bool moves_v = use.updates && optimizer->has_v;
    for (size_t l = 0; l < plan.layers.size(); ++l) {
      const int64_t H = plan.layers[l].width;
      const auto param = [&](const py::str& key, std::initializer_list<int64_t> shape) {
        NopropParam found = {};
        found.value = floats(params, key, "", shape, use.updates);
        if (moves_m) found.m = floats(m, key, "_m", shape, true);
        if (moves_v) found.v = floats(v, key, "_v", shape, true);
        return found;
      };
      NopropState state = {};
      const Plan::Keys& keys = plan.keys[l];
      if (l == 0) N = first_dim(params, keys.weight);
      const NopropLayer& layer = plan.layers[l];
      const int64_t C = layer.in.channels, O = layer.shape.channels, k = layer.kernel_size;
      const bool is_conv = layer.kind == NOPROP_CONV2D;
      state.weight = is_conv ? param(keys.weight, {N, O, C, k, k})
                             : param(keys.weight, {N, H, plan.in_widths[l]});
      state.bias = param(keys.bias, {N, is_conv ? O : H});
      if (plan.layers[l].norm) {
        state.norm_weight = param(keys.norm_weight, {N, H});
        state.norm_bias = param(keys.norm_bias, {N, H});
        state.running_mean = floats(stats, keys.running_mean, "", {N, H}, use.statistics);
        state.running_var = floats(stats, keys.running_var, "", {N, H}, use.statistics);
      }
      states.push_back(state);
    }
    take_index();
    slices = {&plan.plan,
              states.data(),
              use.draws ? counter("seeds", false) : nullptr,
              use.draws && use.updates ? counter("draws", true) : nullptr,
              use.updates ? counter("updates", true) : nullptr,
              index.data(),
              n};
  }
  Slices(const Slices&) = delete;

  // gradients (n, ...) by parameter
  void take_grads(const Plan& plan, const py::object& grads, bool written) {
    const auto grad = [&](NopropParam& param, const py::str& key,
                          std::initializer_list<int64_t> shape) {
      param.grad = floats(grads, key, ".grad", shape, written);
    };
    for (size_t l = 0; l < plan.layers.size(); ++l) {
      const int64_t H = plan.layers[l].width;
      const Plan::Keys& keys = plan.keys[l];
      const NopropLayer& layer = plan.layers[l];
      const int64_t C = layer.in.channels, O = layer.shape.channels, k = layer.kernel_size;
      if (layer.kind == NOPROP_CONV2D) {
        grad(states[l].weight, keys.weight, {n, O, C, k, k});
        grad(states[l].bias, keys.bias, {n, O});
        continue;
      }
      grad(states[l].weight, keys.weight, {n, H, plan.in_widths[l]});
      grad(states[l].bias, keys.bias, {n, H});
      if (!plan.layers[l].norm) continue;
      grad(states[l].norm_weight, keys.norm_weight, {n, H});
      grad(states[l].norm_bias, keys.norm_bias, {n, H});
    }
  }

  // batch statistics (n, H) by the name of the running one
  void take_stats(const Plan& plan, const py::object& stats) {
    for (size_t l = 0; l < plan.layers.size(); ++l) {
      if (!plan.layers[l].norm) continue;
      const int64_t H = plan.layers[l].width;
      states[l].batch_mean = floats(stats, plan.keys[l].running_mean, " of a batch", {n, H}, true);
      states[l].batch_var = floats(stats, plan.keys[l].running_var, " of a batch", {n, H}, true);
    }
  }

 private:
  float* floats(const py::object& group, const py::str& key, const char* suffix,
                std::initializer_list<int64_t> shape, bool written) {
    return tensors_
        .take(item(group, key), {"", key.ptr(), suffix}, Kind::kFloat32, shape.begin(),
              static_cast<int>(shape.size()), 0, written)
        .as<float>();
  }

  int64_t first_dim(const py::object& params, const py::str& key) {
    py::object weight = item(params, key);
    py::handle looked_at = weight;
    const TensorView view = tensors_.look(looked_at, {"", key.ptr()}, false);
    return view.ndim == 0 ? 0 : view.shape[0];
  }

  int64_t* counter(const char* name, bool written) {
    const int64_t shape[] = {N};
    return tensors_.take(get(state_, name), {name}, Kind::kInt64, shape, 1, 0, written)
        .as<int64_t>();
  }

  void take_index() {
    const TensorView view =
        tensors_.copied(get(state_, "index"), {"index"}, Kind::kInt64, {kAny}, index);
    n = view.shape[0];
    std::vector<bool> seen(static_cast<size_t>(N));
    for (const int64_t at : index) {
      if (at < 0 || at >= N || seen[static_cast<size_t>(at)])
        tensors_.refuse({"index"}, "have distinct slices in 0.." + std::to_string(N - 1) +
                                       ", got " + tuple_text(index.data(), static_cast<int>(n)));
      seen[static_cast<size_t>(at)] = true;
    }
  }

  py::object state_;
  Tensors& tensors_;
};

}  // namespace noprop
