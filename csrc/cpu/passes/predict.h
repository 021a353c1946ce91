// The chain over a replica's blocks for some rows of the batch: z_t = a u_hat + b z_{t-1} + sqrt(c)
// eps from z_0 ~ N(0, I), or, where no noise is added, from its mean 0. A row's result depends on
// no other row, so that rows can be split over threads and calls at will; where there are too few
// for all threads, a crew does them.
#pragma once

#include "cpu/passes/parts.h"
#include "cpu/threads/crew.h"

namespace noprop {
namespace {

constexpr uint32_t kInferenceStream = 2;
constexpr uint32_t kStartBlock = 0xFFFF;

struct ChainBuffers {
  Saved saved;
  float *p, *u_hat, *eps;
};

inline void take_chain(ChainBuffers& work, Pieces& pieces, const NopropPlan& plan, int64_t D,
                       const Panels& shape) {
  const int64_t M = plan.layers[plan.num_layers - 1].width;
  take_saved(work.saved, pieces, plan, shape);
  work.p = pieces.take<float>(M * shape.padded());
  work.u_hat = pieces.take<float>(D * shape.padded());
  work.eps = pieces.take<float>(D * shape.padded());
}

int64_t predict_bytes(const NopropPlan* plan, int64_t B, int64_t D, int32_t crew_size) {
  ChainBuffers work;
  Pieces counted = {nullptr};
  Panels shape = make_forward_panels(B);
  shape.team.size = crew_size;
  take_chain(work, counted, *plan, D, shape);
  return counted.used;
}

// A member of a crew at a replica's blocks.
struct Walker {
  const PredictTask& task;
  const Saved& saved;
  const Panels& shape;  // for one thread
  int64_t replica;

  // tiles that a layer is divided into; none: it takes less than handing them out
  int64_t tiles(int l) const {
    constexpr int64_t kLeastFlop = 100'000;
    const NopropPlan& plan = *task.slices->plan;
    const NopropLayer& layer = plan.layers[l];
    const int64_t rows = shape.B < 4 ? 4 : shape.B;  // one costs as much, that of the weights
    if (2 * rows * layer.width * in_width(plan, layer) < kLeastFlop) return 0;
    return (layer.width + feature_unit(shape) - 1) / feature_unit(shape);
  }

  void forward(int64_t block, int l, const Panels& part) const {
    const NopropSlices& slices = *task.slices;
    const int64_t L = slices.n / task.R;
    forward_layer(saved, *slices.plan, slices.layers[l], l, slices.index[replica * L + block],
                  false, part);
  }

  void forward_tile(int64_t block, int l, int64_t tile) const {
    const int64_t unit = feature_unit(shape), H = task.slices->plan->layers[l].width;
    Panels part = shape;
    part.tile = {tile * unit, (tile + 1) * unit < H ? (tile + 1) * unit : H};
    forward(block, l, part);
  }

  // stages count from 1, a block's layers and then the next block's
  void lead(Crew& crew, int64_t block) const {
    const int layers = task.slices->plan->num_layers;
    for (int l = 0; l < layers; ++l) {
      const int64_t count = crew.size > 1 ? tiles(l) : 0;
      if (count == 0)
        forward(block, l, shape);
      else
        lead_stage(crew, (uint32_t)(1 + block * layers + l), count,
                   [&](int64_t tile) { forward_tile(block, l, tile); });
    }
  }

  void follow(Crew& crew) const {
    const int layers = task.slices->plan->num_layers;
    help(
        crew, [&](uint32_t stage) { return stage == 0 ? 0 : tiles((int)((stage - 1) % layers)); },
        [&](uint32_t stage, int64_t tile) {
          forward_tile((stage - 1) / layers, (int)((stage - 1) % layers), tile);
        });
  }
};

// The chain is the leader's; its helpers know blocks alone.
void lead_chain(const PredictTask& task, int64_t sample, int64_t first, const Walker& walker,
                Crew& crew, ChainBuffers& work) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const NopropEmbedding& embedding = *task.embedding;
  const Panels& shape = walker.shape;
  const int64_t D = embedding.D, L = slices.n / task.R, replica = walker.replica;
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last);
  for (int j = 0; j < plan.num_inputs; ++j)
    if (j != plan.z) {
      load_input(work.saved.strips[j], work.saved.value[j], task.inputs[j], plan, j, 0, replica,
                 first, 0, shape.vectors(), task.B, shape);
      if (keeps_value(plan, j)) round_operand(work.saved, plan, j, shape);
      narrow_operand(work.saved, plan, j, shape);
    }
  float* z = work.saved.value[plan.z];
  const auto key = [&](uint32_t block) {
    return NoiseKey{(uint64_t)task.seeds[replica], block | kInferenceStream << 16, (uint32_t)sample,
                    (uint32_t)(task.first_row + first)};
  };
  if (task.add_noise)
    draw_normal(z, key(kStartBlock), D, shape);
  else
    for (int64_t at = 0; at < D * shape.padded(); at += kLanes) store(z + at, Vec{});
  float* u_hat = embedding.W ? work.u_hat : work.p;
  for (int64_t l = 0; l < L; ++l) {
    make_operand(work.saved, plan, plan.z, shape);
    walker.lead(crew, l);
    head_estimate(work.p, u_hat, task.head, work.saved.value[last], embedding.W, M, D, shape);
    if (task.add_noise) draw_normal(work.eps, key((uint32_t)l), D, shape);
    for (int64_t at = 0; at < D * shape.padded(); at += kLanes) {
      Vec next = load(u_hat + at) * task.a[l] + load(z + at) * task.b[l];
      if (task.add_noise) next += load(work.eps + at) * task.sqrt_c[l];
      store(z + at, next);
    }
    if (!task.keep_all && l + 1 < L) continue;
    const int64_t kept = task.keep_all ? l : 0;
    const int64_t row = ((kept * task.S + sample) * task.R + replica) * task.B + first;
    panels_to_exact_rows(task.logits + row * M, work.saved.value[last], M, shape);
    panels_to_exact_rows(task.u_hat + row * D, u_hat, D, shape);
    panels_to_exact_rows(task.z + row * D, z, D, shape);
  }
  if (crew.size > 1) open_stage(crew, kLastStage);
}

void predict_rows(const PredictTask& task, int64_t sample, int64_t replica, int64_t first,
                  int64_t rows, Crew& crew, char* workspace) {
  const int32_t number = __atomic_fetch_add(&crew.arrived, 1, __ATOMIC_RELAXED);
  const Panels alone = make_forward_panels(rows);
  Panels shape = alone;  // for the member's place in the workspace
  shape.team = {number, crew.size, nullptr, nullptr};
  ChainBuffers work;
  Pieces pieces = {workspace};
  take_chain(work, pieces, *task.slices->plan, task.embedding->D, shape);
  const Walker walker = {task, work.saved, alone, replica};
  if (number > 0) return walker.follow(crew);
  lead_chain(task, sample, first, walker, crew, work);
}

}  // namespace
}  // namespace noprop
