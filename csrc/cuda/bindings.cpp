// The CUDA backend's module for Python: dicts of integers and addresses to the structs of
// program.h, by field name, and the C interface of noprop_cuda.h. Every tensor behind an address
// was checked, and is kept alive, by the caller in noprop_kernels/backends/cuda.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/fields.h"
#include "cuda/program.h"
#include "noprop_cuda.h"

namespace py = pybind11;

namespace noprop::cuda {
namespace {

void read_fields(Fields& f, GatherStage& s) {
  f.get("out", s.out).get("bad", s.bad).get("data", s.data).get("rows", s.rows);
  f.get("mean", s.mean).get("scale", s.scale).get("type", s.type).get("F", s.F);
}

void read_fields(Fields& f, NoiseStage& s) {
  f.get("z", s.z).get("eps", s.eps).get("labels", s.labels).get("bad", s.bad);
  f.get("y", s.y).get("rows", s.rows).get("W_embed", s.W_embed).get("seeds", s.seeds);
  f.get("draw", s.draw).get("block", s.block).get("signal", s.signal).get("noise", s.noise);
  f.get("first_row", s.first_row).get("sigma", s.sigma).get("stream", s.stream);
  f.get("M", s.M).get("D", s.D);
}

void read_fields(Fields& f, DenseStage& s) {
  f.get("out", s.out).get("kept", s.kept).get("sources", s.sources).get("add", s.add);
  f.get("weight", s.weight).get("bias", s.bias).get("widths", s.widths);
  f.get("num_sources", s.num_sources).get("H", s.H).get("in_width", s.in_width);
  f.get("activation", s.activation).get("tile", s.tile);
}

void read_fields(Fields& f, NormStage& s) {
  f.get("out", s.out).get("kept", s.kept).get("mean", s.mean).get("rstd", s.rstd);
  f.get("batch_mean", s.batch_mean).get("batch_var", s.batch_var).get("y", s.y).get("add", s.add);
  f.get("weight", s.weight).get("bias", s.bias);
  f.get("running_mean", s.running_mean).get("running_var", s.running_var);
  f.get("eps", s.eps).get("momentum", s.momentum).get("H", s.H).get("activation", s.activation);
  f.get("training", s.training).get("move", s.move);
}

void read_fields(Fields& f, HeadStage& s) {
  f.get("error", s.error).get("d_logits", s.d_logits).get("d_u_hat", s.d_u_hat).get("p", s.p);
  f.get("logits", s.logits).get("labels", s.labels).get("eps", s.eps);
  f.get("W_embed", s.W_embed).get("weight", s.weight).get("flow", s.flow).get("rows", s.rows);
  f.get("head", s.head).get("M", s.M).get("D", s.D);
}

void read_fields(Fields& f, LossStage& s) {
  f.get("loss", s.loss).get("applied", s.applied).get("rates", s.rates).get("error", s.error);
  f.get("flags", s.flags).get("draws", s.draws).get("updates", s.updates);
  f.get("errors", s.errors).get("weight", s.weight).get("lr", s.lr);
  f.get("weight_decay", s.weight_decay).get("rows", s.rows).get("num_flags", s.num_flags);
}

void read_fields(Fields& f, RatesStage& s) {
  f.get("rates", s.rates).get("applied", s.applied).get("d_logits", s.d_logits);
  f.get("updates", s.updates).get("lr", s.lr).get("weight_decay", s.weight_decay);
  f.get("size", s.size);
}

void read_fields(Fields& f, ResultGradientStage& s) {
  f.get("d_result", s.d_result).get("d_y", s.d_y).get("kept", s.kept);
  f.get("consumers", s.consumers).get("num_consumers", s.num_consumers);
  f.get("F", s.F).get("activation", s.activation).get("tile", s.tile);
}

void read_fields(Fields& f, NormGradientStage& s) {
  f.get("d_y", s.d_y).get("d_weight", s.d_weight).get("d_bias", s.d_bias).get("d_out", s.d_out);
  f.get("y", s.y).get("mean", s.mean).get("rstd", s.rstd).get("weight", s.weight);
  f.get("H", s.H).get("training", s.training);
}

void read_fields(Fields& f, NumbersStage& s) {
  f.get("d_signal", s.d_signal).get("d_noise", s.d_noise).get("d_z", s.d_z).get("eps", s.eps);
  f.get("labels", s.labels).get("W_embed", s.W_embed).get("D", s.D);
}

void read_fields(Fields& f, EmbeddingStage& s) {
  f.get("d_W", s.d_W).get("p", s.p).get("d_u_hat", s.d_u_hat).get("d_z", s.d_z);
  f.get("labels", s.labels).get("signal", s.signal).get("M", s.M).get("D", s.D);
}

void read_fields(Fields& f, UpdateWeightStage& s) {
  f.get("param", s.param).get("d_y", s.d_y).get("x", s.x).get("rates", s.rates);
  f.get("H", s.H).get("F", s.F).get("in_width", s.in_width).get("column", s.column);
  f.get("resident", s.resident).get("resident_tiles", s.resident_tiles);
}

void read_fields(Fields& f, UpdateVectorStage& s) {
  f.get("param", s.param).get("gradient", s.gradient).get("rates", s.rates).get("sum", s.sum);
  f.get("H", s.H);
}

void read_fields(Fields& f, UpdateStatisticStage& s) {
  f.get("running", s.running).get("batch", s.batch).get("rates", s.rates);
  f.get("momentum", s.momentum).get("H", s.H);
}

void read_fields(Fields& f, ApplyStage& s) {
  f.get("param", s.param).get("gradient", s.gradient).get("rates", s.rates);
}

void read_fields(Fields& f, UHatStage& s) {
  f.get("u_hat", s.u_hat).get("logits", s.logits).get("W_embed", s.W_embed);
  f.get("M", s.M).get("D", s.D).get("linear", s.linear);
}

void read_fields(Fields& f, ChainStage& s) {
  f.get("z", s.z).get("before", s.before).get("u_hat", s.u_hat);
  f.get("a", s.a).get("b", s.b).get("sqrt_c", s.sqrt_c).get("seeds", s.seeds);
  f.get("sample", s.sample).get("first_row", s.first_row).get("D", s.D);
}

// the union's member of the stage's kind
void read_kind(Fields& f, Stage& s) {
  switch (s.kind) {
    case Kind::kGather:
      return read_fields(f, s.gather);
    case Kind::kNoise:
      return read_fields(f, s.noise);
    case Kind::kDense:
      return read_fields(f, s.dense);
    case Kind::kNorm:
      return read_fields(f, s.norm);
    case Kind::kHead:
      return read_fields(f, s.head);
    case Kind::kLoss:
      return read_fields(f, s.loss);
    case Kind::kRates:
      return read_fields(f, s.rates);
    case Kind::kResultGradient:
      return read_fields(f, s.result_gradient);
    case Kind::kNormGradient:
      return read_fields(f, s.norm_gradient);
    case Kind::kNumbers:
      return read_fields(f, s.numbers);
    case Kind::kEmbedding:
      return read_fields(f, s.embedding);
    case Kind::kUpdateWeight:
      return read_fields(f, s.update_weight);
    case Kind::kUpdateVector:
      return read_fields(f, s.update_vector);
    case Kind::kUpdateStatistic:
      return read_fields(f, s.update_statistic);
    case Kind::kApply:
      return read_fields(f, s.apply);
    case Kind::kUHat:
      return read_fields(f, s.u_hat);
    case Kind::kChain:
      return read_fields(f, s.chain);
  }
}

void read_stage(const py::handle& item, size_t at, Stage& s) {
  std::string name = "stage " + std::to_string(at);
  const auto dict = py::cast<py::dict>(item);
  if (const py::handle kind = PyDict_GetItemString(dict.ptr(), "kind"); kind)
    name += " (" + py::str(kind).cast<std::string>() + ")";
  Fields f(dict, name);
  f.get("kind", s.kind).get("tiles", s.tiles).get("first", s.first);
  f.get("barrier", s.barrier).get("once", s.once);
  read_kind(f, s);
  f.end();
}

void read_hyper(const py::handle& item, Hyper& out) {
  Fields f(py::cast<py::dict>(item), "hyper");
  f.get("rule", out.rule).get("momentum", out.momentum);
  f.get("one_less_beta_1", out.one_less_beta_1).get("beta_2", out.beta_2);
  f.get("one_less_beta_2", out.one_less_beta_2).get("eps", out.eps);
  f.get("log_beta_1", out.log_beta_1).get("log_beta_2", out.log_beta_2);
  f.end();
}

std::unique_ptr<Program> to_program(const py::dict& dict) {
  auto program = std::make_unique<Program>();  // value-initialised: zeros
  Program& p = *program;
  Fields f(dict, "program");
  f.get("index", p.index).get("index_step", p.index_step).get("barriers", p.barriers);
  f.get("n", p.n).get("K", p.K).get("B", p.B).get("groups", p.groups).get("blocks", p.blocks);
  f.get("cluster", p.cluster).get("precision", p.precision);
  read_hyper(f.take("hyper"), p.hyper);
  f.get("resident_floats", p.resident_floats).get("clocks", p.clocks);
  const auto list = py::cast<py::list>(f.take("stages"));
  f.end();
  if (list.size() > kMaxStages)
    throw py::value_error("program: may have " + std::to_string(kMaxStages) + " stages, got " +
                          std::to_string(list.size()));
  p.num_stages = static_cast<int32_t>(list.size());
  for (size_t i = 0; i < list.size(); ++i) read_stage(list[i], i, p.stages[i]);
  return program;
}

void check(int failed) {
  if (failed) throw std::runtime_error(noprop_cuda_error());
}

void launch(const py::dict& dict, int32_t device, std::uintptr_t stream) {
  const auto program = to_program(dict);
  const py::gil_scoped_release release;
  check(
      noprop_cuda_launch(program.get(), sizeof(Program), device, reinterpret_cast<void*>(stream)));
}

int32_t device_count() {
  int32_t count = 0;
  check(noprop_cuda_device_count(&count));
  return count;
}

py::dict device(int32_t at) {
  NopropCudaDevice facts{};
  check(noprop_cuda_device(at, &facts));
  py::dict dict;
  dict["name"] = facts.name;
  dict["capability"] = py::make_tuple(facts.major, facts.minor);
  dict["multiprocessors"] = facts.multiprocessors;
  dict["cooperative"] = facts.cooperative != 0;
  dict["shared_bytes"] = facts.shared_bytes;
  dict["l2_bytes"] = facts.l2_bytes;
  dict["memory_bytes"] = facts.memory_bytes;
  return dict;
}

int64_t scratch_bytes(const std::string& precision) {
  int64_t bytes = 0;
  check(noprop_cuda_scratch_bytes(static_cast<int32_t>(to_enum<Precision>(precision)), &bytes));
  return bytes;
}

int32_t resident_blocks(int32_t at, const std::string& precision, int32_t resident_floats) {
  int32_t blocks = 0;
  const auto code = static_cast<int32_t>(to_enum<Precision>(precision));
  check(noprop_cuda_resident_blocks(at, code, resident_floats, &blocks));
  return blocks;
}

int32_t resident_clusters(int32_t at, const std::string& precision, int32_t resident_floats,
                          int32_t blocks) {
  int32_t clusters = 0;
  const auto code = static_cast<int32_t>(to_enum<Precision>(precision));
  check(noprop_cuda_resident_clusters(at, code, resident_floats, blocks, &clusters));
  return clusters;
}

py::dict constants() {
  py::dict dict;
  dict["kMaxStages"] = kMaxStages;
  dict["kMaxSources"] = kMaxSources;
  dict["kMaxFlags"] = kMaxFlags;
  dict["kRows"] = kRows;
  dict["kChunkRows"] = kChunkRows;
  dict["kColumns"] = kColumns;
  dict["kTileH"] = kTileH;
  dict["kTileF"] = kTileF;
  dict["kEmbedding"] = kEmbedding;
  dict["kApplied"] = kApplied;
  dict["kMostOfCluster"] = kMostOfCluster;
  return dict;
}

}  // namespace

void bind(py::module_& m) {
  m.def("launch", &launch, py::arg("program"), py::arg("device"), py::arg("stream"));
  m.def("device_count", &device_count);
  m.def("device", &device, py::arg("device"));
  m.def("scratch_bytes", &scratch_bytes, py::arg("precision"));
  m.def("resident_blocks", &resident_blocks, py::arg("device"), py::arg("precision"),
        py::arg("resident_floats"));
  m.def("resident_clusters", &resident_clusters, py::arg("device"), py::arg("precision"),
        py::arg("resident_floats"), py::arg("blocks"));
  m.def("constants", &constants);
  m.def("product_tile", &product_tile, py::arg("B"), py::arg("columns"));
  m.def(
      "moments", [](const std::string& rule) { return moments(to_enum<Rule>(rule)); },
      py::arg("rule"));
}

}  // namespace noprop::cuda

#ifdef NOPROP_CUDA_ON_HOST
PYBIND11_MODULE(_cuda_host, m, py::mod_gil_not_used()) {
  m.attr("on_host") = true;
#else
PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.attr("on_host") = false;
#endif
#ifdef NOPROP_CUDA_CLOCKS
  m.attr("counts_cycles") = true;
#else
  m.attr("counts_cycles") = false;
#endif
  noprop::cuda::bind(m);
}
