// The chain over a replica's blocks for some rows of the batch: z_t = a u_hat + b z_{t-1} + sqrt(c)
// eps from z_0 ~ N(0, I), or, without noise, from its mean 0. A row's result depends on no other
// row, so rows can be divided among threads and calls at will. If there are too few for all
// threads, a crew does them.
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
                       const Panels& panels, const Team& team) {
  const int64_t M = plan.layers[plan.num_layers - 1].width;
  take_saved(work.saved, pieces, plan, panels);
  take_forward(work.saved, pieces, plan, panels, team, has_few_rows(panels));
  work.p = pieces.take<float>(M * panels.padded());
  work.u_hat = pieces.take<float>(D * panels.padded());
  work.eps = pieces.take<float>(D * panels.padded());
}

int64_t predict_bytes(const NopropPlan* plan, int64_t B, int64_t D, int32_t crew_size) {
  ChainBuffers work;
  Pieces counted = {nullptr};
  take_chain(work, counted, *plan, D, make_panels(*plan, B), {.size = crew_size});
  return counted.used;
}

// A member of a crew that runs a replica's blocks.
struct Walker {
  const PredictTask& task;
  const Saved& saved;
  const Panels& panels;
  int64_t replica;

  // the tiles of a layer; 0 if it takes less time than handing them out
  int64_t tiles(int l) const {
    constexpr int64_t kLeastFlop = 100'000;
    const NopropPlan& plan = *task.slices->plan;
    const NopropLayer& layer = plan.layers[l];
    if (layer.kind == NOPROP_CONV2D) return 0;
    // one row costs as much as 4, which is the cost of reading the weights
    const int64_t rows = panels.B < 4 ? 4 : panels.B;
    if (2 * rows * layer.width * in_width(plan, layer) < kLeastFlop) return 0;
    return (layer.width + unit() - 1) / unit();
  }

  // features of a tile
  int64_t unit() const { return has_few_rows(panels) ? kFewOutputs : kTileRows[panels.cols]; }

  void forward(int64_t block, int l, const Share& share) const {
    const NopropSlices& slices = *task.slices;
    const int64_t L = slices.n / task.R;
    forward_layer(saved, *slices.plan, slices.layers[l], l, slices.index[replica * L + block],
                  false, panels, share);
  }

  void forward_tile(int64_t block, int l, int64_t tile) const {
    const int64_t H = task.slices->plan->layers[l].width, last = (tile + 1) * unit();
    forward(block, l, {.tile = {tile * unit(), last < H ? last : H}});
  }

  // stages count from 1, a block's layers and then the next block's
  void lead(Crew& crew, int64_t block) const {
    const NopropSlices& slices = *task.slices;
    const NopropPlan& plan = *slices.plan;
    const int layers = plan.num_layers;
    for (int l = 0; l < layers; ++l) {
      if (is_conv(plan, plan.num_inputs + l)) {
        const ConvRun run = conv_run(plan, l);
        const int64_t slice = slices.index[replica * (slices.n / task.R) + block];
        forward_convs(saved, plan, slices.layers, run, slice, nullptr, panels, Share{});
        l = run.last - 1;
        continue;
      }
      const int64_t count = crew.size > 1 ? tiles(l) : 0;
      if (count == 0)
        forward(block, l, Share{});
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

// The leader runs the chain; its helpers only know blocks.
void lead_chain(const PredictTask& task, int64_t sample, int64_t first, const Walker& walker,
                Crew& crew, ChainBuffers& work) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const NopropEmbedding& embedding = *task.embedding;
  const Panels& panels = walker.panels;
  const Share whole;
  const int64_t D = embedding.D, L = slices.n / task.R, replica = walker.replica;
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last);
  for (int j = 0; j < plan.num_inputs; ++j)
    if (j != plan.z) {
      load_input(nullptr, work.saved.value[j], task.inputs[j], plan, j, 0, replica, first, 0,
                 panels.vectors(), task.B, panels);
      if (keeps_value(plan, j)) round_operand(work.saved, plan, j, panels, whole);
      narrow_operand(work.saved, plan, j, panels, whole);
    }
  float* z = work.saved.value[plan.z];
  const auto key = [&](uint32_t block) {
    return NoiseKey{(uint64_t)task.seeds[replica], block | kInferenceStream << 16, (uint32_t)sample,
                    (uint32_t)(task.first_row + first)};
  };
  if (task.add_noise)
    draw_normal(z, key(kStartBlock), D, panels);
  else
    for (int64_t at = 0; at < D * panels.padded(); at += kLanes) store(z + at, Vec{});
  float* u_hat = embedding.W ? work.u_hat : work.p;
  for (int64_t l = 0; l < L; ++l) {
    make_operand(work.saved, plan, plan.z, panels, whole);
    walker.lead(crew, l);
    head_estimate(work.p, u_hat, task.head, work.saved.value[last], embedding.W, M, D, panels);
    if (task.add_noise) draw_normal(work.eps, key((uint32_t)l), D, panels);
    for (int64_t at = 0; at < D * panels.padded(); at += kLanes) {
      Vec next = load(u_hat + at) * task.a[l] + load(z + at) * task.b[l];
      if (task.add_noise) next += load(work.eps + at) * task.sqrt_c[l];
      store(z + at, next);
    }
    if (!task.keep_all && l + 1 < L) continue;
    const int64_t kept = task.keep_all ? l : 0;
    const int64_t row = ((kept * task.S + sample) * task.R + replica) * task.B + first;
    panels_to_rows(task.logits + row * M, work.saved.value[last], M, panels);
    panels_to_rows(task.u_hat + row * D, u_hat, D, panels);
    panels_to_rows(task.z + row * D, z, D, panels);
  }
  if (crew.size > 1) open_stage(crew, kLastStage);
}

void predict_rows(const PredictTask& task, int64_t sample, int64_t replica, int64_t first,
                  int64_t rows, Crew& crew, char* workspace) {
  const int32_t number = __atomic_fetch_add(&crew.arrived, 1, __ATOMIC_RELAXED);
  const Panels panels = make_panels(*task.slices->plan, rows);
  ChainBuffers work;
  Pieces pieces = {workspace};
  take_chain(work, pieces, *task.slices->plan, task.embedding->D, panels,
             {.rank = number, .size = crew.size});
  const Walker walker = {task, work.saved, panels, replica};
  if (number > 0) return walker.follow(crew);
  lead_chain(task, sample, first, walker, crew, work);
}

}  // namespace
}  // namespace noprop
