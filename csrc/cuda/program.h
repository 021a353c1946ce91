// What one launch of the persistent kernel does, as data: the stages of a step, in order, with the
// addresses that each reads and writes. The kernel runs them for K steps of every slice.
//
// Letters: N slices that an object holds, n slices of the call, K steps, B rows, F and H features,
// D width of an embedding, M classes. Strides count elements of what is pointed at. A group of
// thread blocks takes slices g, g + G, ...; buffers of the workspace belong to the group.
#pragma once

#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define NOPROP_BOTH __host__ __device__
#else
#define NOPROP_BOTH
#endif

namespace noprop::cuda {

constexpr int kMaxStages = 80;   // the paper's network with everything asked for takes 72
constexpr int kMaxSources = 4;   // of a layer; consumers of a result
constexpr int kMaxFlags = 4;     // inputs whose contents are looked at, and labels
constexpr int kRows = 16;        // of a tile of the head, the noise and a gather
constexpr int kChunkRows = 128;  // sums over rows go by such chunks, folded from the left
constexpr int kColumns = 32;  // of a tile of norm, norm gradient, a vector's or statistic's update
constexpr int kEmbedding = 16;           // rows and columns of a tile of d_W_embed
constexpr int kTileH = 64, kTileF = 64;  // of a weight's update
constexpr int kApplied = 1024;           // entries of a tile of kApply
constexpr int kMostOfCluster = 8;        // thread blocks, on every device that has clusters

// Rows and columns of a tile of a product with B rows: fewer where 64 would keep too few thread
// blocks busy. No bit depends on it, for an entry's sum ascends in steps of the precision's own.
NOPROP_BOTH constexpr int product_tile(int64_t B, int64_t columns) {
  if (columns <= 16) return 16;
  return (B + 63) / 64 * ((columns + 63) / 64) < 8 ? 32 : 64;
}

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
  kNumbers,
  kEmbedding,
  kUpdateWeight,
  kUpdateVector,
  kUpdateStatistic,
  kApply,
  kUHat,
  kChain,
};
enum class Precision : int32_t { kFloat32, kTf32, kBFloat16 };
enum class Rule : int32_t { kNone, kSgd, kMomentum, kNesterov, kAdam, kAdamW };  // kNone: gradients
enum class Head : int32_t { kSoftmax, kLinear, kCrossEntropy };
enum class Type : int32_t { kFloat32, kBFloat16, kUInt8 };
enum class Activation : int32_t { kNone, kRelu, kGelu };
enum class Sum : int32_t { kRows, kDone, kZero };  // a vector's gradient: summed here, before, or 0

// entry of step k, slice i of a call, group g:
//   data + k * step + (by_group ? g : i) * slice;  data null: absent
struct Buffer {
  void* data;
  int64_t step, slice;
  int32_t by_group;
};

// a number of step k, slice i and row b: data[k * step + i * slice + b * row]
struct Number {
  const float* data;
  int64_t step, slice, row;
};
struct Integer {
  const int64_t* data;
  int64_t step, slice, row;
};
struct Real {
  const double* data;
  int64_t step, slice;
};

// rows of a data set: row indices[k, replica[i], b]; indices null: none
struct Rows {
  const int64_t* indices;  // (K, replicas, B)
  const int64_t* replica;  // (n,)
  int64_t replicas;
  int64_t rows;  // of the data set
};

// a stacked parameter with `size` entries a slice; grad (n, size) or null
struct Param {
  float *value, *m, *v, *grad;
  int64_t size;
};

struct Hyper {
  Rule rule;
  float momentum;                                       // SGD
  float one_less_beta_1, beta_2, one_less_beta_2, eps;  // Adam, formed in float64
  double log_beta_1, log_beta_2;  // for the bias corrections, in float64 on the device
};

// out (B, F) = (data[row] - mean) * scale, and what is wrong with it: 2 index, 4 not finite. A tile
// has kRows rows. Without indices `data` is a Buffer's own rows, only looked at where out is
// absent.
struct GatherStage {
  Buffer out;   // float
  Buffer bad;   // int32 (tiles,)
  Buffer data;  // of `type`; with indices its strides are 0
  Rows rows;
  const float *mean, *scale;  // (F,), or both null
  Type type;
  int32_t F;
};

// z = signal * u_y + noise * eps + sigma * eps_1; labels checked (1: out of range) and written
struct NoiseStage {
  Buffer z, eps;  // float (B, D)
  Buffer labels;  // int64 (B,)
  Buffer bad;     // int32 (tiles,)
  Integer y;      // with rows.indices: data are the data set's labels
  Rows rows;
  const float* W_embed;  // (M, D), or null: one-hot
  const int64_t* seeds;  // (n,)
  Integer draw, block;
  Number signal, noise;
  int64_t first_row;
  float sigma;
  uint32_t stream;
  int32_t M, D;
};

// out = activation(concat(sources) @ weight.T + bias) + add; a tile is tile x tile
struct DenseStage {
  Buffer out, kept;  // (B, H); kept: what the activation's gradient reads, or absent
  Buffer sources[kMaxSources];
  Buffer add;
  const float *weight, *bias;  // (N, H, in_width), (N, H)
  int32_t widths[kMaxSources];
  int32_t num_sources, H, in_width;
  Activation activation;
  int32_t tile;  // 16, 32 or 64: product_tile(B, H)
};

// out = activation(weight * (y - mean) * rstd + bias) + add; a tile has kColumns columns
struct NormStage {
  Buffer out, kept, mean, rstd, batch_mean, batch_var, y, add;
  const float *weight, *bias;         // (N, H)
  float *running_mean, *running_var;  // (N, H)
  float eps, momentum;
  int32_t H;
  Activation activation;
  int32_t training, move;  // move: the running statistics, at once
};

// error, d_u_hat, p and d_logits of kRows rows; see head.cuh
struct HeadStage {
  Buffer error, d_logits, d_u_hat, p, logits, labels, eps;
  const float* W_embed;
  Number weight;
  float flow, rows;
  Head head;
  int32_t M, D;
};

// loss of a slice, whether its step applies, its counters, and rates (4 floats); one tile
struct LossStage {
  Buffer loss, applied, rates;  // float, uint8, float (4,)
  Buffer error;
  Buffer flags[kMaxFlags];   // int32 (tiles of rows,)
  int64_t *draws, *updates;  // (N,), or null
  int32_t* errors;           // (1,), or null
  Number weight;
  Real lr, weight_decay;
  float rows;
  int32_t num_flags;
};

// the same from d_logits (size floats, absent: a given `applied`) of a backward or an update
struct RatesStage {
  Buffer rates, applied, d_logits;
  int64_t* updates;
  Real lr, weight_decay;
  int64_t size;
};

struct Consumer {
  Buffer d_y;           // (B, height); of an `add`: the gradient of its result (B, F)
  const float* weight;  // (N, height, in_width), or null: of an `add`
  int32_t height, in_width, column;
};

// d_result = sum over consumers of d_y @ weight[:, columns]; d_y = d_result times the
// activation's derivative
struct ResultGradientStage {
  Buffer d_result, d_y, kept;  // each may be absent
  Consumer consumers[kMaxSources];
  int32_t num_consumers, F;
  Activation activation;
  int32_t tile;  // product_tile(B, F)
};

struct NormGradientStage {
  Buffer d_y, d_weight, d_bias, d_out, y, mean, rstd;
  const float* weight;  // (N, H)
  int32_t H, training;
};

struct NumbersStage {
  Buffer d_signal, d_noise, d_z, eps, labels;
  const float* W_embed;
  int32_t D;
};

// d_W_embed of 16 x 16 entries a tile
struct EmbeddingStage {
  Buffer d_W, p, d_u_hat, d_z, labels;  // p, d_u_hat, d_z may be absent
  Number signal;
  int32_t M, D;
};

// moments that a rule keeps beside a parameter: m, or m and v
NOPROP_BOTH constexpr int moments(Rule rule) {
  if (rule == Rule::kAdam || rule == Rule::kAdamW) return 2;
  return rule == Rule::kMomentum || rule == Rule::kNesterov ? 1 : 0;
}

// A weight's gradient d_y.T @ x and its step, columns column .. column + F of the weight. The
// moments of a thread block's first `resident_tiles` tiles of this stage stay in its shared memory
// for all K steps, moments(rule) * kTileH * kTileF floats each, from float `resident` of that
// memory on.
struct UpdateWeightStage {
  Param param;
  Buffer d_y, x, rates;
  int32_t H, F, in_width, column;
  int32_t resident, resident_tiles;
};

struct UpdateVectorStage {
  Param param;
  Buffer gradient, rates;  // d_y (B, H) where it is summed here, else (H,)
  Sum sum;
  int32_t H;
};

struct UpdateStatisticStage {
  float* running;  // (N, H)
  Buffer batch, rates;
  float momentum;
  int32_t H;
};

// a step from a gradient in memory; a tile has kApplied entries
struct ApplyStage {
  Param param;
  Buffer gradient, rates;
};

struct UHatStage {
  Buffer u_hat, logits;
  const float* W_embed;
  int32_t M, D, linear;
};

// z = a u_hat + b before + sqrt_c eps of step k, or (before absent) z_0 = eps
struct ChainStage {
  Buffer z, before, u_hat;
  const float *a, *b, *sqrt_c;  // (K,); sqrt_c null: no noise
  const int64_t* seeds;         // (n,)
  int64_t sample, first_row;
  int32_t D;
};

// tile t is the work of thread block (first + t) % blocks of the group; where `barrier`, the group
// meets behind the stage. `once`: -1 in every step, else its tiles only in step `once` of a launch.
struct Stage {
  Kind kind;
  int32_t tiles, first, barrier, once;
  union {
    GatherStage gather;
    NoiseStage noise;
    DenseStage dense;
    NormStage norm;
    HeadStage head;
    LossStage loss;
    RatesStage rates;
    ResultGradientStage result_gradient;
    NormGradientStage norm_gradient;
    NumbersStage numbers;
    EmbeddingStage embedding;
    UpdateWeightStage update_weight;
    UpdateVectorStage update_vector;
    UpdateStatisticStage update_statistic;
    ApplyStage apply;
    UHatStage u_hat;
    ChainStage chain;
  };
};

// passed to the kernel by value: no copy to the device, and a graph may capture the launch
struct Program {
  const int64_t* index;  // index[k * index_step + i]: the slice of the object
  int64_t index_step;
  uint32_t* barriers;  // (groups,) arrivals of a launch, cleared on its stream before it
  int32_t n, K, B;
  int32_t groups, blocks;  // the grid has groups * blocks thread blocks
  int32_t cluster;         // whether a group is a thread-block cluster and meets by its barrier
  Precision precision;
  Hyper hyper;
  int32_t resident_floats;  // of a thread block's shared memory
  // (num_stages, 2) of a build with NOPROP_CUDA_CLOCKS, or null: the cycles that thread block 0
  // spent in its tiles of a stage and in the barrier behind it are added
  int64_t* clocks;
  int32_t num_stages;
  Stage stages[kMaxStages];
};

static_assert(std::is_trivially_copyable_v<Program>);
static_assert(sizeof(Program) <= 32764, "a kernel's parameters");

}  // namespace noprop::cuda
