// The parts of a program's stages: sizes of tiles, enums, addresses with their strides.
//
// Each struct lists its fields once more in `fields`, in their order. The reader of Python's values
// (fields.h) and the description of a program for the tests (description.h) follow from that list.
#pragma once

#include <array>
#include <cstdint>

#ifdef __CUDACC__
#define NOPROP_BOTH __host__ __device__
#else
#define NOPROP_BOTH
#endif

namespace noprop::cuda {

constexpr int kMaxStages = 80;   // the paper's network with all outputs takes 72
constexpr int kMaxSources = 4;   // of a layer; consumers of a result
constexpr int kMaxFlags = 4;     // inputs whose contents are looked at, and labels
constexpr int kRows = 16;        // of a tile of the head, the noise and a gather
constexpr int kChunkRows = 128;  // of a sum over rows; chunks are added from the left
constexpr int kColumns = 32;  // of a tile of norm, norm gradient, a vector's or statistic's update
constexpr int kEmbedding = 16;           // rows and columns of a tile of d_W_embed
constexpr int kTileH = 64, kTileF = 64;  // of a weight's update
constexpr int kApplied = 1024;           // entries of a tile of kApply
constexpr int kMostOfCluster = 8;        // thread blocks, on every device that has clusters

// The rows, and the columns, of a tile of a product with B rows. They are fewer if 64 would keep
// too few thread blocks busy. No bit depends on them, since an entry's sum ascends in steps that
// the precision alone decides.
NOPROP_BOTH constexpr int product_tile(int64_t B, int64_t columns) {
  if (columns <= 16) return 16;
  return (B + 63) / 64 * ((columns + 63) / 64) < 8 ? 32 : 64;
}

enum class Precision : int32_t { kFloat32, kTf32, kBFloat16 };
// kNone: gradients alone
enum class UpdateRule : int32_t { kNone, kSgd, kMomentum, kNesterov, kAdam, kAdamW };
enum class Head : int32_t { kSoftmax, kLinear, kCrossEntropy };
enum class Type : int32_t { kFloat32, kBFloat16, kUInt8 };
enum class Activation : int32_t { kNone, kRelu, kGelu };
// a vector's gradient: it is summed here, was summed before, or is 0
enum class Sum : int32_t { kRows, kDone, kZero };

// Python's names of an enum's values, in their order
template <class Enum>
inline constexpr std::array<const char*, 0> kNames{};
template <>
inline constexpr auto kNames<Precision> = std::array{"float32", "tf32", "bfloat16"};
template <>
inline constexpr auto kNames<UpdateRule> =
    std::array{"none", "sgd", "momentum", "nesterov", "adam", "adamw"};
template <>
inline constexpr auto kNames<Head> = std::array{"softmax", "linear", "cross_entropy"};
template <>
inline constexpr auto kNames<Type> = std::array{"float32", "bfloat16", "uint8"};
template <>
inline constexpr auto kNames<Activation> = std::array{"none", "relu", "gelu"};
template <>
inline constexpr auto kNames<Sum> = std::array{"rows", "done", "zero"};

// the number of moments that a rule keeps beside a parameter: m, or m and v
NOPROP_BOTH constexpr int moments(UpdateRule rule) {
  if (rule == UpdateRule::kAdam || rule == UpdateRule::kAdamW) return 2;
  return rule == UpdateRule::kMomentum || rule == UpdateRule::kNesterov ? 1 : 0;
}

// entry of step k, slice i of a call, group g:
//   data + k * stride_k + (by_group ? g : i) * stride_slice;  data null: absent
struct Buffer {
  void* data;
  int64_t stride_k, stride_slice;
  int32_t by_group;

  template <class Visit>
  void fields(Visit& f) {
    f("data", data)("stride_k", stride_k)("stride_slice", stride_slice)("by_group", by_group);
  }
};

// a value of step k, slice i and row b: data[k * stride_k + i * stride_slice + b * stride_row]
template <class T>
struct PerRow {
  const T* data;
  int64_t stride_k, stride_slice, stride_row;

  template <class Visit>
  void fields(Visit& f) {
    f("data", data)("stride_k", stride_k)("stride_slice", stride_slice)("stride_row", stride_row);
  }
};

// a value of step k and slice i: data[k * stride_k + i * stride_slice]
struct PerSlice {
  const double* data;
  int64_t stride_k, stride_slice;

  template <class Visit>
  void fields(Visit& f) {
    f("data", data)("stride_k", stride_k)("stride_slice", stride_slice);
  }
};

// rows of a data set: row indices[k, replica[i], b]; indices null: none
struct Rows {
  const int64_t* indices;  // (K, replicas, B)
  const int64_t* replica;  // (n,)
  int64_t replicas;
  int64_t rows;  // of the data set

  template <class Visit>
  void fields(Visit& f) {
    f("indices", indices)("replica", replica)("replicas", replicas)("rows", rows);
  }
};

// a stacked parameter with `size` entries a slice; grad (n, size) or null
struct Param {
  float *value, *m, *v, *grad;
  int64_t size;

  template <class Visit>
  void fields(Visit& f) {
    f("value", value)("m", m)("v", v)("grad", grad)("size", size);
  }
};

struct Hyper {
  UpdateRule rule;
  float momentum;                                       // SGD
  float one_less_beta_1, beta_2, one_less_beta_2, eps;  // Adam, formed in float64
  double log_beta_1, log_beta_2;  // for the bias corrections, in float64 on the device

  template <class Visit>
  void fields(Visit& f) {
    f("rule", rule)("momentum", momentum)("one_less_beta_1", one_less_beta_1)("beta_2", beta_2);
    f("one_less_beta_2", one_less_beta_2)("eps", eps)("log_beta_1", log_beta_1);
    f("log_beta_2", log_beta_2);
  }
};

}  // namespace noprop::cuda
