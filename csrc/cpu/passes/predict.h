// The chain over a replica's blocks for some rows of the batch: z_t = a u_hat + b z_{t-1} + sqrt(c)
// eps from z_0 ~ N(0, I), or, without noise, from its mean 0. A row's result depends on no other
// row, so rows can be divided among threads and calls at will. If there are too few for all
// threads, a crew does them. Layers that z does not reach run once for all samples.
#pragma once

#include "cpu/passes/parts.h"
#include "cpu/threads/crew.h"

namespace noprop {
namespace {

constexpr uint32_t kInferenceStream = 2;
constexpr uint32_t kStartBlock = 0xFFFF;

struct ChainBuffers {
  Saved saved;
  float *p, *u_hat, *eps, *z;  // z: of all samples
};

inline void take_chain(ChainBuffers& work, Pieces& pieces, const NopropPlan& plan, int64_t D,
                       int64_t samples, const Panels& panels, const Team& team) {
  const int64_t M = plan.layers[plan.num_layers - 1].width;
  take_saved(work.saved, pieces, plan, panels);
  take_forward(work.saved, pieces, plan, panels, team, has_few_rows(panels));
  work.p = pieces.take<float>(M * panels.padded());
  work.u_hat = pieces.take<float>(D * panels.padded());
  work.eps = pieces.take<float>(D * panels.padded());
  work.z = pieces.take<float>(samples * D * panels.padded());
}

int64_t predict_bytes(const NopropPlan* plan, int64_t B, int64_t D, int64_t samples,
                      int32_t crew_size) {
  ChainBuffers work;
  const auto count = [&](const Panels& panels) {
    Pieces counted = {nullptr};
    take_chain(work, counted, *plan, D, samples, panels, {.size = crew_size});
    return counted.used;
  };
  // of a whole piece and of the last one
  return larger(count(make_panels(*plan, B)), count(make_inference_panels(*plan, B)));
}

// A member of a crew that runs a replica's blocks.
struct Walker {
  const PredictTask& task;
  const Saved& saved;
  const Panels& panels;
  int64_t replica;
  Moving moving;

  const NopropPlan& plan() const { return *task.slices->plan; }
  int64_t slice(int64_t block) const {
    const NopropSlices& slices = *task.slices;
    return slices.index[replica * (slices.n / task.R) + block];
  }
  bool has_conv(int l) const { return is_conv(plan(), plan().num_inputs + l); }
  ConvTiles convs(int64_t block) const {
    return {saved, plan(), task.slices->layers, slice(block), panels};
  }

  // the tiles of a layer; 0 if it takes less time than handing them out
  int64_t tiles(int l) const {
    constexpr int64_t kLeastFlop = 100'000;
    const NopropLayer& layer = plan().layers[l];
    // one row costs as much as 4, which is the cost of reading the weights
    const int64_t rows = panels.B < 4 ? 4 : panels.B;
    if (2 * rows * multiply_adds_of(layer, in_width(plan(), layer)) < kLeastFlop) return 0;
    return has_conv(l) ? convs(0).count(l) : (layer.width + unit() - 1) / unit();
  }

  // features of a dense layer's tile
  int64_t unit() const { return has_few_rows(panels) ? kFewOutputs : kTileRows[panels.cols]; }

  void forward(int64_t block, int l, const Share& share) const {
    forward_layer(saved, plan(), task.slices->layers[l], l, slice(block), false, panels, share);
  }

  void forward_tile(int64_t block, int l, int64_t tile) const {
    if (has_conv(l)) return convs(block).run(l, tile);
    const int64_t H = plan().layers[l].width, last = (tile + 1) * unit();
    forward(block, l, {.tile = {tile * unit(), last < H ? last : H}});
  }

  // stages count from 1: a block's layers for each sample, and then the next block's
  void lead(Crew& crew, int64_t pass, int64_t block, bool is_first) const {
    const int layers = plan().num_layers;
    for (int l = 0; l < layers; ++l) {
      if (!is_first && !moving.result[plan().num_inputs + l]) continue;
      if (has_conv(l) && conv_run(plan(), l).first == l)
        pack_run(saved, plan(), task.slices->layers, conv_run(plan(), l), slice(block), panels,
                 Share{});
      const int64_t count = crew.size > 1 ? tiles(l) : 0;
      const auto run = [&](int64_t tile) { forward_tile(block, l, tile); };
      if (count > 0) {
        lead_stage(crew, (uint32_t)(1 + pass * layers + l), count, run);
      } else if (!has_conv(l)) {
        forward(block, l, Share{});
      } else {
        for (int64_t tile = 0; tile < convs(block).count(l); ++tile) run(tile);
      }
      if (has_conv(l)) narrow_operand(saved, plan(), plan().num_inputs + l, panels, Share{});
    }
  }

  void follow(Crew& crew, int64_t samples) const {
    const int layers = plan().num_layers;
    help(
        crew, [&](uint32_t stage) { return stage == 0 ? 0 : tiles((int)((stage - 1) % layers)); },
        [&](uint32_t stage, int64_t tile) {
          forward_tile((stage - 1) / layers / samples, (int)((stage - 1) % layers), tile);
        });
  }
};

// z of the next block, from this one's estimate
inline void step_chain(float* z, const ChainBuffers& work, const float* u_hat, float a, float b,
                       const float* sqrt_c, int64_t size) {
  for (int64_t at = 0; at < size; at += kLanes) {
    Vec next = load(u_hat + at) * a + load(z + at) * b;
    if (sqrt_c) next += load(work.eps + at) * *sqrt_c;
    store(z + at, next);
  }
}

// The leader runs the chain; its helpers only know blocks.
void lead_chain(const PredictTask& task, const PredictPart& part, const Walker& walker, Crew& crew,
                ChainBuffers& work) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const NopropEmbedding& embedding = *task.embedding;
  const Panels& panels = walker.panels;
  const Share whole;
  const int64_t D = embedding.D, L = slices.n / task.R, replica = part.replica;
  const int64_t samples = part.last_sample - part.first_sample, size = D * panels.padded();
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last);
  for (int j = 0; j < plan.num_inputs; ++j)
    if (j != plan.z) {
      load_input(nullptr, work.saved.value[j], task.inputs[j], plan, j, 0, replica, part.first_row,
                 0, panels.vectors(), task.B, panels);
      if (keeps_value(plan, j)) round_operand(work.saved, plan, j, panels, whole);
      narrow_operand(work.saved, plan, j, panels, whole);
      make_images(work.saved, plan, j, panels, whole);
    }
  const auto key = [&](uint32_t block, int64_t sample) {
    return NoiseKey{(uint64_t)task.seeds[replica], block | kInferenceStream << 16, (uint32_t)sample,
                    (uint32_t)(task.first_row + part.first_row)};
  };
  for (int64_t s = 0; s < samples; ++s) {
    float* z = work.z + s * size;
    if (task.add_noise)
      draw_normal(z, key(kStartBlock, part.first_sample + s), D, panels);
    else
      for (int64_t at = 0; at < size; at += kLanes) store(z + at, Vec{});
  }
  float* u_hat = embedding.W ? work.u_hat : work.p;
  for (int64_t l = 0; l < L; ++l)
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t sample = part.first_sample + s;
      float* z = work.z + s * size;
      copy_run(work.saved.value[plan.z], z, size);
      make_operand(work.saved, plan, plan.z, panels, whole);
      make_images(work.saved, plan, plan.z, panels, whole);
      walker.lead(crew, l * samples + s, l, s == 0);
      head_estimate(work.p, u_hat, task.head, work.saved.value[last], embedding.W, M, D, panels);
      if (task.add_noise) draw_normal(work.eps, key((uint32_t)l, sample), D, panels);
      step_chain(z, work, u_hat, task.a[l], task.b[l], task.add_noise ? task.sqrt_c + l : nullptr,
                 size);
      if (!task.keep_all && l + 1 < L) continue;
      const int64_t kept = task.keep_all ? l : 0;
      const int64_t row = ((kept * task.S + sample) * task.R + replica) * task.B + part.first_row;
      panels_to_rows(task.logits + row * M, work.saved.value[last], M, panels);
      panels_to_rows(task.u_hat + row * D, u_hat, D, panels);
      panels_to_rows(task.z + row * D, z, D, panels);
    }
  if (crew.size > 1) open_stage(crew, kLastStage);
}

void predict_rows(const PredictTask& task, const PredictPart& part, Crew& crew, char* workspace) {
  const int32_t number = __atomic_fetch_add(&crew.arrived, 1, __ATOMIC_RELAXED);
  const Panels panels = make_inference_panels(*task.slices->plan, part.rows);
  const int64_t samples = part.last_sample - part.first_sample;
  ChainBuffers work;
  Pieces pieces = {workspace};
  take_chain(work, pieces, *task.slices->plan, task.embedding->D, samples, panels,
             {.rank = number, .size = crew.size});
  const Walker walker = {task, work.saved, panels, part.replica, Moving(*task.slices->plan)};
  if (number > 0) return walker.follow(crew, samples);
  lead_chain(task, part, walker, crew, work);
}

}  // namespace
}  // namespace noprop
