// The one file that knows pybind11: lists of integers and addresses to the structs of noprop.h.
// Every tensor behind an address was checked, and is kept alive, by native.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "noprop.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

template <class T>
T* ptr(Address address) {
  return reinterpret_cast<T*>(address);
}

// owns what a NopropPlan points to
struct Plan {
  std::vector<int32_t> input_widths;
  std::vector<std::vector<int32_t>> sources;
  std::vector<NopropLayer> layers;
  NopropPlan plan;

  // a layer: (sources, width, relu, add, norm, eps, momentum)
  Plan(std::vector<int32_t> widths, int32_t z, const py::list& described, int32_t precision)
      : input_widths(std::move(widths)) {
    constexpr size_t kMost = 128;
    if (input_widths.size() + described.size() > kMost)
      throw py::value_error("Plan: at most 128 inputs and layers run on the CPU kernels");
    for (const auto& item : described) {
      const auto layer = item.cast<py::tuple>();
      sources.push_back(layer[0].cast<std::vector<int32_t>>());
      layers.push_back({static_cast<int32_t>(sources.back().size()), nullptr,
                        layer[1].cast<int32_t>(), layer[2].cast<int32_t>(),
                        layer[3].cast<int32_t>(), layer[4].cast<int32_t>(), layer[5].cast<float>(),
                        layer[6].cast<float>()});
    }
    for (size_t l = 0; l < layers.size(); ++l) layers[l].sources = sources[l].data();
    plan = {static_cast<int32_t>(input_widths.size()), input_widths.data(), z,
            static_cast<int32_t>(layers.size()),       layers.data(),       precision};
  }
  Plan(const Plan&) = delete;
};

// addresses, 20 a layer: weight, bias, norm weight, norm bias, each (value, m, v, grad); running
// and batch mean and var
struct Slices {
  std::vector<NopropState> states;
  NopropSlices slices;

  Slices(const Plan& plan, const Addresses& a, const Addresses& counters, int64_t n) {
    const auto param = [&](size_t at) {
      return NopropParam{ptr<float>(a[at]), ptr<float>(a[at + 1]), ptr<float>(a[at + 2]),
                         ptr<float>(a[at + 3])};
    };
    for (size_t l = 0; l < plan.layers.size(); ++l) {
      const size_t at = 20 * l;
      states.push_back({param(at), param(at + 4), param(at + 8), param(at + 12),
                        ptr<float>(a.at(at + 16)), ptr<float>(a.at(at + 17)),
                        ptr<float>(a.at(at + 18)), ptr<float>(a.at(at + 19))});
    }
    slices = {&plan.plan,
              states.data(),
              ptr<const int64_t>(counters.at(0)),
              ptr<int64_t>(counters.at(1)),
              ptr<int64_t>(counters.at(2)),
              ptr<const int64_t>(counters.at(3)),
              n};
  }
  Slices(const Slices&) = delete;
};

// (draw, its step and slice strides, block, its strides, stream, first_row)
NopropNoise to_noise(const py::tuple& t) {
  return {ptr<const int64_t>(t[0].cast<Address>()),
          ptr<const int64_t>(t[3].cast<Address>()),
          t[1].cast<int64_t>(),
          t[2].cast<int64_t>(),
          t[4].cast<int64_t>(),
          t[5].cast<int64_t>(),
          t[6].cast<uint32_t>(),
          t[7].cast<int64_t>()};
}

NopropNumber to_number(const py::handle& item) {
  const auto t = item.cast<py::tuple>();
  return {ptr<const float>(t[0].cast<Address>()), t[1].cast<int64_t>(), t[2].cast<int64_t>(),
          t[3].cast<int64_t>()};
}

// (signal, noise, weight, flow, sigma, head, W_embed, D, rows)
NopropMix to_mix(const py::tuple& t) {
  return {to_number(t[0]),
          to_number(t[1]),
          to_number(t[2]),
          t[3].cast<float>(),
          t[4].cast<float>(),
          t[5].cast<int32_t>(),
          ptr<const float>(t[6].cast<Address>()),
          t[7].cast<int64_t>(),
          t[8].cast<int64_t>()};
}

// (data, dtype, step, slice, indices, replica, replicas, rows, mean, scale)
std::vector<NopropInput> to_inputs(const py::list& list) {
  std::vector<NopropInput> inputs;
  for (const auto& item : list) {
    const auto t = item.cast<py::tuple>();
    inputs.push_back(
        {ptr<const void>(t[0].cast<Address>()), t[1].cast<int32_t>(), t[2].cast<int64_t>(),
         t[3].cast<int64_t>(), ptr<const int64_t>(t[4].cast<Address>()),
         ptr<const int64_t>(t[5].cast<Address>()), t[6].cast<int64_t>(), t[7].cast<int64_t>(),
         ptr<const float>(t[8].cast<Address>()), ptr<const float>(t[9].cast<Address>())});
  }
  return inputs;
}

// (data, step, slice, indices, replica, replicas, rows)
NopropLabels to_labels(const py::tuple& t) {
  return {ptr<const int64_t>(t[0].cast<Address>()),
          t[1].cast<int64_t>(),
          t[2].cast<int64_t>(),
          ptr<const int64_t>(t[3].cast<Address>()),
          ptr<const int64_t>(t[4].cast<Address>()),
          t[5].cast<int64_t>(),
          t[6].cast<int64_t>()};
}

// (kind, lr, its step and slice strides, weight_decay, its stride, momentum, beta1, beta2, eps,
// nesterov)
NopropRule to_rule(const py::tuple& t) {
  return {t[0].cast<int32_t>(),
          ptr<const double>(t[1].cast<Address>()),
          t[2].cast<int64_t>(),
          t[3].cast<int64_t>(),
          ptr<const double>(t[4].cast<Address>()),
          t[5].cast<int64_t>(),
          t[6].cast<double>(),
          t[7].cast<double>(),
          t[8].cast<double>(),
          t[9].cast<double>(),
          t[10].cast<int32_t>()};
}

// lets Python run its signal handlers, so that Ctrl-C answers; the exception waits until the
// threads have stopped
int poll_signals(void*) {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals();
}

using Result = std::tuple<int, int64_t, int64_t>;

// run() without the GIL; a stop raises what the signal handler raised
template <class Run>
Result without_gil(int32_t threads, Run run) {
  const NopropHost host = {threads, poll_signals, nullptr};
  NopropResult result;
  {
    const py::gil_scoped_release release;
    result = run(&host);
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return {static_cast<int>(result.status), result.where, result.value};
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.attr("compiler") = NOPROP_COMPILER;

  py::class_<Plan>(m, "Plan")
      .def(py::init<std::vector<int32_t>, int32_t, const py::list&, int32_t>())
      .def("saved_bytes",
           [](const Plan& plan, int64_t B) { return noprop_saved_bytes_cpu(&plan.plan, B); })
      .def("crew_size",
           [](const Plan& plan, int64_t chains, int64_t B, int32_t threads) {
             return noprop_crew_size_cpu(&plan.plan, chains, B, threads);
           })
      .def("team_size",
           [](const Plan& plan, int64_t n, int64_t B, int32_t threads) {
             return noprop_team_size_cpu(&plan.plan, n, B, threads);
           })
      .def("workspace_bytes",
           [](const Plan& plan, int64_t B, int64_t D) {
             return noprop_workspace_bytes_cpu(&plan.plan, B, D);
           })
      .def("packed_bytes", [](const Plan& plan, int64_t n, int64_t B, int64_t K) {
        return noprop_packed_bytes_cpu(&plan.plan, n, B, K);
      });

  // out: loss, applied, error, d_signal, d_noise, d_W_embed
  m.def("train", [](const Plan& plan, const Addresses& state, const Addresses& counters, int64_t n,
                    const py::tuple& noise, const py::tuple& mix, const py::list& inputs, Address z,
                    const py::tuple& y, const py::tuple& rule, int64_t B, int64_t K,
                    const Addresses& out, const Addresses& d_inputs, int32_t threads) {
    const Slices slices(plan, state, counters, n);
    const NopropNoise c_noise = to_noise(noise);
    const NopropMix c_mix = to_mix(mix);
    const auto c_inputs = to_inputs(inputs);
    const NopropLabels c_y = to_labels(y);
    const NopropRule c_rule = to_rule(rule);
    std::vector<float*> c_d_inputs;
    for (const Address address : d_inputs) c_d_inputs.push_back(ptr<float>(address));
    const NopropTrainOut c_out = {
        ptr<float>(out.at(0)), ptr<uint8_t>(out.at(1)), ptr<float>(out.at(2)), c_d_inputs.data(),
        ptr<float>(out.at(3)), ptr<float>(out.at(4)),   ptr<float>(out.at(5))};
    return without_gil(threads, [&](const NopropHost* host) {
      return noprop_train_cpu(&slices.slices, &c_noise, &c_mix, c_inputs.data(),
                              ptr<const float>(z), &c_y, &c_rule, B, K, &c_out, host);
    });
  });

  m.def("add_noise",
        [](Address z, Address eps, Address seeds, const py::tuple& noise, const py::tuple& mix,
           const py::tuple& y, int64_t n, int64_t B, int64_t M, int32_t threads) {
          const NopropNoise c_noise = to_noise(noise);
          const NopropMix c_mix = to_mix(mix);
          const NopropLabels c_y = to_labels(y);
          return without_gil(threads, [&](const NopropHost* host) {
            return noprop_add_noise_cpu(ptr<float>(z), ptr<float>(eps), ptr<const int64_t>(seeds),
                                        &c_noise, &c_mix, &c_y, n, B, M, host);
          });
        });

  m.def("forward", [](const Plan& plan, Address logits, Address saved, const Addresses& state,
                      const Addresses& counters, int64_t n, const py::list& inputs, int64_t B,
                      bool training, int32_t threads) {
    const Slices slices(plan, state, counters, n);
    const auto c_inputs = to_inputs(inputs);
    return without_gil(threads, [&](const NopropHost* host) {
      return noprop_forward_cpu(ptr<float>(logits), ptr<void>(saved), &slices.slices,
                                c_inputs.data(), B, training, host);
    });
  });

  // out: loss, error, d_logits, u_hat
  m.def("head", [](const Addresses& out, Address logits, Address eps, const py::tuple& mix,
                   const py::tuple& y, int64_t n, int64_t B, int64_t M, int32_t threads) {
    const NopropMix c_mix = to_mix(mix);
    const NopropLabels c_y = to_labels(y);
    return without_gil(threads, [&](const NopropHost* host) {
      return noprop_head_cpu(ptr<float>(out.at(0)), ptr<float>(out.at(1)), ptr<float>(out.at(2)),
                             ptr<float>(out.at(3)), ptr<const float>(logits), ptr<const float>(eps),
                             &c_mix, &c_y, n, B, M, host);
    });
  });

  m.def("backward",
        [](const Plan& plan, const Addresses& state, const Addresses& counters, int64_t n,
           Address saved, Address d_logits, const Addresses& d_inputs, const py::tuple& rule,
           Address applied, int64_t B, bool training, int32_t threads) {
          const Slices slices(plan, state, counters, n);
          const NopropRule c_rule = to_rule(rule);
          std::vector<float*> c_d_inputs;
          for (const Address address : d_inputs) c_d_inputs.push_back(ptr<float>(address));
          return without_gil(threads, [&](const NopropHost* host) {
            return noprop_backward_cpu(&slices.slices, ptr<const void>(saved),
                                       ptr<const float>(d_logits), c_d_inputs.data(), &c_rule,
                                       ptr<uint8_t>(applied), B, training, host);
          });
        });

  m.def("update", [](const Plan& plan, const Addresses& state, const Addresses& counters, int64_t n,
                     Address apply, const py::tuple& rule, int32_t threads) {
    const Slices slices(plan, state, counters, n);
    const NopropRule c_rule = to_rule(rule);
    return without_gil(threads, [&](const NopropHost* host) {
      return noprop_update_cpu(&slices.slices, ptr<const uint8_t>(apply), &c_rule, host);
    });
  });

  // out: logits, u_hat, z; coefficients: a, b, sqrt_c
  m.def("predict",
        [](const Plan& plan, const Addresses& out, const Addresses& state,
           const Addresses& counters, int64_t n, Address seeds, const py::list& inputs,
           const Addresses& coefficients, const py::tuple& mix, int64_t S, int64_t R, int64_t B,
           int64_t first_row, bool add_noise, bool keep_all, int32_t threads) {
          const Slices slices(plan, state, counters, n);
          const auto c_inputs = to_inputs(inputs);
          const NopropMix c_mix = to_mix(mix);
          return without_gil(threads, [&](const NopropHost* host) {
            return noprop_predict_cpu(
                ptr<float>(out.at(0)), ptr<float>(out.at(1)), ptr<float>(out.at(2)), &slices.slices,
                ptr<const int64_t>(seeds), c_inputs.data(), ptr<const float>(coefficients.at(0)),
                ptr<const float>(coefficients.at(1)), ptr<const float>(coefficients.at(2)), &c_mix,
                S, R, B, first_row, add_noise, keep_all, host);
          });
        });

  m.def("isas", [] {
    std::vector<std::pair<std::string, bool>> isas;
    for (int32_t i = 0; i < noprop_num_isas(); ++i)
      isas.emplace_back(noprop_isa_name(i), noprop_isa_runs(i) != 0);
    return isas;
  });
  m.def("isa_used", [] { return std::string(noprop_isa_name(noprop_isa_used())); });
  m.def("set_isa", [](const std::string& name) {
    return noprop_set_isa(name.empty() ? nullptr : name.c_str()) != 0;
  });
  m.def("processors", &noprop_processors);
  m.def("fma_gflop", &noprop_fma_gflop, py::call_guard<py::gil_scoped_release>());
}
