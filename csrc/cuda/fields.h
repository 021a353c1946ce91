// Reads Python's values into the fields of the structs of program.h. Only bindings.cpp includes it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "cuda/program.h"

namespace py = pybind11;

namespace noprop::cuda {
namespace {

template <class Enum>
Enum to_enum(std::string_view name) {
  for (size_t i = 0; i < kNames<Enum>.size(); ++i)
    if (name == kNames<Enum>[i]) return static_cast<Enum>(i);
  throw py::value_error("no value of the enum is named " + std::string(name));
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
  out = item.is_none() ? nullptr : reinterpret_cast<T*>(item.cast<std::uintptr_t>());
}

template <class T>
  requires std::is_class_v<T>
void read(const py::handle& item, T& out);

// The entries of a tuple, as many as a struct has fields, in their order.
class Entries {
 public:
  explicit Entries(const py::handle& item) : tuple_(py::cast<py::tuple>(item)) {}

  template <class T>
  Entries& operator()(const char*, T& out) {
    if (read_ < tuple_.size()) read(py::object(tuple_[read_]), out);
    ++read_;
    return *this;
  }

  void end() const {
    if (read_ != tuple_.size())
      throw py::value_error("must have " + std::to_string(read_) + " entries, got " +
                            std::to_string(tuple_.size()));
  }

 private:
  py::tuple tuple_;
  size_t read_ = 0;
};

template <class T>
  requires std::is_class_v<T>
void read(const py::handle& item, T& out) {
  out = {};
  const bool may_be_absent = std::is_same_v<T, Buffer> || std::is_same_v<T, Rows>;
  if (may_be_absent && item.is_none()) return;
  Entries entries(item);
  out.fields(entries);
  entries.end();
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

// The dict that a struct is read from, field by field. An error names the struct and the field. A
// key that no field took is an error too.
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
  Fields& operator()(const char* field, T& out) {
    const py::handle item = take(field);
    try {
      read(item, out);
    } catch (const std::exception& error) {
      throw py::value_error(name_ + ": " + field + ": " + error.what());
    }
    return *this;
  }

  Fields& operator()(const char* field, Hyper& out) {
    Fields own(py::cast<py::dict>(take(field)), field);
    out.fields(own);
    own.end();
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
