// The calls on what blocks and the output head share (shared_calls.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "call_reader.h"

namespace noprop {

// What a LevelsCall reads, and a LevelsGradientCall again.
struct Levels {
  NopropGamma gamma = {};
  NopropWeighting weighting = {};
  const double *t = nullptr, *u_squared = nullptr;
  int64_t R = 0, B = 0, D = 0;

  Levels(Reader& reader, const py::object& call) {
    Tensors& tensors = reader.tensors;
    const py::object t_given = get(call, "t"), params = get(call, "gamma");
    const TensorView sizes = reader.sizes(t_given, {"t"}, 2);
    R = gamma.R = sizes.shape[0];
    B = sizes.shape[1];
    const py::object w1 = item(params, py::str("w1"));
    if (w1.is_none()) tensors.refuse({"w1"}, "be among the parameters");
    const int64_t H = gamma.hidden = reader.sizes(w1, {"w1"}, 2).shape[1];
    gamma.w1 = reader.floats(w1, {"w1"}, {R, H});
    gamma.b1 = reader.floats(item(params, py::str("b1")), {"b1"}, {R, H});
    gamma.w2 = reader.floats(item(params, py::str("w2")), {"w2"}, {R, H});
    gamma.gamma_0 = reader.floats(item(params, py::str("gamma_0")), {"gamma_0"}, {R});
    gamma.delta = reader.floats(item(params, py::str("delta")), {"delta"}, {R});
    weighting.kind = weight_of(tensors, get(call, "weight"));
    weighting.scale = get(call, "scale").cast<double>();
    weighting.most = get(call, "most").cast<double>();
    t = tensors.read(t_given, {"t"}, Kind::kFloat64, {R, B}).as<double>();
    u_squared =
        tensors.read(get(call, "u_squared"), {"u_squared"}, Kind::kFloat64, {R}).as<double>();
    D = integer(tensors, call, "D", 1);
  }

 private:
  static int32_t weight_of(const Tensors& tensors, const py::object& name) {
    const auto text = name.cast<std::string>();
    if (text == "snr") return NOPROP_SNR;
    if (text == "uniform") return NOPROP_UNIFORM;
    if (text == "min-snr") return NOPROP_MIN_SNR;
    tensors.refuse({"weight"}, "be one of the kernels', got " + text);
  }
};

inline NopropLevels levels_out(Reader& reader, const py::object& out, const Levels& of) {
  Tensors& tensors = reader.tensors;
  const int64_t R = of.R, B = of.B;
  const auto doubles = [&](const char* name, std::initializer_list<int64_t> shape) {
    return tensors.write(get(out, name), {name}, Kind::kFloat64, shape).as<double>();
  };
  const auto floats = [&](const char* name, std::initializer_list<int64_t> shape) {
    return reader.out(get(out, name), {name}, shape);
  };
  return {
      .net = doubles("net", {R, B + 2}),
      .net_slope = doubles("net_slope", {R, B}),
      .signal = floats("signal", {R, B}),
      .noise = floats("noise", {R, B}),
      .weight = floats("weight", {R, B}),
      .last_signal = floats("last_signal", {R}),
      .last_noise = floats("last_noise", {R}),
      .prior = doubles("prior", {R}),
      .alpha_bar_0 = doubles("alpha_bar_0", {R}),
  };
}

// Parameters (R, ...) of one kind of which each has its gradient, and their moments.
struct SharedParams {
  std::vector<NopropParam> params;
  std::vector<int64_t> counts;

  SharedParams(Reader& reader, const py::object& call, const Optimizer& optimizer, int64_t R) {
    const py::object grads = get(call, "grads"), m = get(call, "m"), v = get(call, "v");
    for (const auto& [key, value] : get(call, "params").cast<py::dict>()) {
      py::handle looked_at = value;
      const TensorView view = reader.tensors.look(looked_at, {"", key.ptr()}, true);
      const auto take = [&](py::handle tensor, const char* suffix, bool written) {
        return reader.tensors
            .take(tensor, {"", key.ptr(), suffix}, Kind::kFloat32, view.shape, view.ndim, 0,
                  written)
            .template as<float>();
      };
      if (view.ndim < 1 || view.shape[0] != R)
        reader.tensors.refuse({"", key.ptr()}, "have " + std::to_string(R) + " replicas");
      NopropParam param = {};
      param.value = take(value, "", true);
      param.grad = take(item(grads, key), ".grad", false);
      if (optimizer.has_m) param.m = take(item(m, key), "_m", true);
      if (optimizer.has_v) param.v = take(item(v, key), "_v", true);
      int64_t count = 1;
      for (int i = 1; i < view.ndim; ++i) count *= view.shape[i];
      params.push_back(param);
      counts.push_back(count);
    }
  }
};

}  // namespace noprop
