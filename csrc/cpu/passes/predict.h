// A chain of evaluations for some rows of the batch (NopropChain), from z_0 ~ N(0, I) or, without
// noise, from its mean 0. A row's result depends on no other row, so rows can be divided among
// threads and calls at will. If there are too few for all threads, a crew does them.
#pragma once

#include "cpu/passes/evaluation.h"

namespace noprop {
namespace {

constexpr uint32_t kInferenceStream = 2;
constexpr uint32_t kStartBlock = 0xFFFF;

struct ChainBuffers {
  NetworkBuffers network;
  float *p, *u_hat, *eps;
  // Of all samples. Where every evaluation ends a step, z is the base, and one total serves all.
  float *z, *base, *total;
  int64_t size, total_stride;  // floats of a sample
};

inline void take_chain(ChainBuffers& work, Pieces& pieces, const PredictTask& task,
                       const Motion& motion, int64_t samples, const Panels& panels,
                       const Team& team) {
  const NopropPlan& plan = *task.slices->plan;
  const NopropChain& chain = *task.chain;
  bool all_end = true;
  for (int64_t e = 0; e < chain.evaluations; ++e) all_end &= chain.ends[e] != 0;
  take_network(work.network, pieces, task, motion, panels, team);
  work.size = task.embedding->D * panels.padded();
  work.total_stride = all_end ? 0 : work.size;
  work.p = pieces.take<float>(plan.layers[plan.num_layers - 1].width * panels.padded());
  work.u_hat = pieces.take<float>(work.size);
  work.eps = pieces.take<float>(work.size);
  work.z = pieces.take<float>(samples * work.size);
  work.base = all_end ? work.z : pieces.take<float>(samples * work.size);
  work.total = pieces.take<float>(all_end ? work.size : samples * work.size);
}

int64_t predict_bytes(const PredictTask& task, int64_t rows, int64_t samples, int32_t crew_size) {
  ChainBuffers work;
  const Motion motion = motion_of(task, samples);
  const auto count = [&](const Panels& panels) {
    Pieces counted = {nullptr};
    take_chain(work, counted, task, motion, samples, panels, {.size = crew_size});
    return counted.used;
  };
  const NopropPlan& plan = *task.slices->plan;
  // of a whole piece and of the last one
  return larger(count(make_panels(plan, rows)), count(make_inference_panels(plan, rows)));
}

// to = x * factor, or to + x * factor
inline void scale(float* to, const float* x, float factor, int64_t size) {
  for (int64_t at = 0; at < size; at += kLanes) store(to + at, load(x + at) * factor);
}
inline void add_scaled(float* to, const float* x, float factor, int64_t size) {
  for (int64_t at = 0; at < size; at += kLanes)
    store(to + at, load(to + at) + load(x + at) * factor);
}

// The leader runs the chain; its helpers only know evaluations.
struct Leader {
  const PredictTask& task;
  const PredictPart& part;
  const Network& network;
  ChainBuffers& work;
  const Panels& panels;
  float* u_hat;

  const NopropPlan& plan() const { return *task.slices->plan; }
  int output() const { return plan().num_inputs + plan().num_layers - 1; }

  NoiseKey key(uint32_t block, int64_t sample) const {
    return {(uint64_t)task.seeds[part.replica], block | kInferenceStream << 16, (uint32_t)sample,
            (uint32_t)(task.first_row + part.first_row)};
  }

  void load_inputs() const {
    const Saved& saved = work.network.saved;
    for (int j = 0; j < plan().num_inputs; ++j) {
      if (j == plan().z || j == task.chain->t_input) continue;
      load_input(nullptr, saved.value[j], task.inputs[j], plan(), j, 0, part.replica,
                 part.first_row, 0, panels.vectors(), task.B, panels);
      if (keeps_value(plan(), j)) round_operand(saved, plan(), j, panels, Share{});
      narrow_operand(saved, plan(), j, panels, Share{});
      make_images(saved, plan(), j, panels, Share{});
    }
  }

  void begin(float* z, int64_t sample) const {
    if (task.add_noise) return draw_normal(z, key(kStartBlock, sample), task.embedding->D, panels);
    for (int64_t at = 0; at < work.size; at += kLanes) store(z + at, Vec{});
  }

  // z after evaluation e of a step. Terms that are zero are left out, and each has a loop of its
  // own: the compiler may fuse its product with its sum, whatever the other terms are.
  void advance(int64_t e, int64_t step, int64_t s) const {
    const NopropChain& chain = *task.chain;
    const int64_t size = work.size;
    const bool begins = e == 0 || chain.ends[e - 1];
    float *z = work.z + s * size, *base = work.base + s * size;
    float *total = work.total + s * work.total_stride, *k = work.eps;
    if (begins && base != z) copy_run(base, z, size);
    const float a = chain.a[e], b = chain.b[e];
    for (int64_t at = 0; at < size; at += kLanes)
      store(k + at, load(u_hat + at) * a + load(z + at) * b);
    if (begins)
      scale(total, k, chain.weight[e], size);
    else
      add_scaled(total, k, chain.weight[e], size);
    if (!chain.ends[e]) {
      copy_run(z, base, size);
      return add_scaled(z, k, chain.next[e], size);
    }
    if (chain.keep[e] != 0) add_scaled(total, base, chain.keep[e], size);
    if (task.add_noise && chain.sqrt_c[e] != 0) {
      draw_normal(work.eps, key((uint32_t)step & 0xFFFF, part.first_sample + s), task.embedding->D,
                  panels);
      add_scaled(total, work.eps, chain.sqrt_c[e], size);
    }
    copy_run(z, total, size);
  }

  void keep(int64_t place, int64_t s) const {
    const int64_t D = task.embedding->D, M = width_of(plan(), output());
    const int64_t chain = (place * task.S + part.first_sample + s) * task.R + part.replica;
    const int64_t row = chain * task.B + part.first_row;
    panels_to_rows(task.logits + row * M, work.network.saved.value[output()], M, panels);
    panels_to_rows(task.u_hat + row * D, u_hat, D, panels);
    panels_to_rows(task.z + row * D, work.z + s * work.size, D, panels);
  }

  void run(Crew& crew) const {
    const NopropChain& chain = *task.chain;
    const NopropEmbedding& embedding = *task.embedding;
    const Saved& saved = work.network.saved;
    const int64_t samples = part.last_sample - part.first_sample;
    const int64_t between = chain.evaluations / task.kept;
    load_inputs();
    for (int64_t s = 0; s < samples; ++s) begin(work.z + s * work.size, part.first_sample + s);
    for (int64_t e = 0, step = 0; e < chain.evaluations; step += chain.ends[e++] != 0)
      for (int64_t s = 0; s < samples; ++s) {
        if (!part.go_on(part.host)) return;
        if (s == 0) network.lead_shared(crew, e);
        copy_run(saved.value[plan().z], work.z + s * work.size, work.size);
        network.make_input(plan().z);
        network.lead_sample(crew, e);
        head_estimate(work.p, u_hat, task.head, saved.value[output()], embedding.W,
                      width_of(plan(), output()), embedding.D, panels);
        advance(e, step, s);
        if ((e + 1) % between == 0) keep(e / between, s);
      }
  }
};

void predict_rows(const PredictTask& task, const PredictPart& part, Crew& crew, char* workspace) {
  const int32_t number = __atomic_fetch_add(&crew.arrived, 1, __ATOMIC_RELAXED);
  const Panels panels = make_inference_panels(*task.slices->plan, part.rows);
  const int64_t samples = part.last_sample - part.first_sample;
  const Motion motion = motion_of(task, samples);
  ChainBuffers work;
  Pieces pieces = {workspace};
  take_chain(work, pieces, task, motion, samples, panels, {.rank = number, .size = crew.size});
  const Network network = {task, work.network, motion, panels, part.replica};
  if (number > 0)
    return help(
        crew, [&](const CrewStage& stage, int64_t tile) { network.run_tile(stage, tile); },
        [&] { part.go_on(part.host); });
  Leader{task, part, network, work, panels, task.embedding->W ? work.u_hat : work.p}.run(crew);
  if (crew.size > 1) end_stages(crew);
}

}  // namespace
}  // namespace noprop
