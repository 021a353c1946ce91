// Describes a Program as JSON for the tests, which fill one without this compiler.
//
// A struct has its size and its fields by name. A field has its offset `at` in its struct, `count`
// if it is an array, and its own or its entries' form: a struct, the names of an enum, or a type.
// The union of a Stage is `kinds`, a struct for each.
#pragma once

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/program.h"

namespace noprop::cuda {

class Description {
 public:
  static std::string of_program() {
    const auto program = std::make_unique<Program>();
    Description made;
    made.describe(*program);
    return made.text_ + '}';
  }

  template <class T>
  Description& operator()(const char* name, T& field) {
    open(name);
    put("at", std::to_string(reinterpret_cast<const char*>(&field) - start_));
    describe(field);
    text_ += '}';
    return *this;
  }

 private:
  template <class T>
  void describe(T& field) {
    if constexpr (std::is_array_v<T>) {
      put("count", std::to_string(std::extent_v<T>));
      describe(field[0]);
    } else {
      put("size", std::to_string(sizeof(T)));
      describe_value(field);
    }
  }

  template <class T>
  void describe_value(T& field) {
    if constexpr (std::is_class_v<T>) {
      const char* const outer = std::exchange(start_, reinterpret_cast<const char*>(&field));
      open("fields");
      field.fields(*this);
      if constexpr (std::is_same_v<T, Program>)
        (*this)("num_stages", field.num_stages)("stages", field.stages);
      text_ += '}';
      if constexpr (std::is_same_v<T, Stage>) describe_kinds(field);
      start_ = outer;
    } else if constexpr (std::is_enum_v<T>) {
      std::string names;
      for (const char* name : kNames<T>) names += (names.empty() ? "" : ", ") + quoted(name);
      put("names", '[' + names + ']');
    } else if constexpr (std::is_pointer_v<T>) {
      put("type", quoted("pointer"));
    } else {
      const bool floats = std::is_floating_point_v<T>;
      const char* const kind = floats ? "float" : std::is_signed_v<T> ? "int" : "uint";
      put("type", quoted(kind + std::to_string(8 * sizeof(T))));
    }
  }

  void describe_kinds(Stage& stage) {
    open("kinds");
    for (size_t kind = 0; kind < kNames<Kind>.size(); ++kind) {
      stage.kind = static_cast<Kind>(kind);
      with_own_fields(stage, [&](auto& own) { (*this)(own.kName, own); });
    }
    text_ += '}';
  }

  static std::string quoted(const std::string& name) { return '"' + name + '"'; }
  void open(const char* name) { put(name, "{"); }
  void put(const char* name, const std::string& value) {
    if (text_.back() != '{') text_ += ", ";
    text_ += quoted(name) + ": " + value;
  }

  std::string text_ = "{";
  const char* start_ = nullptr;  // of the struct that is described
};

}  // namespace noprop::cuda
