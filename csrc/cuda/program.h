// The work of one launch of the persistent kernel, as data: the stages of a step, in order, with
// the addresses that each of them reads and writes. The kernel runs them for K steps of every
// slice.
//
// Letters: N slices that an object holds, n slices of the call, K steps, B rows, F and H features,
// D width of an embedding, M classes. Strides count elements of what is pointed at. A group of
// thread blocks takes slices g, g + G, ...; buffers of the workspace belong to the group.
#pragma once

#include <array>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "cuda/operands.h"
#include "cuda/stages.h"

namespace noprop::cuda {

// Thread block (first + t) % blocks of the group does tile t. If `barrier` is set, the group meets
// after the stage. If `once` is not -1, only step `once` of a launch has the stage.
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
    StepGradientsStage step_gradients;
    EmbeddingStage embedding;
    UpdateWeightStage update_weight;
    UpdateVectorStage update_vector;
    UpdateStatisticStage update_statistic;
    ApplyStage apply;
    UHatStage u_hat;
    ChainStage chain;
  };

  template <class Visit>
  void fields(Visit& f) {
    f("kind", kind)("tiles", tiles)("first", first)("barrier", barrier)("once", once);
  }
};

// the union's members in the order of Kind
inline constexpr std::tuple kStages{&Stage::gather,        &Stage::noise,
                                    &Stage::dense,         &Stage::norm,
                                    &Stage::head,          &Stage::loss,
                                    &Stage::rates,         &Stage::result_gradient,
                                    &Stage::norm_gradient, &Stage::step_gradients,
                                    &Stage::embedding,     &Stage::update_weight,
                                    &Stage::update_vector, &Stage::update_statistic,
                                    &Stage::apply,         &Stage::u_hat,
                                    &Stage::chain};

template <class... S>
constexpr bool are_in_order(const std::tuple<S Stage::*...>&) {
  int kind = 0;
  return ((static_cast<int>(S::kKind) == kind++) && ...);
}
static_assert(are_in_order(kStages), "as in Kind");

template <class... S>
constexpr auto names_of(const std::tuple<S Stage::*...>&) {
  return std::array{static_cast<const char*>(S::kName)...};
}
template <>
inline constexpr auto kNames<Kind> = names_of(kStages);

// visit(the union's member) of the stage's kind
template <class Visit>
void with_own_fields(Stage& stage, const Visit& visit) {
  std::apply(
      [&]<class... S>(S Stage::*... own) {
        (void)((stage.kind == S::kKind && (visit(stage.*own), true)) || ...);
      },
      kStages);
}

// passed to the kernel by value: no copy to the device, and a graph may capture the launch
struct Program {
  const int64_t* index;  // index[k * index_stride + i]: the slice of the object
  int64_t index_stride;
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

  template <class Visit>
  void fields(Visit& f) {
    f("index", index)("index_stride", index_stride)("barriers", barriers)("n", n)("K", K)("B", B);
    f("groups", groups)("blocks", blocks)("cluster", cluster)("precision", precision);
    f("hyper", hyper)("resident_floats", resident_floats)("clocks", clocks);
  }
};

static_assert(std::is_trivially_copyable_v<Program>);
static_assert(sizeof(Program) <= 32764, "a kernel's parameters");

}  // namespace noprop::cuda
