// Reads the rest of a call: its sizes, and the tensors that must have them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "call_state.h"

namespace noprop {

// The rows that indices select from a data set, copied once for all inputs that share them.
class Rows {
 public:
  explicit Rows(Tensors& tensors) : tensors_(tensors) {}

  struct Named {
    const int64_t *indices, *replica;
    int64_t replicas;
  };

  Named of(py::handle gather, int64_t K, int64_t n, int64_t B) {
    const py::object indices = get(gather, "indices"), replica = get(gather, "replica");
    Copy& rows = copy(indices, "indices", {K, kAny, B});
    Copy& which = copy(replica, "replica", {n});
    for (const int64_t r : which.values)
      if (r < 0 || r >= rows.view.shape[1])
        tensors_.refuse({"replica"}, "be in 0.." + std::to_string(rows.view.shape[1] - 1) +
                                         ", got " + std::to_string(r));
    return {rows.values.data(), which.values.data(), rows.view.shape[1]};
  }

 private:
  struct Copy {
    py::object tensor;
    TensorView view;
    std::vector<int64_t> values;
  };

  Copy& copy(const py::object& tensor, const char* name, std::initializer_list<int64_t> shape) {
    for (const auto& made : copies_)
      if (made->tensor.is(tensor)) return *made;
    copies_.push_back(std::make_unique<Copy>());
    Copy& made = *copies_.back();
    made.tensor = tensor;
    made.view = tensors_.copied(tensor, {name}, Kind::kInt64, shape, made.values);
    return made;
  }

  Tensors& tensors_;
  std::vector<std::unique_ptr<Copy>> copies_;
};

constexpr int64_t kSavedRoom = 16;  // floats

// Reads a call's tensors for the kernels: first its sizes, then the tensors of these sizes.
struct Reader {
  Tensors tensors;
  Rows rows{tensors};
  int64_t n = 0, K = 1, B = 0;

  explicit Reader(const char* op) : tensors(op) {}

  const float* floats(py::handle tensor, const Name& name, std::initializer_list<int64_t> shape) {
    return tensors.read(tensor, name, Kind::kFloat32, shape).as<float>();
  }
  const float* floats_or_null(const py::object& tensor, const Name& name,
                              std::initializer_list<int64_t> shape) {
    return tensor.is_none() ? nullptr : floats(tensor, name, shape);
  }
  float* out(py::handle tensor, const Name& name, std::initializer_list<int64_t> shape) {
    return tensors.write(tensor, name, Kind::kFloat32, shape).as<float>();
  }
  float* out_or_null(const py::object& tensor, const Name& name,
                     std::initializer_list<int64_t> shape) {
    return tensor.is_none() ? nullptr : out(tensor, name, shape);
  }

  // the shape of a tensor that defines the call's sizes; its address is taken later
  TensorView sizes(py::object tensor, const Name& name, int ndim) {
    py::handle looked_at = tensor;
    const TensorView view = tensors.look(looked_at, name, false);
    if (view.ndim != ndim)
      tensors.refuse(name, "have " + std::to_string(ndim) + " dimensions, got shape " +
                               tuple_text(view.shape, view.ndim));
    return view;
  }

  NopropPerRow per_row(py::handle record, const char* name) {
    const TensorView view = tensors.read(get(record, name), {name}, Kind::kFloat32, {K, n, B}, 3);
    return {view.as<float>(), view.strides[0], view.strides[1], view.strides[2]};
  }

  NopropNoising noising(py::handle call) {
    const py::object noising = get(call, "noising");
    return {
        .signal = per_row(noising, "signal"),
        .noise = per_row(noising, "noise"),
        .sigma = get(noising, "sigma").cast<float>(),
    };
  }

  NopropObjective objective(py::handle call) {
    const py::object objective = get(call, "objective");
    const NopropObjective made = {
        .weight = per_row(objective, "weight"),
        .flow = get(objective, "flow").cast<float>(),
        .head = head(get(objective, "head")),
        .rows = integer(tensors, objective, "rows", 1),
        .radius = get(objective, "radius").cast<float>(),
    };
    if (made.head == NOPROP_RADIAL && !(made.radius > 0))
      tensors.refuse({"radius"}, "be above 0 with the radial head, got " +
                                     py::str(get(objective, "radius")).cast<std::string>());
    return made;
  }

  // D and the embeddings (M, D), which are one-hot if they are not given
  NopropEmbedding embedding(py::handle call, int64_t M) {
    const py::object embedding = get(call, "embedding");
    const int64_t D = integer(tensors, embedding, "D", 1);
    const float* W = floats_or_null(get(embedding, "W_embed"), {"W_embed"}, {M, D});
    if (!W && D != M)
      tensors.refuse({"D"}, "be the number of classes " + std::to_string(M) +
                                " where W_embed is None, got " + std::to_string(D));
    return {.W = W, .D = D};
  }

  static int32_t head(const py::object& name) {
    const auto text = name.cast<std::string>();
    if (text == "softmax") return NOPROP_SOFTMAX;
    if (text == "linear") return NOPROP_LINEAR;
    if (text == "cross_entropy") return NOPROP_CROSS_ENTROPY;
    if (text == "radial") return NOPROP_RADIAL;
    throw py::value_error("head must be softmax, linear, cross_entropy or radial, got " + text);
  }

  NopropNoise noise(py::handle call) {
    const py::object noise = get(call, "noise");
    const TensorView draw = tensors.read(get(noise, "draw"), {"draw"}, Kind::kInt64, {K, n}, 2);
    const TensorView block = tensors.read(get(noise, "block"), {"block"}, Kind::kInt64, {K, n}, 2);
    NopropNoise made = {};
    made.draw = draw.as<int64_t>();
    made.draw_stride_k = draw.strides[0];
    made.draw_stride_slice = draw.strides[1];
    made.block = block.as<int64_t>();
    made.block_stride_k = block.strides[0];
    made.block_stride_slice = block.strides[1];
    made.stream = static_cast<uint32_t>(integer(tensors, noise, "stream", 0, 255));
    made.first_row = integer(tensors, noise, "first_row", 0);
    return made;
  }

  // inputs (slices, B, F), the first dimension expanded or not, in the plan's order, without input
  // `apart`; of a training call (K, n, B, F) or gathered
  std::vector<NopropInput> inputs(const Plan& plan, py::handle call, int64_t slices, bool steps,
                                  int32_t apart = -1) {
    const py::object given = get(call, "inputs");
    std::vector<NopropInput> made;
    for (size_t j = 0; j < plan.input_widths.size(); ++j) {
      const int64_t F = plan.input_widths[j];
      const Name name = {"", plan.names[j].ptr()};
      NopropInput input = {};
      input.replicas = 1;
      const py::object value = item(given, plan.names[j]);
      const auto number = static_cast<int32_t>(j);
      if ((number == plan.plan.z || number == apart) && value.is_none()) {
        // drawn, or given apart
      } else if (steps && is_gather(value)) {
        take_gathered(input, value, name, F);
      } else if (steps) {
        const TensorView view = tensors.read(value, name, Kind::kFloat32, {K, slices, B, F}, 2);
        input.data = view.data;
        input.stride_k = view.strides[0];
        input.stride_slice = view.strides[1];
      } else {
        const TensorView view = tensors.read(value, name, Kind::kFloat32, {slices, B, F}, 1);
        input.data = view.data;
        input.stride_slice = view.strides[0];
      }
      made.push_back(input);
    }
    return made;
  }

  static bool is_gather(py::handle value) {
    return !PyType_IsSubtype(Py_TYPE(value.ptr()), torch().tensor) && py::hasattr(value, "indices");
  }

  void take_gathered(NopropInput& input, py::handle value, const Name& name, int64_t F) {
    py::object data = get(value, "data");
    py::handle looked_at = data;
    const TensorView found = tensors.look(looked_at, name, false);
    const Kind kind =
        found.kind == Kind::kBFloat16 || found.kind == Kind::kUInt8 ? found.kind : Kind::kFloat32;
    const TensorView view = tensors.read(data, name, kind, {kAny, F});
    input.data = view.data;
    input.dtype = kind == Kind::kFloat32    ? NOPROP_FLOAT32
                  : kind == Kind::kBFloat16 ? NOPROP_BFLOAT16
                                            : NOPROP_UINT8;
    input.rows = view.shape[0];
    const Rows::Named named = rows.of(value, K, n, B);
    input.indices = named.indices;
    input.replica = named.replica;
    input.replicas = named.replicas;
    input.scale = floats_or_null(get(value, "scale"), {"scale"}, {F});
    input.mean = floats_or_null(get(value, "mean"), {"mean"}, {F});
    if (!input.scale != !input.mean) tensors.refuse({"scale"}, "be given with mean, or neither");
  }

  NopropLabels labels(py::handle call) {
    const py::object y = get(call, "y");
    NopropLabels made = {};
    made.replicas = 1;
    if (!is_gather(y)) {
      const TensorView view = tensors.read(y, {"y"}, Kind::kInt64, {K, n, B}, 2);
      made.data = view.as<int64_t>();
      made.stride_k = view.strides[0];
      made.stride_slice = view.strides[1];
      return made;
    }
    const TensorView view = tensors.read(get(y, "data"), {"y"}, Kind::kInt64, {kAny});
    const Rows::Named named = rows.of(y, K, n, B);
    made.data = view.as<int64_t>();
    made.indices = named.indices;
    made.replica = named.replica;
    made.replicas = named.replicas;
    made.rows = view.shape[0];
    return made;
  }

  // all zero without an optimizer
  NopropUpdateRule rule(py::handle rule, const Optimizer* optimizer) {
    if (!optimizer) return {};
    const TensorView lr = tensors.read(get(rule, "lr"), {"lr"}, Kind::kFloat64, {K, n}, 2);
    const TensorView decay =
        tensors.read(get(rule, "weight_decay"), {"weight_decay"}, Kind::kFloat64, {n}, 1);
    NopropUpdateRule made = optimizer->rule;
    made.lr = lr.as<double>();
    made.lr_stride_k = lr.strides[0];
    made.lr_stride_slice = lr.strides[1];
    made.weight_decay = decay.as<double>();
    made.decay_stride_slice = decay.strides[0];
    return made;
  }

  // the requested gradients of inputs (n, B, F)
  std::vector<float*> d_inputs(const Plan& plan, const py::object& wanted) {
    std::vector<float*> made;
    for (size_t j = 0; j < plan.input_widths.size(); ++j)
      made.push_back(out_or_null(item(wanted, plan.names[j]), {"d_", plan.names[j].ptr(), ".grad"},
                                 {n, B, plan.input_widths[j]}));
    return made;
  }
};

// the memory that forward saves for backward, whose size must be that of this plan and batch; it
// begins at a multiple of 64 bytes, for which there is room behind it
inline char* take_saved(Tensors& tensors, const Plan& plan, py::handle saved, int64_t n, int64_t B,
                        bool written) {
  const int64_t floats = n * noprop_saved_bytes_cpu(&plan.plan, B) / 4 + kSavedRoom;
  const TensorView view = tensors.take(saved, {"saved"}, Kind::kFloat32, &floats, 1, 0, written);
  return view.data + (64 - reinterpret_cast<uintptr_t>(view.data) % 64) % 64;
}

}  // namespace noprop
