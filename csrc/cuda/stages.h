// Each kind of stage has a struct, with its operands and results, and with its name in Python.
#pragma once

#include "cuda/operands.h"

namespace noprop::cuda {

enum class Kind : int32_t {
  kGather,
  kNoise,
  kDense,
  kNorm,
  kHead,
  kLoss,
  kRates,
  kResultGradient,
  kNormGradient,
  kStepGradients,
  kEmbedding,
  kUpdateWeight,
  kUpdateVector,
  kUpdateStatistic,
  kApply,
  kUHat,
  kChain,
};

// out (B, F) = (data[row] - mean) * scale. `bad` is 2 if an index is out of range, 4 if a value is
// not finite. A tile has kRows rows. Without indices `data` has the batch's own rows, which are
// only checked if out is absent.
struct GatherStage {
  static constexpr Kind kKind = Kind::kGather;
  static constexpr char kName[] = "gather";
  Buffer out;   // float
  Buffer bad;   // int32 (tiles,)
  Buffer data;  // of `type`; with indices its strides are 0
  Rows rows;
  const float *mean, *scale;  // (F,), or both null
  Type type;
  int32_t F;

  template <class Visit>
  void fields(Visit& f) {
    f("out", out)("bad", bad)("data", data)("rows", rows)("mean", mean)("scale", scale);
    f("type", type)("F", F);
  }
};

// z = signal * u_y + noise * eps + sigma * eps_1; labels are checked (`bad` is 1 if one is out of
// range) and written
struct NoiseStage {
  static constexpr Kind kKind = Kind::kNoise;
  static constexpr char kName[] = "noise";
  Buffer z, eps;      // float (B, D)
  Buffer labels;      // int64 (B,)
  Buffer bad;         // int32 (tiles,)
  PerRow<int64_t> y;  // with rows.indices: data are the data set's labels
  Rows rows;
  const float* W_embed;  // (M, D), or null: one-hot
  const int64_t* seeds;  // (n,)
  PerRow<int64_t> draw, block;
  PerRow<float> signal, noise;
  int64_t first_row;
  float sigma;
  uint32_t stream;
  int32_t M, D;

  template <class Visit>
  void fields(Visit& f) {
    f("z", z)("eps", eps)("labels", labels)("bad", bad)("y", y)("rows", rows)("W_embed", W_embed);
    f("seeds", seeds)("draw", draw)("block", block)("signal", signal)("noise", noise);
    f("first_row", first_row)("sigma", sigma)("stream", stream)("M", M)("D", D);
  }
};

// out = activation(concat(sources) @ weight.T + bias) + add; a tile is tile x tile
struct DenseStage {
  static constexpr Kind kKind = Kind::kDense;
  static constexpr char kName[] = "dense";
  Buffer out, kept;  // (B, H); kept: the operand of the activation's gradient, or absent
  Buffer sources[kMaxSources];
  Buffer add;
  const float *weight, *bias;  // (N, H, in_width), (N, H)
  int32_t widths[kMaxSources];
  int32_t num_sources, H, in_width;
  Activation activation;
  int32_t tile;  // 16, 32 or 64: product_tile(B, H)

  template <class Visit>
  void fields(Visit& f) {
    f("out", out)("kept", kept)("sources", sources)("add", add)("weight", weight);
    f("bias", bias)("widths", widths)("num_sources", num_sources)("H", H)("in_width", in_width);
    f("activation", activation)("tile", tile);
  }
};

// out = activation(weight * (y - mean) * rstd + bias) + add; a tile has kColumns columns
struct NormStage {
  static constexpr Kind kKind = Kind::kNorm;
  static constexpr char kName[] = "norm";
  Buffer out, kept, mean, rstd, batch_mean, batch_var, y, add;
  const float *weight, *bias;         // (N, H)
  float *running_mean, *running_var;  // (N, H)
  float eps, momentum;
  int32_t H;
  Activation activation;
  int32_t training, move;  // move: moves the running statistics at once

  template <class Visit>
  void fields(Visit& f) {
    f("out", out)("kept", kept)("mean", mean)("rstd", rstd)("batch_mean", batch_mean);
    f("batch_var", batch_var)("y", y)("add", add)("weight", weight)("bias", bias);
    f("running_mean", running_mean)("running_var", running_var)("eps", eps)("momentum", momentum);
    f("H", H)("activation", activation)("training", training)("move", move);
  }
};

// error, d_u_hat, p and d_logits of kRows rows; see head.cuh
struct HeadStage {
  static constexpr Kind kKind = Kind::kHead;
  static constexpr char kName[] = "head";
  Buffer error, d_logits, d_u_hat, p, logits, labels, eps;
  const float* W_embed;
  PerRow<float> weight;
  float flow, rows;
  Head head;
  int32_t M, D;

  template <class Visit>
  void fields(Visit& f) {
    f("error", error)("d_logits", d_logits)("d_u_hat", d_u_hat)("p", p)("logits", logits);
    f("labels", labels)("eps", eps)("W_embed", W_embed)("weight", weight)("flow", flow);
    f("rows", rows)("head", head)("M", M)("D", D);
  }
};

// computes the loss of a slice, whether its step applies, its counters, and its rates (4 floats);
// one tile
struct LossStage {
  static constexpr Kind kKind = Kind::kLoss;
  static constexpr char kName[] = "loss";
  Buffer loss, applied, rates;  // float, uint8, float (4,)
  Buffer error;
  Buffer flags[kMaxFlags];   // int32 (tiles of rows,)
  int64_t *draws, *updates;  // (N,), or null
  int32_t* errors;           // (1,), or null
  PerRow<float> weight;
  PerSlice lr, weight_decay;
  float rows;
  int32_t num_flags;

  template <class Visit>
  void fields(Visit& f) {
    f("loss", loss)("applied", applied)("rates", rates)("error", error)("flags", flags);
    f("draws", draws)("updates", updates)("errors", errors)("weight", weight)("lr", lr);
    f("weight_decay", weight_decay)("rows", rows)("num_flags", num_flags);
  }
};

// computes the same for a backward, from d_logits (size floats), or for an update, from a given
// `applied`
struct RatesStage {
  static constexpr Kind kKind = Kind::kRates;
  static constexpr char kName[] = "rates";
  Buffer rates, applied, d_logits;
  int64_t* updates;
  PerSlice lr, weight_decay;
  int64_t size;

  template <class Visit>
  void fields(Visit& f) {
    f("rates", rates)("applied", applied)("d_logits", d_logits)("updates", updates)("lr", lr);
    f("weight_decay", weight_decay)("size", size);
  }
};

struct Consumer {
  Buffer d_y;           // (B, height); of an `add`: the gradient of its result (B, F)
  const float* weight;  // (N, height, in_width), or null: of an `add`
  int32_t height, in_width, column;

  template <class Visit>
  void fields(Visit& f) {
    f("d_y", d_y)("weight", weight)("height", height)("in_width", in_width)("column", column);
  }
};

// d_result = sum over consumers of d_y @ weight[:, columns]; d_y = d_result times the
// activation's derivative
struct ResultGradientStage {
  static constexpr Kind kKind = Kind::kResultGradient;
  static constexpr char kName[] = "result_gradient";
  Buffer d_result, d_y, kept;  // each may be absent
  Consumer consumers[kMaxSources];
  int32_t num_consumers, F;
  Activation activation;
  int32_t tile;  // product_tile(B, F)

  template <class Visit>
  void fields(Visit& f) {
    f("d_result", d_result)("d_y", d_y)("kept", kept)("consumers", consumers);
    f("num_consumers", num_consumers)("F", F)("activation", activation)("tile", tile);
  }
};

struct NormGradientStage {
  static constexpr Kind kKind = Kind::kNormGradient;
  static constexpr char kName[] = "norm_gradient";
  Buffer d_y, d_weight, d_bias, d_out, y, mean, rstd;
  const float* weight;  // (N, H)
  int32_t H, training;

  template <class Visit>
  void fields(Visit& f) {
    f("d_y", d_y)("d_weight", d_weight)("d_bias", d_bias)("d_out", d_out)("y", y)("mean", mean);
    f("rstd", rstd)("weight", weight)("H", H)("training", training);
  }
};

struct StepGradientsStage {
  static constexpr Kind kKind = Kind::kStepGradients;
  static constexpr char kName[] = "step_gradients";
  Buffer d_signal, d_noise, d_z, eps, labels;
  const float* W_embed;
  int32_t D;

  template <class Visit>
  void fields(Visit& f) {
    f("d_signal", d_signal)("d_noise", d_noise)("d_z", d_z)("eps", eps)("labels", labels);
    f("W_embed", W_embed)("D", D);
  }
};

// d_W_embed of 16 x 16 entries a tile
struct EmbeddingStage {
  static constexpr Kind kKind = Kind::kEmbedding;
  static constexpr char kName[] = "embedding";
  Buffer d_W, p, d_u_hat, d_z, labels;  // p, d_u_hat, d_z may be absent
  PerRow<float> signal;
  int32_t M, D;

  template <class Visit>
  void fields(Visit& f) {
    f("d_W", d_W)("p", p)("d_u_hat", d_u_hat)("d_z", d_z)("labels", labels)("signal", signal);
    f("M", M)("D", D);
  }
};

// A weight's gradient d_y.T @ x and its update, for columns column .. column + F of the weight. The
// moments of a thread block's first `resident_tiles` tiles of this stage stay in its shared memory
// for all K steps, moments(rule) * kTileH * kTileF floats each, from float `resident` of that
// memory on.
struct UpdateWeightStage {
  static constexpr Kind kKind = Kind::kUpdateWeight;
  static constexpr char kName[] = "update_weight";
  Param param;
  Buffer d_y, x, rates;
  int32_t H, F, in_width, column;
  int32_t resident, resident_tiles;

  template <class Visit>
  void fields(Visit& f) {
    f("param", param)("d_y", d_y)("x", x)("rates", rates)("H", H)("F", F)("in_width", in_width);
    f("column", column)("resident", resident)("resident_tiles", resident_tiles);
  }
};

struct UpdateVectorStage {
  static constexpr Kind kKind = Kind::kUpdateVector;
  static constexpr char kName[] = "update_vector";
  Param param;
  Buffer gradient, rates;  // d_y (B, H) where it is summed here, else (H,)
  Sum sum;
  int32_t H;

  template <class Visit>
  void fields(Visit& f) {
    f("param", param)("gradient", gradient)("rates", rates)("sum", sum)("H", H);
  }
};

struct UpdateStatisticStage {
  static constexpr Kind kKind = Kind::kUpdateStatistic;
  static constexpr char kName[] = "update_statistic";
  float* running;  // (N, H)
  Buffer batch, rates;
  float momentum;
  int32_t H;

  template <class Visit>
  void fields(Visit& f) {
    f("running", running)("batch", batch)("rates", rates)("momentum", momentum)("H", H);
  }
};

// updates a parameter from a gradient in memory; a tile has kApplied entries
struct ApplyStage {
  static constexpr Kind kKind = Kind::kApply;
  static constexpr char kName[] = "apply";
  Param param;
  Buffer gradient, rates;

  template <class Visit>
  void fields(Visit& f) {
    f("param", param)("gradient", gradient)("rates", rates);
  }
};

struct UHatStage {
  static constexpr Kind kKind = Kind::kUHat;
  static constexpr char kName[] = "u_hat";
  Buffer u_hat, logits;
  const float* W_embed;
  int32_t M, D, linear;

  template <class Visit>
  void fields(Visit& f) {
    f("u_hat", u_hat)("logits", logits)("W_embed", W_embed)("M", M)("D", D)("linear", linear);
  }
};

// z = a u_hat + b before + sqrt_c eps of step k, or (before absent) z_0 = eps
struct ChainStage {
  static constexpr Kind kKind = Kind::kChain;
  static constexpr char kName[] = "chain";
  Buffer z, before, u_hat;
  const float *a, *b, *sqrt_c;  // (K,); sqrt_c null: no noise
  const int64_t* seeds;         // (n,)
  int64_t sample, first_row;
  int32_t D;

  template <class Visit>
  void fields(Visit& f) {
    f("z", z)("before", before)("u_hat", u_hat)("a", a)("b", b)("sqrt_c", sqrt_c)("seeds", seeds);
    f("sample", sample)("first_row", first_row)("D", D);
  }
};

}  // namespace noprop::cuda
