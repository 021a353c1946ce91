// The memory of a call's tensors. Python can change a tensor at any time: its type, shape, strides,
// memory and the object itself. So each tensor is checked where its address is taken, and its
// storage is held until the call ends.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "dlpack_exchange.h"

namespace noprop {

namespace py = pybind11;

// The functions of PyTorch that the extension calls; it does not link PyTorch.
struct Torch {
  PyTypeObject* tensor = nullptr;
  PyObject *untyped_storage = nullptr, *is_neg = nullptr, *resolve_neg = nullptr;
  PyObject* storage_data_ptr = nullptr;
  const dlpack::ExchangeApi* exchange = nullptr;  // null: tensors are read by their attributes
};

inline Torch& torch() {
  static Torch used;
  return used;
}

// Sets the tensor type and how tensors are read. `capsule` is
// torch.Tensor.__dlpack_c_exchange_api__ or None.
inline void use_torch(const py::object& tensor, const py::object& storage,
                      const py::object& capsule) {
  const auto own = [](const py::object& of, const char* name) {
    return py::object(of.attr(name)).release().ptr();  // of the process, as the extension is
  };
  torch() = {reinterpret_cast<PyTypeObject*>(py::object(tensor).release().ptr()),
             own(tensor, "untyped_storage"), own(tensor, "is_neg"), own(tensor, "resolve_neg"),
             own(storage, "data_ptr")};
  if (capsule.is_none()) return;
  void* api = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (!api) throw py::error_already_set();
  torch().exchange = dlpack::of_version(api);
}

enum class Kind { kFloat32, kFloat64, kBFloat16, kUInt8, kInt64, kBool, kOther };

struct KindFacts {
  Kind kind;
  const char* name;
  dlpack::DataType type;
};

inline constexpr KindFacts kKinds[] = {
    {Kind::kFloat32, "torch.float32", {dlpack::kFloat, 32, 1}},
    {Kind::kFloat64, "torch.float64", {dlpack::kFloat, 64, 1}},
    {Kind::kBFloat16, "torch.bfloat16", {dlpack::kBfloat, 16, 1}},
    {Kind::kUInt8, "torch.uint8", {dlpack::kUInt, 8, 1}},
    {Kind::kInt64, "torch.int64", {dlpack::kInt, 64, 1}},
    {Kind::kBool, "torch.bool", {dlpack::kBool, 8, 1}},
};

inline const KindFacts& facts_of(Kind kind) { return kKinds[static_cast<int>(kind)]; }

// the name of a tensor in errors: a text, or a name of the plan and a suffix
struct Name {
  const char* text = "";
  PyObject* key = nullptr;
  const char* suffix = "";

  std::string str() const {
    return (key ? std::string(py::str(py::handle(key))) : std::string(text)) + suffix;
  }
};

inline std::string tuple_text(const int64_t* values, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) {
    if (i) text += ", ";
    text += values[i] < 0 ? "any" : std::to_string(values[i]);
  }
  return text + (count == 1 ? ",)" : ")");
}

constexpr int kMostDims = 8;
constexpr int64_t kAny = -1;  // of a shape: any size

// the present state of a tensor
struct TensorView {
  char* data = nullptr;
  Kind kind = Kind::kOther;
  bool on_cpu = false;
  int ndim = 0;
  int64_t shape[kMostDims] = {}, strides[kMostDims] = {};

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  int64_t size() const { return facts_of(kind).type.bits / 8; }
};

class Tensors {
 public:
  explicit Tensors(const char* op) : op_(op) {
    held_.reserve(64);
    ranges_.reserve(64);
  }
  Tensors(const Tensors&) = delete;

  [[noreturn]] void refuse(const Name& name, const std::string& must) const {
    throw py::value_error(std::string(op_) + ": " + name.str() + " must " + must);
  }

  // A tensor that the call reads: of this kind and shape, and contiguous except for the first
  // `loose` dimensions, whose strides may be any.
  TensorView read(py::handle tensor, const Name& name, Kind kind,
                  std::initializer_list<int64_t> shape, int loose = 0) {
    return take(tensor, name, kind, shape.begin(), static_cast<int>(shape.size()), loose, false);
  }

  // A tensor that the call writes: nothing else of the call may share its memory.
  TensorView write(py::handle tensor, const Name& name, Kind kind,
                   std::initializer_list<int64_t> shape) {
    return take(tensor, name, kind, shape.begin(), static_cast<int>(shape.size()), 0, true);
  }

  TensorView take(py::handle tensor, const Name& name, Kind kind, const int64_t* shape, int ndim,
                  int loose, bool written) {
    TensorView view = look(tensor, name, written);
    check(tensor, name, view, kind, shape, ndim, loose);
    hold(tensor, name, view, written);
    return view;
  }

  // Copies numbers that are checked before a call and read during it.
  template <class T>
  TensorView copied(py::handle tensor, const Name& name, Kind kind,
                    std::initializer_list<int64_t> shape, std::vector<T>& values) {
    const TensorView view = read(tensor, name, kind, shape);
    int64_t count = 1;
    for (int i = 0; i < view.ndim; ++i) count *= view.shape[i];
    values.assign(view.as<T>(), view.as<T>() + count);
    if (count > 0) ranges_.pop_back();  // the kernels do not read it
    return view;
  }

  // a tensor whose kind and shape the caller checks
  TensorView look(py::handle& tensor, const Name& name, bool written) {
    PyTypeObject* type = Py_TYPE(tensor.ptr());
    if (type != torch().tensor && !PyType_IsSubtype(type, torch().tensor))
      refuse(name, std::string("be a tensor, got ") + type->tp_name);
    if (is_negated(tensor)) {
      if (written) refuse(name, "not be a negated view where it is written");
      PyObject* resolved = PyObject_CallOneArg(torch().resolve_neg, tensor.ptr());
      if (!resolved) refuse_unreadable(tensor, name);
      held_.push_back(py::reinterpret_steal<py::object>(resolved));
      tensor = held_.back();
    }
    return torch().exchange ? by_exchange(tensor, name) : by_attributes(tensor, name);
  }

  void check(py::handle tensor, const Name& name, const TensorView& view, Kind kind,
             const int64_t* shape, int ndim, int loose) const {
    bool fits = view.ndim == ndim;
    for (int i = 0; fits && i < ndim; ++i) fits = shape[i] == kAny || shape[i] == view.shape[i];
    if (!fits)
      refuse(name, "have shape " + tuple_text(shape, ndim) + ", got " +
                       tuple_text(view.shape, view.ndim));
    if (view.kind != kind)
      refuse(name, std::string("be ") + facts_of(kind).name + ", got " + told(tensor, "dtype"));
    if (!view.on_cpu) refuse(name, "be on cpu, got " + told(tensor, "device"));
    int64_t dense = 1;
    bool empty = false;
    for (int i = 0; i < ndim; ++i) empty |= view.shape[i] == 0;
    for (int i = ndim - 1; i >= loose && !empty; --i) {
      if (view.shape[i] != 1 && view.strides[i] != dense)
        refuse(name, "be contiguous, got strides " + tuple_text(view.strides, ndim) + " of shape " +
                         tuple_text(view.shape, ndim));
      dense *= view.shape[i];
    }
  }

  // Holds the checked memory, and records its range.
  void hold(py::handle tensor, const Name& name, const TensorView& view, bool written) {
    int64_t last = 0;  // the furthest element
    for (int i = 0; i < view.ndim; ++i) {
      if (view.shape[i] == 0) return;
      last += (view.shape[i] - 1) * view.strides[i];
    }
    const auto begin = reinterpret_cast<uintptr_t>(view.data);
    const auto bytes = static_cast<uintptr_t>((last + 1) * view.size());
    const auto lacks = [&](const std::string& got) {
      refuse(name,
             "have memory for its shape " + tuple_text(view.shape, view.ndim) + ", got " + got);
    };
    if (begin == 0) lacks("none");
    py::object storage = call(torch().untyped_storage, tensor);
    const Py_ssize_t length = PyObject_Length(storage.ptr());
    const py::object start = call(torch().storage_data_ptr, storage);
    const uintptr_t base = PyLong_AsSize_t(start.ptr());
    if (PyErr_Occurred()) throw py::error_already_set();
    if (begin < base || begin + bytes > base + static_cast<uintptr_t>(length))
      lacks(std::to_string(length) + " bytes");
    if (begin % static_cast<uintptr_t>(view.size()) != 0)
      refuse(name, "be aligned to its dtype, got an odd address");
    held_.push_back(std::move(storage));
    ranges_.push_back({begin, begin + bytes, written, name});
    has_written_ = has_written_ || written;
  }

  // The last check before a call: written memory must be shared with nothing else.
  void check_apart() {
    if (!has_written_) return;
    std::sort(ranges_.begin(), ranges_.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
    const Range *furthest = nullptr, *furthest_written = nullptr;
    for (const Range& range : ranges_) {
      const Range* before = range.written ? furthest : furthest_written;
      if (before && before->end > range.begin) {
        const bool first = range.written;
        refuse((first ? range : *before).name,
               "share no memory, since it is written, got that of " +
                   (first ? *before : range).name.str());
      }
      if (!furthest || range.end > furthest->end) furthest = &range;
      if (range.written && (!furthest_written || range.end > furthest_written->end))
        furthest_written = &range;
    }
  }

 private:
  struct Range {
    uintptr_t begin, end;
    bool written;
    Name name;
  };

  static py::object call(PyObject* function, py::handle argument) {
    PyObject* result = PyObject_CallOneArg(function, argument.ptr());
    if (!result) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  }

  static bool is_negated(py::handle tensor) {
    return call(torch().is_neg, tensor).ptr() == Py_True;
  }

  static std::string told(py::handle tensor, const char* attribute) {
    return py::str(tensor.attr(attribute));
  }

  [[noreturn]] void refuse_unreadable(py::handle tensor, const Name& name) const {
    py::error_already_set error;
    if (!error.matches(PyExc_Exception)) throw error;
    std::string reason = py::str(error.value());
    reason = reason.substr(0, reason.find('\n'));
    refuse(name, "be a strided tensor with memory on the CPU, got " +
                     std::string(Py_TYPE(tensor.ptr())->tp_name) + ": " + reason);
  }

  TensorView by_exchange(py::handle tensor, const Name& name) const {
    dlpack::Tensor told = {};
    if (torch().exchange->dltensor_from_py_object_no_sync(tensor.ptr(), &told) != 0)
      refuse_unreadable(tensor, name);
    TensorView view;
    view.data = static_cast<char*>(told.data) + told.byte_offset;
    view.on_cpu = told.device.type == dlpack::kCpu;
    for (const KindFacts& facts : kKinds)
      if (facts.type.code == told.dtype.code && facts.type.bits == told.dtype.bits &&
          told.dtype.lanes == 1)
        view.kind = facts.kind;
    check_dims(name, told.ndim);
    view.ndim = told.ndim;
    std::copy_n(told.shape, told.ndim, view.shape);
    std::copy_n(told.strides, told.ndim, view.strides);
    return view;
  }

  // the same where tensors have no exchange interface
  TensorView by_attributes(py::handle tensor, const Name& name) const {
    try {
      TensorView view;
      if (std::string(py::str(tensor.attr("layout"))) != "torch.strided")
        refuse(name, "be a strided tensor, got " + told(tensor, "layout"));
      view.on_cpu = told(tensor, "device") == "cpu";
      const std::string dtype = told(tensor, "dtype");
      for (const KindFacts& facts : kKinds)
        if (dtype == facts.name) view.kind = facts.kind;
      const auto shape = tensor.attr("shape").cast<std::vector<int64_t>>();
      const auto strides = tensor.attr("stride")().cast<std::vector<int64_t>>();
      check_dims(name, static_cast<int>(shape.size()));
      view.ndim = static_cast<int>(shape.size());
      std::copy(shape.begin(), shape.end(), view.shape);
      std::copy(strides.begin(), strides.end(), view.strides);
      if (view.on_cpu)
        view.data = reinterpret_cast<char*>(tensor.attr("data_ptr")().cast<uintptr_t>());
      return view;
    } catch (py::error_already_set& error) {
      error.restore();
      refuse_unreadable(tensor, name);
    }
  }

  void check_dims(const Name& name, int ndim) const {
    if (ndim > kMostDims)
      refuse(name, "have at most " + std::to_string(kMostDims) + " dimensions, got " +
                       std::to_string(ndim));
  }

  const char* op_;
  std::vector<py::object> held_;
  std::vector<Range> ranges_;
  bool has_written_ = false;
};

}  // namespace noprop
