// Calls on one batch of labels, with tensors as the functions of noprop_kernels.functional have
// them: without a record, so that a few rows do not pay for making and reading one.
#pragma once

#include <cstdint>
#include <limits>

#include "call_reader.h"
#include "without_gil.h"

namespace noprop {

// the embeddings of a call: W_embed (M, D), or none where they are one-hot
inline NopropEmbedding embedding_of(Reader& reader, const py::object& W_embed, int64_t M,
                                    int64_t D) {
  if (M > std::numeric_limits<int32_t>::max())
    reader.tensors.refuse({"y"}, "have fewer than 2^31 classes, got " + std::to_string(M));
  return {.W = reader.floats_or_null(W_embed, {"W_embed"}, {M, D}), .D = D};
}

inline NopropLabels labels_of(Reader& reader, const py::object& y) {
  NopropLabels made = {};
  made.replicas = 1;
  made.data = reader.tensors.read(y, {"y"}, Kind::kInt64, {reader.B}).as<int64_t>();
  return made;
}

// z and eps (B, D) of labels y (B,), by signal and noise, each a float or (B,) whose stride may be
// 0
inline Result add_noise_rows(const py::object& y, const py::object& signal, const py::object& noise,
                             const py::object& W_embed, uint32_t stream, int64_t seed, int64_t draw,
                             int64_t block, int64_t first_row, float sigma, const py::object& z,
                             const py::object& eps, int32_t threads) {
  Reader reader("add_noise");
  const TensorView sizes = reader.sizes(z, {"z"}, 2);
  const int64_t B = reader.B = sizes.shape[0], D = sizes.shape[1];
  const int64_t M = W_embed.is_none() ? D : reader.sizes(W_embed, {"W_embed"}, 2).shape[0];
  const NopropEmbedding embedding = embedding_of(reader, W_embed, M, D);
  const NopropLabels labels = labels_of(reader, y);
  float numbers[2];
  const auto per_row = [&](const py::object& given, const char* name,
                           float* number) -> NopropPerRow {
    if (PyFloat_CheckExact(given.ptr())) {
      *number = static_cast<float>(PyFloat_AS_DOUBLE(given.ptr()));
      return {number, 0, 0, 0};
    }
    const TensorView view = reader.tensors.read(given, {name}, Kind::kFloat32, {B}, 1);
    return {view.as<float>(), 0, 0, view.strides[0]};
  };
  const NopropNoising noising = {
      .signal = per_row(signal, "signal", &numbers[0]),
      .noise = per_row(noise, "noise", &numbers[1]),
      .sigma = sigma,
  };
  NopropNoise address = {};
  address.draw = &draw;
  address.block = &block;
  address.stream = stream;
  address.first_row = first_row;
  float* const z_out = reader.out(z, {"z"}, {B, D});
  float* const eps_out = reader.out(eps, {"eps"}, {B, D});
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_add_noise_cpu(z_out, eps_out, &seed, &address, &noising, &embedding, &labels, 1,
                                B, M, host);
  });
}

// error (B,), u_hat (B, D) or None and d_logits (B, M), of logits (B, M) and labels y (B,)
inline Result error_rows(const py::object& logits, const py::object& y, const py::object& W_embed,
                         const py::object& eps, const py::object& head, float flow,
                         const py::object& error, const py::object& u_hat,
                         const py::object& d_logits, int32_t threads) {
  Reader reader("denoising_loss");
  const TensorView sizes = reader.sizes(logits, {"logits"}, 2);
  const int64_t B = reader.B = sizes.shape[0], M = sizes.shape[1];
  const int64_t D = W_embed.is_none() ? M : reader.sizes(W_embed, {"W_embed"}, 2).shape[1];
  const NopropEmbedding embedding = embedding_of(reader, W_embed, M, D);
  const float one = 1;
  const NopropObjective objective = {
      .weight = {&one, 0, 0, 0},
      .flow = flow,
      .head = Reader::head(head),
      .rows = 1,
      .radius = 0,
  };
  if (objective.head == NOPROP_RADIAL)
    reader.tensors.refuse({"head"}, "be softmax, linear or cross_entropy, got radial");
  if (flow != 0 && objective.head != NOPROP_CROSS_ENTROPY && eps.is_none())
    reader.tensors.refuse({"eps"}, "be given where flow is not 0, got None");
  const float* const from = reader.floats(logits, {"logits"}, {B, M});
  const NopropLabels labels = labels_of(reader, y);
  const float* const noise = reader.floats_or_null(eps, {"eps"}, {B, D});
  float* const error_out = reader.out(error, {"error"}, {B});
  float* const u_hat_out = reader.out_or_null(u_hat, {"u_hat"}, {B, D});
  float* const d_logits_out = reader.out(d_logits, {"d_logits"}, {B, M});
  return without_gil(reader.tensors, threads, [&](const NopropHost* host) {
    return noprop_head_cpu(nullptr, error_out, d_logits_out, u_hat_out, from, noise, &objective,
                           &embedding, &labels, 1, B, M, host);
  });
}

}  // namespace noprop
