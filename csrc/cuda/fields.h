// How Python's values become fields of the structs of program.h. Of bindings.cpp alone.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "cuda/program.h"

namespace py = pybind11;

namespace noprop::cuda {
namespace {

// names of each enum's values, in order
constexpr std::array kKinds = {"gather",        "noise",
                               "dense",         "norm",
                               "head",          "loss",
                               "rates",         "result_gradient",
                               "norm_gradient", "numbers",
                               "embedding",     "update_weight",
                               "update_vector", "update_statistic",
                               "apply",         "u_hat",
                               "chain"};
constexpr std::array kPrecisions = {"float32", "tf32", "bfloat16"};
constexpr std::array kRules = {"none", "sgd", "momentum", "nesterov", "adam", "adamw"};
constexpr std::array kHeads = {"softmax", "linear", "cross_entropy"};
constexpr std::array kTypes = {"float32", "bfloat16", "uint8"};
constexpr std::array kActivations = {"none", "relu", "gelu"};
constexpr std::array kSums = {"rows", "done", "zero"};

const auto& names_of(Kind) { return kKinds; }
const auto& names_of(Precision) { return kPrecisions; }
const auto& names_of(Rule) { return kRules; }
const auto& names_of(Head) { return kHeads; }
const auto& names_of(Type) { return kTypes; }
const auto& names_of(Activation) { return kActivations; }
const auto& names_of(Sum) { return kSums; }

template <class Enum>
Enum to_enum(std::string_view name) {
  const auto& names = names_of(Enum{});
  for (size_t i = 0; i < names.size(); ++i)
    if (name == names[i]) return static_cast<Enum>(i);
  throw py::value_error("no value of the enum is named " + std::string(name));
}

template <class T>
T* to_pointer(const py::handle& item) {
  return item.is_none() ? nullptr : reinterpret_cast<T*>(item.cast<std::uintptr_t>());
}

py::tuple to_tuple(const py::handle& item, size_t size) {
  auto tuple = py::cast<py::tuple>(item);
  if (tuple.size() != size)
    throw py::value_error("must have " + std::to_string(size) + " entries, got " +
                          std::to_string(tuple.size()));
  return tuple;
}

template <class T>
  requires std::is_arithmetic_v<T>
void read(const py::handle& item, T& out) {
  out = item.cast<T>();
}

template <class T>
  requires std::is_enum_v<T>
void read(const py::handle& item, T& out) {
  out = to_enum<T>(item.cast<std::string>());
}

template <class T>
void read(const py::handle& item, T*& out) {
  out = to_pointer<T>(item);
}

// None: absent, else (data, step, slice, by_group)
void read(const py::handle& item, Buffer& out) {
  out = {};
  if (item.is_none()) return;
  const auto t = to_tuple(item, 4);
  out = {to_pointer<void>(t[0]), t[1].cast<int64_t>(), t[2].cast<int64_t>(), t[3].cast<int32_t>()};
}

// (data, step, slice, row)
template <class N>
  requires std::is_same_v<N, Number> || std::is_same_v<N, Integer>
void read(const py::handle& item, N& out) {
  const auto t = to_tuple(item, 4);
  out = {to_pointer<std::remove_pointer_t<decltype(out.data)>>(t[0]), t[1].cast<int64_t>(),
         t[2].cast<int64_t>(), t[3].cast<int64_t>()};
}

// (data, step, slice)
void read(const py::handle& item, Real& out) {
  const auto t = to_tuple(item, 3);
  out = {to_pointer<const double>(t[0]), t[1].cast<int64_t>(), t[2].cast<int64_t>()};
}

// None: no indices, else (indices, replica, replicas, rows)
void read(const py::handle& item, Rows& out) {
  out = {};
  if (item.is_none()) return;
  const auto t = to_tuple(item, 4);
  out = {to_pointer<const int64_t>(t[0]), to_pointer<const int64_t>(t[1]), t[2].cast<int64_t>(),
         t[3].cast<int64_t>()};
}

// (value, m, v, grad, size)
void read(const py::handle& item, Param& out) {
  const auto t = to_tuple(item, 5);
  out = {to_pointer<float>(t[0]), to_pointer<float>(t[1]), to_pointer<float>(t[2]),
         to_pointer<float>(t[3]), t[4].cast<int64_t>()};
}

// (d_y, weight, height, in_width, column)
void read(const py::handle& item, Consumer& out) {
  const auto t = to_tuple(item, 5);
  read(t[0], out.d_y);
  out.weight = to_pointer<const float>(t[1]);
  out.height = t[2].cast<int32_t>();
  out.in_width = t[3].cast<int32_t>();
  out.column = t[4].cast<int32_t>();
}

// a sequence of at most N
template <class T, size_t N>
void read(const py::handle& item, T (&out)[N]) {
  const auto all = py::cast<py::sequence>(item);
  if (all.size() > N)
    throw py::value_error("may have " + std::to_string(N) + " entries, got " +
                          std::to_string(all.size()));
  for (size_t i = 0; i < all.size(); ++i) read(py::object(all[i]), out[i]);
}

// The dict that a struct is read from, field by field. An error names the struct and the field;
// a key that no field took is one too.
class Fields {
 public:
  Fields(py::dict dict, std::string name) : dict_(std::move(dict)), name_(std::move(name)) {}

  py::handle take(const char* field) {
    const py::handle item = PyDict_GetItemString(dict_.ptr(), field);
    if (!item) throw py::value_error(name_ + ": the field " + field + " is missing");
    ++taken_;
    return item;
  }

  template <class T>
  Fields& get(const char* field, T& out) {
    const py::handle item = take(field);
    try {
      read(item, out);
    } catch (const std::exception& error) {
      throw py::value_error(name_ + ": " + field + ": " + error.what());
    }
    return *this;
  }

  void end() const {
    if (taken_ != dict_.size())
      throw py::value_error(name_ + ": has " + std::to_string(taken_) + " fields, got " +
                            std::to_string(dict_.size()) + ": " +
                            py::str(dict_.attr("keys")()).cast<std::string>());
  }

 private:
  py::dict dict_;
  std::string name_;
  size_t taken_ = 0;
};

}  // namespace
}  // namespace noprop::cuda
