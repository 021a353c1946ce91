// The functions that a unit compiled for one instruction set offers, and the structs that they
// share with the code around them.
#pragma once

#include "noprop.h"

namespace noprop {

constexpr int kMaxResults = 128;  // inputs and layers of a plan

constexpr int64_t bytes_of(int32_t dtype) {
  return dtype == NOPROP_FLOAT32 ? 4 : dtype == NOPROP_BFLOAT16 ? 2 : 1;
}

// Threads that do a slice's work together. Each does its part of every stage, and they meet at a
// barrier between stages.
struct Team {
  int32_t rank = 0, size = 1;
  void (*wait)(void*) = nullptr;  // waits until all members have called it
  void* barrier = nullptr;
};

// Work of a chain that a crew divides into tiles (evaluation.h).
struct CrewStage {
  int32_t part, layer;
  int64_t evaluation;
};

// The state that the threads of a crew share (crew.h), with its initial values.
struct Crew {
  int32_t size = 1;
  void (*yield)() = nullptr;
  uint64_t next = 0;     // tiles of the stage << 32 | number of the next one
  int32_t done = 0;      // tiles of the stage
  int32_t arrived = 0;   // members, the first of which leads
  CrewStage stage = {};  // read by who holds a tile, written while nobody does
};

// What a step's workspace has room for beside the rest.
struct StepNeeds {
  bool loads_inputs;            // some input is not packed
  bool input_gradients;         // some input's gradient is wanted
  bool radial = false;          // the head is the radial one
  bool embedding_grad = false;  // W_embed's gradient is wanted
};

struct TrainTask {
  const NopropSlices* slices;
  const NopropNoise* noise;
  const NopropNoising* noising;
  const NopropObjective* objective;
  const NopropEmbedding* embedding;
  const NopropInput* inputs;
  const float* z;
  const NopropLabels* y;
  const NopropUpdateRule* rule;
  int64_t B, k_first, k_last;  // steps of this task
  char* const* packed;         // by input: its rows from step k_packed on, packed for all slices,
  int64_t k_packed;            // or null
  StepNeeds needs;
  const NopropTrainOut* out;
  bool (*go_on)(void*);  // polled once per step
  void* host;
  Team team;
};

// the weights of a layer whose sources have `in` features together, and its outputs: a
// convolution's channels, else features
inline int64_t outputs_of(const NopropLayer& layer) {
  return layer.kind == NOPROP_CONV2D ? layer.shape.channels : layer.width;
}
inline int64_t weights_of(const NopropLayer& layer, int64_t in) {
  const int64_t window = int64_t{layer.in.channels} * layer.kernel_size * layer.kernel_size;
  return outputs_of(layer) * (layer.kind == NOPROP_CONV2D ? window : in);
}
// its product's multiply-adds, for one row
inline int64_t multiply_adds_of(const NopropLayer& layer, int64_t in) {
  const int64_t pixels = int64_t{layer.live_height} * layer.live_width;
  return weights_of(layer, in) * (layer.kind == NOPROP_CONV2D ? pixels : 1);
}

// Packs rows first_row .. last_row of an input's step and replica at position `slot`, for all
// slices that read them. first_row is a multiple of 64.
struct PackTask {
  char* data;
  const NopropPlan* plan;
  int32_t j;  // the input's number
  const NopropInput* input;
  int64_t B, slot, k, replica, first_row, last_row;
};

struct NoiseTask {
  float *z, *eps;
  const int64_t* seeds;
  const NopropNoise* noise;
  const NopropNoising* noising;
  const NopropEmbedding* embedding;
  const NopropLabels* y;
  int64_t first_row, rows;  // these of B
  int64_t B, M;
};

struct ForwardTask {
  const int64_t* seeds;      // (n,), of dropout, and
  const NopropNoise* noise;  // its address; null where there is none
  float* logits;             // or null: only the inputs are saved
  char* saved;               // of this slice, or null
  const NopropSlices* slices;
  const NopropInput* inputs;
  int64_t first_row, rows, B;  // rows of the batch that this task does
  bool training;
  Team team;
};

struct HeadTask {
  float *loss, *error, *d_logits, *u_hat;
  const float *logits, *eps;
  const NopropObjective* objective;
  const NopropEmbedding* embedding;
  const NopropLabels* y;
  int64_t first_row, rows;  // these of B; loss is that of all, or null
  int64_t B, M;
};

struct UpdateTask {
  const NopropSlices* slices;
  const NopropUpdateRule* rule;
  bool apply, checks;  // this slice; only where its gradients are finite
  uint8_t* applied;    // by slice: whether it was updated
  Team team;
};

struct BackwardTask {
  const NopropSlices* slices;
  const char* saved;  // of this slice
  const float* d_logits;
  float* const* d_inputs;
  const NopropUpdateRule* rule;
  uint8_t* applied;
  int64_t B;
  bool training, input_gradients;  // whether d_inputs has any
  Team team;
};

struct PredictTask {
  float *logits, *u_hat, *z;
  const NopropSlices* slices;
  const int64_t* seeds;
  const NopropInput* inputs;
  const NopropChain* chain;
  int32_t head;
  const NopropEmbedding* embedding;
  int64_t S, R, B, first_row, kept;
  int64_t blocks;  // of a replica
  bool add_noise;
};

// the samples and rows of a replica's chain that a task does
struct PredictPart {
  int64_t replica, first_sample, last_sample, first_row, rows;
  bool (*go_on)(void*);  // polled once per evaluation and sample, and by who helps
  void* host;
};

struct LevelsTask {
  const NopropLevels* out;
  const NopropGamma* gamma;
  const NopropWeighting* weighting;
  const double *t, *u_squared;
  int64_t D, B;
};

struct LevelsGradientTask {
  const NopropGammaGrads* out;
  const NopropGamma* gamma;
  const NopropWeighting* weighting;
  const double *t, *net, *net_slope;
  const NopropLevelsGrads* given;
  const double* u_squared;
  int64_t D, B;
};

// Each function does one slice i (or rows of one chain), in a workspace whose size the function
// before it returns.
struct Isa {
  const char* name;
  int32_t lanes;
  int64_t (*train_bytes)(const NopropPlan*, int64_t B, int64_t D, const StepNeeds&,
                         int32_t team_size);
  void (*train_slice)(const TrainTask&, int64_t i, char* workspace);
  int64_t (*packed_bytes)(const NopropPlan*, int32_t j, int64_t B);  // of a step and replica
  bool (*pack_rows)(const PackTask&);  // false: something is not finite
  int64_t (*noise_bytes)(int64_t rows, int64_t D);
  void (*noise_slice)(const NoiseTask&, int64_t i, char* workspace);
  void (*draw_times)(double* t, const int64_t* seeds, const NopropNoise&, int64_t k, int64_t i,
                     int64_t B, int64_t strata);
  void (*embed_times)(float* out, const double* t, int64_t count, const double* frequencies,
                      int64_t n);
  int64_t (*levels_bytes)(int64_t hidden);
  void (*levels_rows)(const LevelsTask&, int64_t r, int64_t first, int64_t rows, char* workspace);
  int64_t (*levels_gradient_bytes)(int64_t units, int64_t B);
  void (*levels_gradient)(const LevelsGradientTask&, int64_t r, int64_t first, int64_t units,
                          char* workspace);
  void (*update_shared)(const NopropParam*, const int64_t* counts, int32_t num, int64_t r,
                        const NopropUpdateRule&, int64_t updates);
  int64_t (*saved_bytes)(const NopropPlan*, int64_t B);
  int64_t (*forward_bytes)(const NopropPlan*, int64_t rows, bool saves, int32_t team_size);
  void (*forward_slice)(const ForwardTask&, int64_t i, char* workspace);
  int64_t (*head_bytes)(int64_t rows, int64_t M, int64_t D);
  void (*head_slice)(const HeadTask&, int64_t i, char* workspace);
  int64_t (*backward_bytes)(const NopropPlan*, int64_t B, bool input_gradients, int32_t team_size);
  void (*backward_slice)(const BackwardTask&, int64_t i, char* workspace);
  void (*update_slice)(const UpdateTask&, int64_t i, char* workspace);
  int64_t (*predict_bytes)(const PredictTask&, int64_t rows, int64_t samples, int32_t crew_size);
  void (*predict_rows)(const PredictTask&, const PredictPart&, Crew&, char* workspace);
  bool (*all_finite)(const void* data, int32_t dtype, int64_t count);
  double (*fma_gflop)(int64_t rounds);  // multiply-adds in registers: this core's peak
};

const Isa& present_isa();  // the one that calls run on

}  // namespace noprop
