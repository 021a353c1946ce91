// Converts Python's plan and optimizer into the kernels' form.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <new>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "noprop.h"

namespace noprop {

namespace py = pybind11;

constexpr size_t kMostResults = 128, kMostSources = 128;  // that the kernels have room for

// A plan in the kernels' form, made from Python's, and its names.
struct Plan {
  std::vector<py::str> names;  // of results, inputs first
  std::vector<int32_t> input_widths;
  std::vector<std::vector<int32_t>> sources;
  std::vector<NopropLayer> layers;
  std::vector<int64_t> in_widths;  // of layers
  struct Keys {
    py::str weight, bias, norm_weight, norm_bias, running_mean, running_var;
  };
  std::vector<Keys> keys;
  NopropPlan plan;
  double widths = 0;  // of results and sources, together

  Plan(const py::object& described, const std::string& precision) {
    std::map<std::string, int32_t> number;
    const auto add = [&](py::handle name) {
      number[std::string(py::str(name))] = static_cast<int32_t>(names.size());
      names.emplace_back(name);
    };
    const auto find = [&](py::handle name) {
      const auto found = number.find(std::string(py::str(name)));
      if (found == number.end())
        throw py::value_error("Plan: no earlier result is named " + std::string(py::repr(name)));
      return found->second;
    };
    for (const auto& [name, shape] : py::dict(described.attr("inputs"))) {
      input_widths.push_back(width(described.attr("widths")[name]));
      add(name);
    }
    const int32_t z = find(py::str("z"));
    const py::dict live = described.attr("live")(), sites = described.attr("dropout_sites")();
    for (const auto& [name, layer] : py::dict(described.attr("layers"))) {
      const py::object norm = py::getattr(layer, "norm", py::none()), to_add = layer.attr("add");
      sources.emplace_back();
      for (const py::handle source : py::tuple(layer.attr("sources")))
        sources.back().push_back(find(source));
      NopropLayer made = {};
      made.num_sources = static_cast<int32_t>(sources.back().size());
      made.width = width(described.attr("widths")[name]);
      made.activation = activation(layer.attr("activation"));
      made.add = to_add.is_none() ? -1 : find(to_add);
      made.norm = !norm.is_none();
      made.norm_eps = norm.is_none() ? 0.0f : norm.attr("eps").cast<float>();
      made.norm_momentum = norm.is_none() ? 0.0f : norm.attr("momentum").cast<float>();
      layers.push_back(made);
      if (live.contains(name)) take_image(described, name, layer, live, sites);
      const auto key = [&](const char* part) { return py::str(std::string(py::str(name)) + part); };
      keys.push_back({key(".weight"), key(".bias"), key(".norm.weight"), key(".norm.bias"),
                      key(".norm.running_mean"), key(".norm.running_var")});
      if (sources.back().empty() || sources.back().size() > kMostSources)
        throw py::value_error("Plan: a layer must have 1 to " + std::to_string(kMostSources) +
                              " inputs on the CPU kernels, got " +
                              std::to_string(sources.back().size()));
      add(name);
    }
    if (layers.empty() || names.size() > kMostResults)
      throw py::value_error(
          "Plan: must have at least 1 layer, and at most " + std::to_string(kMostResults) +
          " inputs and layers on the CPU kernels, got " + std::to_string(names.size()));
    plan = {static_cast<int32_t>(input_widths.size()),
            input_widths.data(),
            z,
            static_cast<int32_t>(layers.size()),
            layers.data(),
            precision == "bfloat16" ? NOPROP_BFLOAT16 : NOPROP_FLOAT32};
    for (size_t l = 0; l < layers.size(); ++l) {
      NopropLayer& layer = layers[l];
      layer.sources = sources[l].data();
      in_widths.push_back(0);
      for (const int32_t source : sources[l]) in_widths.back() += width_of(source);
      if (layer.add >= 0 && width_of(layer.add) != layer.width)
        throw py::value_error("Plan: what a layer adds must have its width");
      widths += static_cast<double>(in_widths.back()) + layer.width;
    }
    for (const int32_t input : input_widths) widths += input;
  }
  Plan(const Plan&) = delete;

  // what a convolution has beside a dense layer
  void take_image(const py::object& described, py::handle name, py::handle layer,
                  const py::dict& live, const py::dict& sites) {
    const auto shape = [&](const py::object& of) {
      const auto [channels, height, rest] =
          described.attr("shapes")[of].cast<std::tuple<int32_t, int32_t, int32_t>>();
      return NopropShape{channels, height, rest};
    };
    NopropLayer& made = layers.back();
    made.kind = NOPROP_CONV2D;
    made.in = shape(layer.attr("inputs"));
    made.shape = shape(py::reinterpret_borrow<py::object>(name));
    made.kernel_size = layer.attr("kernel_size").cast<int32_t>();
    const py::object pool = layer.attr("pool");
    made.pool = pool.is_none() ? 0 : pool.attr("kernel_size").cast<int32_t>();
    std::tie(made.live_height, made.live_width) = live[name].cast<std::pair<int32_t, int32_t>>();
    made.dropout = layer.attr("dropout").cast<float>();
    if (sites.contains(name)) made.site = sites[name].cast<int32_t>();
  }
  static int32_t width(const py::object& value) {
    const auto width = value.cast<int64_t>();
    if (width < 1 || width > std::numeric_limits<int32_t>::max())
      throw py::value_error("Plan: a width must be in 1..2147483647 on the CPU kernels, got " +
                            std::to_string(width));
    return static_cast<int32_t>(width);
  }
  static int32_t activation(const py::object& name) {
    if (name.is_none()) return NOPROP_IDENTITY;
    const auto known = name.cast<std::string>();
    if (known == "relu") return NOPROP_RELU;
    if (known == "gelu") return NOPROP_GELU;
    throw py::value_error("Plan: the CPU kernels have no activation " + known);
  }
  int64_t width_of(int32_t result) const {
    const auto r = static_cast<size_t>(result);
    return r < input_widths.size() ? input_widths[r] : layers[r - input_widths.size()].width;
  }
  bool has_dropout() const {
    return std::any_of(layers.begin(), layers.end(),
                       [](const NopropLayer& layer) { return layer.dropout > 0; });
  }
  int64_t M() const { return layers.back().width; }
  int64_t D() const { return input_widths[static_cast<size_t>(plan.z)]; }

  // B rows, few enough that the size of their workspace does not overflow
  int64_t rows(int64_t B) const {
    constexpr double kBytesAFeature = 256;
    if (kBytesAFeature * widths * (static_cast<double>(B) + 64) > 0x1p62) throw std::bad_alloc();
    return B;
  }
};

// An optimizer in the kernels' form, made from its name, moments and hyperparameters in Python.
struct Optimizer {
  NopropUpdateRule rule = {};  // without learning rate and weight decay
  bool has_m, has_v;

  Optimizer(const std::string& kind, bool has_m, bool has_v, const py::kwargs& hyper)
      : has_m(has_m), has_v(has_v) {
    rule.kind = kind_of(kind);
    for (const auto& [key, value] : hyper) {
      const auto name = key.cast<std::string>();
      if (name == "momentum") {
        rule.momentum = value.cast<double>();
      } else if (name == "nesterov") {
        rule.nesterov = value.cast<bool>();
      } else if (name == "betas") {
        std::tie(rule.beta1, rule.beta2) = value.cast<std::pair<double, double>>();
      } else if (name == "eps") {
        rule.eps = value.cast<double>();
      } else {
        throw py::value_error("Optimizer: no hyperparameter is named " + name);
      }
    }
  }

  static int32_t kind_of(const std::string& name) {
    if (name == "SGD") return NOPROP_SGD;
    if (name == "Adam") return NOPROP_ADAM;
    if (name == "AdamW") return NOPROP_ADAMW;
    throw py::value_error("Optimizer: kind must be one of the kernels', got " + name);
  }
};

}  // namespace noprop
