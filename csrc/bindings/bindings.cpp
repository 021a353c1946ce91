// Converts Python's calls (calls.py) to the C interface of noprop.h. Every field is read by name,
// and every tensor is checked against the plan and the call's sizes where its address is taken.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "call_chain.h"
#include "call_labels.h"
#include "call_layer.h"
#include "call_levels.h"
#include "call_reader.h"
#include "cpu/threads/processors.h"
#include "dense_call.h"
#include "known_layer.h"
#include "without_gil.h"

namespace py = pybind11;

extern const char* const noprop_cuda_left_out;  // why the build has no CUDA kernels, or ""

namespace {

using namespace noprop;

Result train(const Plan& plan, const py::object& call, const Optimizer* optimizer,
             int32_t threads) {
  Reader reader("train");
  Tensors& tensors = reader.tensors;
  const py::object out = get(call, "out"), grads = get(out, "grads");
  if (!grads.is_none()) optimizer = nullptr;
  const bool updates = optimizer != nullptr;
  Slices state(tensors, plan, call, {updates, updates, true}, optimizer);
  const int64_t n = reader.n = state.n, M = plan.M();
  const int64_t K = reader.K = integer(tensors, call, "K", 1);
  const int64_t B = reader.B = plan.rows(integer(tensors, call, "B", 1));
  if (updates == !grads.is_none())
    tensors.refuse({"grads"}, "be given where there is no rule, and only there");
  if (!grads.is_none()) {
    state.take_grads(plan, grads, true);
    if (const py::object stats = get(out, "stats"); !stats.is_none()) state.take_stats(plan, stats);
  }
  const NopropNoise noise = reader.noise(call);
  const NopropNoising noising = reader.noising(call);
  const NopropObjective objective = reader.objective(call);
  const NopropEmbedding embedding = reader.embedding(call, M);
  const auto inputs = reader.inputs(plan, call, n, true);
  const py::object z_given = get(call, "z");
  const float* z = reader.floats_or_null(z_given, {"z"}, {n, B, plan.D()});
  if (!z && embedding.D != plan.D())
    tensors.refuse({"z"}, "be given where its width is not that of an embedding");
  const NopropLabels y = reader.labels(call);
  const NopropUpdateRule rule = reader.rule(get(call, "rule"), optimizer);
  auto d_inputs = reader.d_inputs(plan, get(out, "d_inputs"));
  NopropTrainOut made = {};
  made.loss = reader.out(get(out, "loss"), {"loss"}, {K, n});
  made.applied = tensors.write(get(out, "applied"), {"applied"}, Kind::kBool, {K, n}).as<uint8_t>();
  made.error = reader.out_or_null(get(out, "error"), {"error"}, {n, B});
  made.d_inputs = d_inputs.data();
  made.d_signal = reader.out_or_null(get(out, "d_signal"), {"d_signal"}, {n, B});
  made.d_noise = reader.out_or_null(get(out, "d_noise"), {"d_noise"}, {n, B});
  made.d_W_embed = reader.out_or_null(get(out, "d_W_embed"), {"d_W_embed"}, {n, M, embedding.D});
  bool one_step = z || made.error || made.d_signal || made.d_noise || made.d_W_embed || !updates;
  for (const float* d_input : d_inputs) one_step |= d_input != nullptr;
  if (one_step && K != 1)
    tensors.refuse({"K"}, "be 1 for z, gradients and errors, got " + std::to_string(K));
  return without_gil(tensors, threads, [&](const NopropHost* host) {
    return noprop_train_cpu(&state.slices, &noise, &noising, &objective, &embedding, inputs.data(),
                            z, &y, &rule, B, K, &made, host);
  });
}

Result add_noise(const py::object& call, int32_t threads) {
  Reader reader("add_noise");
  const TensorView y_sizes = reader.sizes(get(call, "y"), {"y"}, 3);
  const int64_t n = reader.n = y_sizes.shape[1], B = reader.B = y_sizes.shape[2];
  const py::object given = get(call, "embedding"), W_embed = get(given, "W_embed");
  const int64_t M = W_embed.is_none() ? integer(reader.tensors, given, "D", 1)
                                      : reader.sizes(W_embed, {"W_embed"}, 2).shape[0];
  if (M > std::numeric_limits<int32_t>::max())
    reader.tensors.refuse({"W_embed"}, "have fewer than 2^31 rows, got " + std::to_string(M));
  const NopropNoise noise = reader.noise(call);
  const NopropNoising noising = reader.noising(call);
  const NopropEmbedding embedding = reader.embedding(call, M);
  const NopropLabels y = reader.labels(call);
  const int64_t* seeds =
      reader.tensors.read(get(get(call, "noise"), "seeds"), {"seeds"}, Kind::kInt64, {n})
          .as<int64_t>();
  float* z = reader.out_or_null(get(call, "z"), {"z"}, {n, B, embedding.D});
  float* eps = reader.out_or_null(get(call, "eps"), {"eps"}, {n, B, embedding.D});
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_add_noise_cpu(z, eps, seeds, &noise, &noising, &embedding, &y, n, B, M, host);
  });
}

Result draw_times(const py::object& call, int32_t threads) {
  Reader reader("times");
  const py::object t = get(call, "t");
  const int64_t strata = integer(reader.tensors, call, "strata", 0);
  const TensorView sizes = reader.sizes(t, {"t"}, 3);
  reader.K = sizes.shape[0];
  const int64_t n = reader.n = sizes.shape[1], B = reader.B = sizes.shape[2];
  const NopropNoise noise = reader.noise(call);
  const int64_t* seeds =
      reader.tensors.read(get(get(call, "noise"), "seeds"), {"seeds"}, Kind::kInt64, {n})
          .as<int64_t>();
  double* to = reader.tensors.write(t, {"t"}, Kind::kFloat64, {reader.K, n, B}).as<double>();
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_draw_times_cpu(to, seeds, &noise, n, B, reader.K, strata, host);
  });
}

// out (count, 2 n) float32 for t (count,) and frequencies (n,), float64
Result embed_times(const py::object& out, const py::object& t, const py::object& frequencies,
                   int32_t threads) {
  Reader reader("embed_time");
  const int64_t count = reader.sizes(t, {"t"}, 1).shape[0];
  const int64_t n = reader.sizes(frequencies, {"frequencies"}, 1).shape[0];
  const double* from = reader.tensors.read(t, {"t"}, Kind::kFloat64, {count}).as<double>();
  const double* by =
      reader.tensors.read(frequencies, {"frequencies"}, Kind::kFloat64, {n}).as<double>();
  float* to = reader.out(out, {"out"}, {count, 2 * n});
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_embed_times_cpu(to, from, count, by, n, host);
  });
}

Result levels(const py::object& call, int32_t threads) {
  Reader reader("levels");
  const Levels of(reader, call);
  const NopropLevels out = levels_out(reader, get(call, "out"), of);
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_levels_cpu(&out, &of.gamma, &of.weighting, of.t, of.u_squared, of.D, of.B, host);
  });
}

Result levels_gradient(const py::object& call, int32_t threads) {
  Reader reader("levels");
  const py::object levels = get(call, "levels"), made = get(levels, "out");
  const Levels of(reader, levels);
  const int64_t R = of.R, B = of.B, H = of.gamma.hidden;
  const auto doubles = [&](const char* name, int64_t count) {
    return reader.tensors.read(get(made, name), {name}, Kind::kFloat64, {R, count}).as<double>();
  };
  const auto rows = [&](const char* name) {
    return reader.floats(get(call, name), {name}, {R, B});
  };
  const double *net = doubles("net", B + 2), *net_slope = doubles("net_slope", B);
  const NopropLevelsGrads given = {rows("d_signal"), rows("d_noise"), rows("d_weight"),
                                   rows("d_last_signal"), rows("d_last_noise")};
  const py::object grads = get(call, "grads");
  const auto grad = [&](const char* name, std::initializer_list<int64_t> shape) {
    return reader.out(item(grads, py::str(name)), {name, nullptr, ".grad"}, shape);
  };
  const NopropGammaGrads out = {grad("w1", {R, H}), grad("b1", {R, H}), grad("w2", {R, H}),
                                grad("gamma_0", {R}), grad("delta", {R})};
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_levels_gradient_cpu(&out, &of.gamma, &of.weighting, of.t, net, net_slope, &given,
                                      of.u_squared, of.D, B, host);
  });
}

Result update_shared(const py::object& call, const Optimizer& optimizer, int32_t threads) {
  Reader reader("update");
  Tensors& tensors = reader.tensors;
  const py::object updates_given = get(call, "updates");
  const int64_t R = reader.n = reader.sizes(updates_given, {"updates"}, 1).shape[0];
  const SharedParams shared(reader, call, optimizer, R);
  const NopropUpdateRule rule = reader.rule(get(call, "rule"), &optimizer);
  const auto counter = [&](const py::object& tensor, const char* name) {
    return tensors.write(tensor, {name}, Kind::kInt64, {R}).as<int64_t>();
  };
  int64_t *updates = counter(updates_given, "updates"),
          *draws = counter(get(call, "draws"), "draws");
  const auto* apply = tensors.read(get(call, "apply"), {"apply"}, Kind::kBool, {R}).as<uint8_t>();
  auto* applied = tensors.write(get(call, "applied"), {"applied"}, Kind::kBool, {R}).as<uint8_t>();
  return without_gil(tensors, threads, [&](const NopropHost* host) {
    return noprop_update_shared_cpu(shared.params.data(), shared.counts.data(),
                                    static_cast<int32_t>(shared.params.size()), R, apply, applied,
                                    updates, draws, &rule, host);
  });
}

Result forward(const Plan& plan, const py::object& call, const py::object& saved_given,
               int32_t threads) {
  Reader reader("forward");
  const bool training = get(call, "training").cast<bool>();
  const Slices state(reader.tensors, plan, call, {false, training, false}, nullptr);
  const py::object logits_given = get(call, "logits");
  const int64_t n = reader.n = state.n;
  const py::object z = item(get(call, "inputs"), plan.names[static_cast<size_t>(plan.plan.z)]);
  if (z.is_none()) reader.tensors.refuse({"z"}, "be among the inputs");
  const int64_t B = reader.B = plan.rows(reader.sizes(z, {"z"}, 3).shape[1]);
  const auto inputs = reader.inputs(plan, call, n, false);
  const NopropLayer& first = plan.plan.layers[0];
  if (logits_given.is_none() &&
      (plan.plan.num_layers > 1 || first.activation || first.norm || first.kind != NOPROP_DENSE))
    reader.tensors.refuse({"logits"}, "be a tensor, as the plan is more than a product");
  float* logits = reader.out_or_null(logits_given, {"logits"}, {n, B, plan.M()});
  char* saved =
      saved_given.is_none() ? nullptr : take_saved(reader.tensors, plan, saved_given, n, B, true);
  NopropNoise noise = {};
  const int64_t* seeds = nullptr;
  if (const py::object given = get(call, "noise"); !given.is_none()) {
    noise = reader.noise(call);
    seeds = reader.tensors.read(get(given, "seeds"), {"seeds"}, Kind::kInt64, {n}).as<int64_t>();
  } else if (training && plan.has_dropout()) {
    reader.tensors.refuse({"noise"}, "be given in training where the plan has dropout");
  }
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_forward_cpu(logits, saved, &state.slices, inputs.data(), seeds,
                              seeds ? &noise : nullptr, B, training, host);
  });
}

Result head(const py::object& call, int32_t threads) {
  Reader reader("head");
  const py::object logits_given = get(call, "logits");
  const TensorView sizes = reader.sizes(logits_given, {"logits"}, 3);
  const int64_t n = reader.n = sizes.shape[0], B = reader.B = sizes.shape[1], M = sizes.shape[2];
  if (M > std::numeric_limits<int32_t>::max())
    reader.tensors.refuse({"logits"}, "have fewer than 2^31 classes, got " + std::to_string(M));
  const float* logits = reader.floats(logits_given, {"logits"}, {n, B, M});
  const NopropObjective objective = reader.objective(call);
  const NopropEmbedding embedding = reader.embedding(call, M);
  const NopropLabels y = reader.labels(call);
  const float* eps = reader.floats_or_null(get(call, "eps"), {"eps"}, {n, B, embedding.D});
  const bool denoises = objective.head == NOPROP_SOFTMAX || objective.head == NOPROP_LINEAR;
  if (objective.flow != 0 && denoises && !eps && n * B > 0)
    reader.tensors.refuse({"eps"}, "be given where flow is not 0, got None");
  float* loss = reader.out_or_null(get(call, "loss"), {"loss"}, {n});
  float* error = reader.out_or_null(get(call, "error"), {"error"}, {n, B});
  float* d_logits = reader.out_or_null(get(call, "d_logits"), {"d_logits"}, {n, B, M});
  float* u_hat = reader.out_or_null(get(call, "u_hat"), {"u_hat"}, {n, B, embedding.D});
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_head_cpu(loss, error, d_logits, u_hat, logits, eps, &objective, &embedding, &y, n,
                           B, M, host);
  });
}

Result backward(const Plan& plan, const py::object& call, const py::object& saved_given,
                bool training, const Optimizer* optimizer, int32_t threads) {
  Reader reader("backward");
  Tensors& tensors = reader.tensors;
  Slices state(tensors, plan, call, {optimizer != nullptr, false, false}, optimizer);
  const py::object d_logits_given = get(call, "d_logits"), grads = get(call, "grads");
  const int64_t n = reader.n = state.n;
  const int64_t B = reader.B = plan.rows(reader.sizes(d_logits_given, {"d_logits"}, 3).shape[1]);
  const float* d_logits = reader.floats(d_logits_given, {"d_logits"}, {n, B, plan.M()});
  if (!grads.is_none()) state.take_grads(plan, grads, true);
  const char* saved = take_saved(tensors, plan, saved_given, n, B, false);
  const auto d_inputs = reader.d_inputs(plan, get(call, "d_inputs"));
  const NopropUpdateRule rule = reader.rule(get(call, "rule"), optimizer);
  uint8_t* applied =
      optimizer ? tensors.write(get(call, "applied"), {"applied"}, Kind::kBool, {n}).as<uint8_t>()
                : nullptr;
  return without_gil(tensors, threads, [&](const NopropHost* host) {
    return noprop_backward_cpu(&state.slices, saved, d_logits, d_inputs.data(), &rule, applied, B,
                               training, host);
  });
}

Result update(const Plan& plan, const py::object& call, const Optimizer& optimizer,
              int32_t threads) {
  Reader reader("update");
  Slices state(reader.tensors, plan, call, {true, false, false}, &optimizer);
  reader.n = state.n;
  state.take_grads(plan, get(call, "grads"), false);
  const NopropUpdateRule rule = reader.rule(get(call, "rule"), &optimizer);
  const uint8_t* apply =
      reader.tensors.read(get(call, "apply"), {"apply"}, Kind::kBool, {state.n}).as<uint8_t>();
  const py::object out = get(call, "applied");
  uint8_t* const applied =
      out.is_none() ? nullptr
                    : reader.tensors.write(out, {"applied"}, Kind::kBool, {state.n}).as<uint8_t>();
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_update_cpu(&state.slices, apply, applied, &rule, host);
  });
}

Result predict(const Plan& plan, const py::object& call, int32_t threads) {
  Reader reader("predict");
  Tensors& tensors = reader.tensors;
  const Slices state(tensors, plan, call, {}, nullptr);
  const py::object logits_given = get(call, "logits");
  const TensorView sizes = reader.sizes(logits_given, {"logits"}, 5);
  const int64_t kept = sizes.shape[0], S = sizes.shape[1], R = sizes.shape[2], M = plan.M();
  const int64_t B = reader.B = plan.rows(sizes.shape[3]);
  if (R < 1 || state.n < 1 || state.n % R != 0)
    tensors.refuse({"index"}, "have the same blocks of each of " + std::to_string(R) +
                                  " replicas, got " + std::to_string(state.n) + " slices");
  const Chain chain(reader, plan, call);
  const int64_t L = state.n / R, E = chain.chain.evaluations;
  if (L != 1 && L != E)
    tensors.refuse({"index"}, "have 1 block or one for each of " + std::to_string(E) +
                                  " evaluations, got " + std::to_string(L));
  chain.check_kept(tensors, kept);
  const int32_t head = Reader::head(get(call, "head"));
  const NopropEmbedding embedding = reader.embedding(call, M);
  if (embedding.D != plan.D())
    tensors.refuse({"D"}, "be the width " + std::to_string(plan.D()) + " of z, got " +
                              std::to_string(embedding.D));
  const auto inputs = reader.inputs(plan, call, R, false, chain.chain.t_input);
  const int64_t* seeds =
      tensors.read(get(call, "seeds"), {"seeds"}, Kind::kInt64, {R}).as<int64_t>();
  float* logits = reader.out(logits_given, {"logits"}, {kept, S, R, B, M});
  float* u_hat = reader.out(get(call, "u_hat"), {"u_hat"}, {kept, S, R, B, embedding.D});
  float* z = reader.out(get(call, "z"), {"z"}, {kept, S, R, B, embedding.D});
  const int64_t first_row = integer(tensors, call, "first_row", 0);
  const bool add_noise = get(call, "add_noise").cast<bool>();
  return without_gil(tensors, threads, [&](const NopropHost* host) {
    return noprop_predict_cpu(logits, u_hat, z, &state.slices, seeds, inputs.data(), &chain.chain,
                              head, &embedding, S, R, B, first_row, add_noise, kept, host);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.attr("compiler") = NOPROP_COMPILER;
  m.attr("cuda_left_out") = noprop_cuda_left_out;
  m.attr("most_results") = kMostResults;
  m.attr("most_sources") = kMostSources;
  m.def("use_openmp", &use_openmp, py::arg("parallel"), py::arg("num_threads"), py::arg("pause"));
  m.def("use_torch", &use_torch, py::arg("tensor"), py::arg("parameter"), py::arg("storage"),
        py::arg("exchange"), py::arg("followers"), py::arg("increment_version"));

  py::class_<Plan>(m, "Plan")
      .def(py::init<const py::object&, const std::string&>(), py::arg("plan"), py::arg("precision"))
      .def("saved_floats",
           [](const Plan& plan, int64_t n, int64_t B) {
             return n * noprop_saved_bytes_cpu(&plan.plan, plan.rows(B)) / 4 + kSavedRoom;
           })
      .def("crew_size",
           [](const Plan& plan, int64_t chains, int64_t B, int32_t threads) {
             return noprop_crew_size_cpu(&plan.plan, chains, B, threads);
           })
      .def("team_size",
           [](const Plan& plan, int64_t n, int64_t B, int32_t threads) {
             return noprop_team_size_cpu(&plan.plan, n, B, threads);
           })
      .def("workspace_bytes",
           [](const Plan& plan, int64_t n, int64_t B, int64_t D, int64_t K) {
             return noprop_workspace_bytes_cpu(&plan.plan, n, B, D, K);
           })
      .def("packed_bytes", [](const Plan& plan, int64_t n, int64_t B, int64_t K) {
        return noprop_packed_bytes_cpu(&plan.plan, n, B, K);
      });

  py::class_<Optimizer>(m, "Optimizer")
      .def(py::init<const std::string&, bool, bool, const py::kwargs&>(), py::arg("kind"),
           py::arg("has_m"), py::arg("has_v"));

  py::class_<KnownLayer>(m, "KnownLayer")
      .def_static("of", &KnownLayer::of)
      .def("forward", &KnownLayer::forward)
      .def("backward", &KnownLayer::backward);

  m.def("train", &train);
  m.def("add_noise", &add_noise);
  m.def("draw_times", &draw_times);
  m.def("embed_times", &embed_times);
  m.def("levels", &levels);
  m.def("levels_gradient", &levels_gradient);
  m.def("update_shared", &update_shared);
  m.def("forward", &forward);
  m.def("head", &head);
  m.def("backward", &backward);
  m.def("add_noise_rows", &add_noise_rows);
  m.def("error_rows", &error_rows);
  m.def("dense", &dense);
  m.def("layer_saved", &LayerSaved::made);
  m.def("isa_of", [](const py::object& saved) { return LayerSaved::in(saved)->isa(); });
  m.def("forward_layer", &forward_layer);
  m.def("backward_layer", &backward_layer);
  m.def("update", &update);
  m.def("predict", &predict);

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
  m.def("processors", &noprop::available_processors, py::arg("root") = "");
  m.def("threads", &noprop_threads);
  m.def("fma_gflop", &noprop_fma_gflop, py::call_guard<py::gil_scoped_release>());
}
