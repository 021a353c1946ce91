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
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  PyObject *untyped_storage = nullptr, *is_neg = nullptr, *resolve_neg = nullptr;
  PyObject *new_empty = nullptr, *storage_data_ptr = nullptr;
  PyObject* followers = nullptr;          // functions: whether modes or transforms see each call
  PyObject* increment_version = nullptr;  // of the tensors of a list
  const dlpack::ExchangeApi* exchange = nullptr;  // null: tensors are read by their attributes
};

inline Torch& torch() {
  static Torch used;
  return used;
}

// Sets the tensor types and how tensors are read. `capsule` is
// torch.Tensor.__dlpack_c_exchange_api__ or None.
inline void use_torch(const py::object& tensor, const py::object& parameter,
                      const py::object& storage, const py::object& capsule,
                      const py::tuple& followers, const py::object& increment_version) {
  const auto own = [](const py::object& of) {
    return py::object(of).release().ptr();  // of the process, as the extension is
  };
  const auto type = [&](const py::object& of) { return reinterpret_cast<PyTypeObject*>(own(of)); };
  torch() = {
      .tensor = type(tensor),
      .parameter = type(parameter),
      .untyped_storage = own(tensor.attr("untyped_storage")),
      .is_neg = own(tensor.attr("is_neg")),
      .resolve_neg = own(tensor.attr("resolve_neg")),
      .new_empty = own(tensor.attr("new_empty")),
      .storage_data_ptr = own(storage.attr("data_ptr")),
      .followers = own(followers),
      .increment_version = own(increment_version),
  };
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

// what a function of PyTorch returns
inline py::object called(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

inline bool is_negated(py::handle tensor) {
  return called(PyObject_CallOneArg(torch().is_neg, tensor.ptr())).ptr() == Py_True;
}

// Reads the state of a tensor that has an exchange interface, of its first kMostDims dimensions.
// False, with Python's exception: it has none that can be described.
inline bool describe(py::handle tensor, TensorView& view) {
  dlpack::Tensor told = {};
  if (torch().exchange->dltensor_from_py_object_no_sync(tensor.ptr(), &told) != 0) return false;
  view.data = static_cast<char*>(told.data) + told.byte_offset;
  view.on_cpu = told.device.type == dlpack::kCpu;
  view.kind = Kind::kOther;
  for (const KindFacts& facts : kKinds)
    if (facts.type.code == told.dtype.code && facts.type.bits == told.dtype.bits &&
        told.dtype.lanes == 1)
      view.kind = facts.kind;
  view.ndim = told.ndim;
  std::copy_n(told.shape, std::min(told.ndim, kMostDims), view.shape);
  std::copy_n(told.strides, std::min(told.ndim, kMostDims), view.strides);
  return true;
}

// addresses, from the first to behind the last
struct Extent {
  uintptr_t begin = 0, end = 0;

  bool meets(const Extent& other) const { return begin < other.end && other.begin < end; }
  bool covers(const Extent& other) const { return begin <= other.begin && other.end <= end; }
};

// of a tensor's elements; nothing where it has none
inline Extent extent_of(const TensorView& view) {
  int64_t last = 0;  // the furthest element
  for (int i = 0; i < view.ndim; ++i) {
    if (view.shape[i] == 0) return {};
    last += (view.shape[i] - 1) * view.strides[i];
  }
  const auto begin = reinterpret_cast<uintptr_t>(view.data);
  return {begin, begin + static_cast<uintptr_t>((last + 1) * view.size())};
}

// A tensor's storage, whose memory stays while it is held, though not if it is resized.
struct Storage {
  py::object held;
  Extent extent;
};

inline Storage storage_of(py::handle tensor) {
  py::object storage = called(PyObject_CallOneArg(torch().untyped_storage, tensor.ptr()));
  const auto length = static_cast<uintptr_t>(PyObject_Length(storage.ptr()));
  const py::object start = called(PyObject_CallOneArg(torch().storage_data_ptr, storage.ptr()));
  const uintptr_t base = PyLong_AsSize_t(start.ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
  return {std::move(storage), {base, base + length}};
}

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
    const Extent extent = extent_of(view);
    if (extent.end == 0) return;
    const auto lacks = [&](const std::string& got) {
      refuse(name,
             "have memory for its shape " + tuple_text(view.shape, view.ndim) + ", got " + got);
    };
    if (extent.begin == 0) lacks("none");
    Storage storage = storage_of(tensor);
    if (!storage.extent.covers(extent))
      lacks(std::to_string(storage.extent.end - storage.extent.begin) + " bytes");
    if (extent.begin % static_cast<uintptr_t>(view.size()) != 0)
      refuse(name, "be aligned to its dtype, got an odd address");
    held_.push_back(std::move(storage.held));
    ranges_.push_back({extent, written, name});
    has_written_ = has_written_ || written;
  }

  // The last check before a call: written memory must be shared with nothing else.
  void check_apart() {
    if (!has_written_) return;
    std::sort(ranges_.begin(), ranges_.end(),
              [](const Range& a, const Range& b) { return a.at.begin < b.at.begin; });
    const Range *furthest = nullptr, *furthest_written = nullptr;
    for (const Range& range : ranges_) {
      const Range* before = range.written ? furthest : furthest_written;
      if (before && before->at.end > range.at.begin) {
        const bool first = range.written;
        refuse((first ? range : *before).name,
               "share no memory, since it is written, got that of " +
                   (first ? *before : range).name.str());
      }
      if (!furthest || range.at.end > furthest->at.end) furthest = &range;
      if (range.written && (!furthest_written || range.at.end > furthest_written->at.end))
        furthest_written = &range;
    }
  }

 private:
  struct Range {
    Extent at;
    bool written;
    Name name;
  };

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
    TensorView view;
    if (!describe(tensor, view)) refuse_unreadable(tensor, name);
    check_dims(name, view.ndim);
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
