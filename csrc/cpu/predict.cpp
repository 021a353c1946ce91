// The chain over a replica's blocks for some rows of the batch: z_t = a u_hat + b z_{t-1} + sqrt(c)
// eps. A row's result depends on no other row, so that rows can be split over threads and calls at
// will.
#include "parts.cpp"

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

int64_t predict_bytes(const NopropPlan* plan, int64_t B, int64_t D, int32_t team_size) {
  ChainBuffers work;
  Pieces counted = {nullptr};
  Panels shape = make_forward_panels(B);
  shape.team.size = team_size;
  take_chain(work, counted, *plan, D, shape);
  return counted.used;
}

// this member's part of the inputs' rows
inline void load_chain_inputs(const PredictTask& task, int64_t replica, int64_t first, Saved& saved,
                              const Panels& shape) {
  const NopropPlan& plan = *task.slices->plan;
  const Range own = own_part(shape, shape.vectors(), 1);
  for (int j = 0; j < plan.num_inputs; ++j)
    if (j != plan.z)
      load_input(saved.strips[j], saved.value[j], task.inputs[j], plan, j, 0, replica, first,
                 own.first, own.last, task.B, shape);
  wait_for_team(shape);
  for (int j = 0; j < plan.num_inputs; ++j)
    if (j != plan.z) make_operand(saved, plan, j, shape);
}

// The chain, which a team's first member does alone between walks: it is small beside them.
void predict_rows(const PredictTask& task, int64_t sample, int64_t replica, int64_t first,
                  int64_t rows, const Team& team, char* workspace) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const NopropMix& mix = *task.mix;
  const Panels alone = make_forward_panels(rows);
  Panels shape = alone;
  shape.team = team;
  const int64_t D = mix.D, L = slices.n / task.R;
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last);
  ChainBuffers work;
  Pieces pieces = {workspace};
  take_chain(work, pieces, plan, D, shape);
  load_chain_inputs(task, replica, first, work.saved, shape);

  float* z = work.saved.value[plan.z];
  const auto key = [&](uint32_t block) {
    return NoiseKey{(uint64_t)task.seeds[replica], block | kInferenceStream << 16, (uint32_t)sample,
                    (uint32_t)(task.first_row + first)};
  };
  const auto keep = [&](int64_t l, const float* u_hat) {
    const int64_t kept = task.keep_all ? l : 0;
    const int64_t row = ((kept * task.S + sample) * task.R + replica) * task.B + first;
    panels_to_exact_rows(task.logits + row * M, work.saved.value[last], M, alone);
    panels_to_exact_rows(task.u_hat + row * D, u_hat, D, alone);
    panels_to_exact_rows(task.z + row * D, z, D, alone);
  };
  if (team.rank == 0) {
    draw_normal(z, key(kStartBlock), D, alone);
    make_operand(work.saved, plan, plan.z, alone);
  }
  float* u_hat = mix.W_embed ? work.u_hat : work.p;
  wait_for_team(shape);
  for (int64_t l = 0; l < L; ++l) {
    walk_forward(work.saved, plan, slices.layers, slices.index[replica * L + l], false, shape,
                 l > 0);
    if (team.rank > 0) continue;
    head_estimate(work.p, u_hat, mix.head, work.saved.value[last], mix.W_embed, M, D, alone);
    if (task.add_noise) draw_normal(work.eps, key((uint32_t)l), D, alone);
    for (int64_t at = 0; at < D * shape.padded(); at += kLanes) {
      Vec next = load(u_hat + at) * task.a[l] + load(z + at) * task.b[l];
      if (task.add_noise) next += load(work.eps + at) * task.sqrt_c[l];
      store(z + at, next);
    }
    make_operand(work.saved, plan, plan.z, alone);
    if (task.keep_all || l + 1 == L) keep(l, u_hat);
  }
}

}  // namespace
}  // namespace noprop
