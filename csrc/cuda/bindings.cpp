// The CUDA backend's module for Python: dicts of integers and addresses to the structs of
// program.h, by field name, and the C interface of noprop_cuda.h. Every tensor behind an address
// was checked, and is kept alive, by the caller in noprop_kernels/backends/cuda.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/description.h"
#include "cuda/fields.h"
#include "cuda/program.h"
#include "noprop_cuda.h"

namespace py = pybind11;

namespace noprop::cuda {
namespace {

void read_stage(const py::handle& item, size_t at, Stage& s) {
  std::string name = "stage " + std::to_string(at);
  const auto dict = py::cast<py::dict>(item);
  if (const py::handle kind = PyDict_GetItemString(dict.ptr(), "kind"); kind)
    name += " (" + py::str(kind).cast<std::string>() + ")";
  Fields f(dict, name);
  s.fields(f);
  with_own_fields(s, [&](auto& own) { own.fields(f); });
  f.end();
}

std::unique_ptr<Program> to_program(const py::dict& dict) {
  auto program = std::make_unique<Program>();  // value-initialised: zeros
  Program& p = *program;
  Fields f(dict, "program");
  p.fields(f);
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
  m.def("description", &Description::of_program);
  m.def("product_tile", &product_tile, py::arg("B"), py::arg("columns"));
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
