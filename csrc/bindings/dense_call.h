// A dense layer's call without checks by name: either every tensor is plain and fits, or the answer
// is None, and Python's checks say what is wrong.
#pragma once

#include <array>
#include <cstdint>
#include <tuple>
#include <vector>

#include "call_layer.h"

namespace noprop {

// whether modes or transforms, which a call from here would pass by, see each of PyTorch's
// functions
inline bool is_followed() {
  const Py_ssize_t count = PyTuple_GET_SIZE(torch().followers);
  for (Py_ssize_t i = 0; i < count; ++i)
    if (PyObject_IsTrue(
            called(PyObject_CallNoArgs(PyTuple_GET_ITEM(torch().followers, i))).ptr()) != 0)
      return true;
  return false;
}

inline bool is_plain(py::handle tensor) {
  const PyTypeObject* const type = Py_TYPE(tensor.ptr());
  return type == torch().tensor || type == torch().parameter;
}

// A contiguous tensor of this kind on the CPU, of 1 to kMostDims dimensions, whose storage is held.
struct Held {
  TensorView view;
  Storage storage;
  Extent extent;

  // false: it is anything else
  bool take(py::handle tensor, Kind kind) {
    if (!describe(tensor, view)) throw py::error_already_set();
    if (view.kind != kind || !view.on_cpu || view.ndim < 1 || view.ndim > kMostDims) return false;
    int64_t dense = 1;
    for (int i = view.ndim; i-- > 0; dense *= view.shape[i])
      if (view.shape[i] != 1 && view.strides[i] != dense) return false;
    if (is_negated(tensor)) return false;
    extent = extent_of(view);
    if (extent.begin == 0 || extent.begin % static_cast<uintptr_t>(view.size()) != 0) return false;
    storage = storage_of(tensor);
    return storage.extent.covers(extent);
  }

  // the same of float32, and B rows (*, width)
  bool take_rows(py::handle tensor, int64_t width) {
    if (!is_plain(tensor) || !take(tensor, Kind::kFloat32)) return false;
    if (view.shape[view.ndim - 1] != width) return false;
    B = 1;
    for (int i = 0; i < view.ndim - 1; ++i) B *= view.shape[i];
    return true;
  }
  int64_t B = 0;
};

// an uninitialised tensor like the rows `like` (*, any), of another width
inline py::object new_rows(py::handle like, const TensorView& view, int64_t width) {
  std::array<py::object, kMostDims> sizes;
  std::array<PyObject*, kMostDims + 1> arguments = {like.ptr()};
  for (int i = 0; i < view.ndim; ++i) {
    const auto at = static_cast<size_t>(i);
    sizes[at] = called(PyLong_FromLongLong(i < view.ndim - 1 ? view.shape[i] : width));
    arguments[at + 1] = sizes[at].ptr();
  }
  return called(PyObject_Vectorcall(torch().new_empty, arguments.data(),
                                    static_cast<size_t>(view.ndim) + 1, nullptr));
}

inline float* floats_of(py::handle tensor) {
  TensorView view;
  if (!describe(tensor, view)) throw py::error_already_set();
  return view.as<float>();
}

// what the check finds, or false where it raises an error of Python's, which a check by name
// repeats
template <class Check>
bool holds(Check check) {
  try {
    return check();
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    return false;
  }
}

// (result, saved, None), with the status in place of None where the call has not ended well
inline py::object done(const py::object& result, const py::object& saved, const Result& status) {
  if (std::get<0>(status) == NOPROP_OK) return py::make_tuple(result, saved, py::none());
  return py::make_tuple(result, saved, status);
}

// y of one dense layer of x, weight and bias or None, as `done`; or None
inline py::object dense(const Plan& plan, const py::object& x, const py::object& weight,
                        const py::object& bias, int32_t threads) {
  const int64_t in = plan.in_widths[0], out = plan.layers[0].width;
  Held rows, matrix, vector;
  const bool fits =
      torch().exchange && is_dense_layer(plan) && holds([&] {
        if (is_followed() || !is_plain(weight) || !rows.take_rows(x, in)) return false;
        if (!matrix.take_rows(weight, in) || matrix.view.ndim != 2 || matrix.B != out) return false;
        return bias.is_none() || (vector.take_rows(bias, out) && vector.view.ndim == 1);
      });
  if (!fits) return py::none();
  const int64_t B = plan.rows(rows.B);
  const py::object y = new_rows(x, rows.view, out);
  std::vector<float> zeros(bias.is_none() ? static_cast<size_t>(out) : 0);
  NopropState state = {};
  state.weight.value = matrix.view.as<float>();
  state.bias.value = bias.is_none() ? zeros.data() : vector.view.as<float>();
  const int64_t only_slice = 0;
  const NopropSlices slices = {&plan.plan, &state, nullptr, nullptr, nullptr, &only_slice, 1};
  NopropInput input = {};
  input.data = rows.view.as<float>();
  input.replicas = 1;
  float* const to = floats_of(y);
  const Result status = without_gil(threads, [&](const NopropHost* host) {
    return noprop_forward_cpu(to, nullptr, &slices, &input, nullptr, nullptr, B, false, host);
  });
  return done(y, py::none(), status);
}

}  // namespace noprop
