// An evaluation of a chain's network for some rows of the batch. What z does not reach is computed
// once for all samples, and, where all evaluations run one block, what neither z nor t reaches once
// for all of them. A crew divides larger layers into tiles.
#pragma once

#include "cpu/motion.h"
#include "cpu/passes/parts.h"
#include "cpu/threads/crew.h"

namespace noprop {
namespace {

constexpr int64_t kTimes = 128;  // evaluations whose results of t are computed together

inline int64_t times_of(const NopropChain& chain) {
  return chain.evaluations < kTimes ? chain.evaluations : kTimes;
}

// t counts as one of the inputs where blocks change with the evaluation, since its layers do
inline Motion motion_of(const PredictTask& task, int64_t samples) {
  const bool one_block = task.blocks == 1;
  const int64_t uses = one_block ? samples * task.chain->evaluations : samples;
  return {*task.slices->plan, one_block ? task.chain->t_input : -1, uses > 1};
}

struct NetworkBuffers {
  Saved saved;
  float* sums[kMaxResults];  // by layer: of its leading sources, panels (H, P), or null
  Saved times;               // results of t alone, whose rows are evaluations
  float* product;            // panels (H, P) of such rows
  // (times, width): of layers with trailing sources, their sums and the bias; of results of t that
  // are spread, themselves
  float* rows[kMaxResults];
};

inline void take_network(NetworkBuffers& work, Pieces& pieces, const PredictTask& task,
                         const Motion& motion, const Panels& panels, const Team& team) {
  const NopropPlan& plan = *task.slices->plan;
  const int results = plan.num_inputs + plan.num_layers;
  const int64_t times = times_of(*task.chain);
  const Panels time_panels = make_panels(times);
  bool left_out[kMaxResults], not_of_t[kMaxResults];
  bool has_times = false;
  int64_t width = 0;
  for (int r = 0; r < results; ++r) {
    left_out[r] = motion.of_t[r] && !motion.spread[r];
    not_of_t[r] = !motion.of_t[r];
    has_times |= motion.of_t[r];
  }
  take_saved(work.saved, pieces, plan, panels, {.strips = false, .left_out = left_out});
  take_forward(work.saved, pieces, plan, panels, team, has_few_rows(panels));
  for (int r = 0; r < results; ++r) {
    const int l = r - plan.num_inputs;
    const int64_t H = width_of(plan, r);
    const bool shifts = l >= 0 && motion.trailing[l] > 0;
    if (l >= 0)
      work.sums[l] = motion.leading[l] > 0 ? pieces.take<float>(H * panels.padded()) : nullptr;
    work.rows[r] = shifts || (l >= 0 && motion.spread[r]) ? pieces.take<float>(times * H) : nullptr;
    if (shifts) width = larger(width, H);
  }
  work.product = pieces.take<float>(width * time_panels.padded());
  if (!has_times) return;
  take_saved(work.times, pieces, plan, time_panels, {.strips = false, .left_out = not_of_t});
  work.times.rounded = work.saved.rounded;
  for (int r = 0; r < results; ++r) work.times.few[r] = nullptr;
}

// A member of a crew that evaluates a replica's network.
struct Network {
  const PredictTask& task;
  const NetworkBuffers& work;
  const Motion& motion;
  const Panels& panels;
  int64_t replica;

  enum Part { kLayer, kLeading, kTimeLayer, kTrailing };  // of a stage's layer

  const NopropPlan& plan() const { return *task.slices->plan; }
  const NopropState& state(int l) const { return task.slices->layers[l]; }
  bool changes_blocks() const { return task.blocks > 1; }
  int64_t slice(int64_t evaluation) const {
    return task.slices->index[replica * task.blocks + (changes_blocks() ? evaluation : 0)];
  }
  bool has_conv(int l) const { return is_conv(plan(), plan().num_inputs + l); }
  ConvTiles convs(int64_t evaluation) const {
    return {work.saved, plan(), task.slices->layers, slice(evaluation), panels};
  }

  // of the evaluations that are rows of a batch with this one
  Panels times(int64_t evaluation) const {
    const int64_t left = task.chain->evaluations - evaluation / kTimes * kTimes;
    return make_panels(left < kTimes ? left : kTimes);
  }
  // a result of t, or a layer's numbers of t in place of its bias; null if there is none
  const float* row(int r, int64_t evaluation) const {
    if (r < plan().num_inputs) return task.chain->t + evaluation * width_of(plan(), r);
    return work.rows[r] ? work.rows[r] + evaluation % kTimes * width_of(plan(), r) : nullptr;
  }

  struct Sources {
    int first, last;
  };
  Sources sources(const CrewStage& stage) const {
    const int count = plan().layers[stage.layer].num_sources;
    const int leading = motion.leading[stage.layer], trailing = motion.trailing[stage.layer];
    switch (stage.part) {
      case kLeading:
        return {0, leading};
      case kTrailing:
        return {count - trailing, count};
      default:
        return {leading, count - trailing};
    }
  }

  static bool is_of_t(const CrewStage& stage) {
    return stage.part == kTimeLayer || stage.part == kTrailing;
  }
  Panels panels_of(const CrewStage& stage) const {
    return is_of_t(stage) ? times(stage.evaluation) : panels;
  }
  // features of a dense layer's tile
  int64_t unit(const CrewStage& stage) const {
    const bool few = !is_of_t(stage) && has_few_rows(panels);
    return few ? few_outputs(panels_of(stage).B) : kTileRows[panels_of(stage).cols];
  }

  // the tiles of a stage; 0 if it takes less time than handing them out
  int64_t tiles(const CrewStage& stage) const {
    constexpr int64_t kLeastFlop = 100'000;
    const NopropLayer& layer = plan().layers[stage.layer];
    const Panels of = panels_of(stage);
    const auto [first, last] = sources(stage);
    int64_t in = 0;
    for (int s = first; s < last; ++s) in += width_of(plan(), layer.sources[s]);
    // one row costs as much as 4, which is the cost of reading the weights
    const int64_t rows = of.B < 4 ? 4 : of.B;
    if (2 * rows * multiply_adds_of(layer, in) < kLeastFlop) return 0;
    if (has_conv(stage.layer)) return convs(0).count(stage.layer);
    return (layer.width + unit(stage) - 1) / unit(stage);
  }

  void run_dense(const CrewStage& stage, const Share& share) const {
    const int l = stage.layer;
    const int64_t H = plan().layers[l].width, block = slice(stage.evaluation);
    const Panels of = panels_of(stage);
    const auto [first, last] = sources(stage);
    switch (stage.part) {
      case kLeading:
        return sum_sources({work.sums[l], nullptr, nullptr, nullptr, false}, work.saved, plan(),
                           state(l), l, block, first, last, nullptr, of, share);
      case kTrailing:
        return sum_sources({work.product, nullptr, state(l).bias.value + block * H, nullptr, false},
                           work.times, plan(), state(l), l, block, first, last, nullptr, of, share);
      case kTimeLayer:
        return forward_layer(work.times, plan(), state(l), l, block, false, of, share);
      default:
        const Begun begun = {first, last, work.sums[l],
                             row(plan().num_inputs + l, stage.evaluation)};
        return forward_layer(work.saved, plan(), state(l), l, block, false, begun, of, share);
    }
  }

  void run_tile(const CrewStage& stage, int64_t tile) const {
    if (has_conv(stage.layer)) return convs(stage.evaluation).run(stage.layer, tile);
    const int64_t H = plan().layers[stage.layer].width, last = (tile + 1) * unit(stage);
    run_dense(stage, {.tile = {tile * unit(stage), last < H ? last : H}});
  }

  void lead(Crew& crew, Part part, int l, int64_t evaluation) const {
    const CrewStage stage = {part, l, evaluation};
    const int64_t count = crew.size > 1 ? tiles(stage) : 0;
    const auto run = [&](int64_t tile) { run_tile(stage, tile); };
    if (count > 0) {
      lead_stage(crew, stage, count, run);
    } else if (!has_conv(l)) {
      run_dense(stage, Share{});
    } else {
      for (int64_t tile = 0; tile < convs(evaluation).count(l); ++tile) run(tile);
    }
    if (has_conv(l)) narrow_operand(work.saved, plan(), plan().num_inputs + l, panels, Share{});
  }

  // layers of a pace, but those that depend on t alone
  void lead_layers(Crew& crew, Pace pace, int64_t evaluation) const {
    for (int l = 0; l < plan().num_layers; ++l)
      if (const int r = plan().num_inputs + l; motion.pace[r] == pace && !motion.of_t[r])
        lead(crew, kLayer, l, evaluation);
  }

  void make_input(int j) const {
    make_operand(work.saved, plan(), j, panels, Share{});
    make_images(work.saved, plan(), j, panels, Share{});
  }

  // gives a result of t to all rows
  void spread(int r, int64_t evaluation) const {
    const int64_t width = width_of(plan(), r);
    const float* numbers = row(r, evaluation);
    for (int64_t f = 0; f < width; ++f)
      for_vectors(panels, width, f, [&](int64_t at, int64_t) {
        store(work.saved.value[r] + at, broadcast(numbers[f]));
      });
    make_input(r);
  }

  // results of t alone, for the evaluations from this one on
  void lead_times(Crew& crew, int64_t evaluation) const {
    const int inputs = plan().num_inputs, t = task.chain->t_input;
    const Panels of = times(evaluation);
    rows_to_panels(work.times.value[t], row(t, evaluation), width_of(plan(), t), of);
    round_operand(work.times, plan(), t, of, Share{});
    for (int l = 0; l < plan().num_layers; ++l) {
      const int64_t H = plan().layers[l].width;
      float* rows = work.rows[inputs + l];
      if (motion.of_t[inputs + l]) {
        lead(crew, kTimeLayer, l, evaluation);
        if (rows) panels_to_rows(rows, work.times.value[inputs + l], H, of);
      } else if (rows) {
        lead(crew, kTrailing, l, evaluation);
        panels_to_rows(rows, work.product, H, of);
      }
    }
  }

  // what all samples of an evaluation share
  void lead_shared(Crew& crew, int64_t evaluation) const {
    const int t = task.chain->t_input;
    if (evaluation == 0 || changes_blocks()) {
      for (int l = 0; l < plan().num_layers; ++l)
        if (has_conv(l) && conv_run(plan(), l).first == l)
          pack_run(work.saved, plan(), task.slices->layers, conv_run(plan(), l), slice(evaluation),
                   panels, Share{});
      if (t >= 0 && changes_blocks()) spread(t, evaluation);
      lead_layers(crew, Pace::kStill, evaluation);
      for (int l = 0; l < plan().num_layers; ++l)
        if (work.sums[l]) lead(crew, kLeading, l, evaluation);
    }
    if (t < 0 || changes_blocks()) return;
    if (evaluation % kTimes == 0) lead_times(crew, evaluation);
    for (int r = 0; r < plan().num_inputs + plan().num_layers; ++r)
      if (motion.spread[r]) spread(r, evaluation);
    lead_layers(crew, Pace::kTimed, evaluation);
  }

  // the rest of it, from the sample's z: the logits are then the last result
  void lead_sample(Crew& crew, int64_t evaluation) const {
    lead_layers(crew, Pace::kMoving, evaluation);
  }
};

}  // namespace
}  // namespace noprop
