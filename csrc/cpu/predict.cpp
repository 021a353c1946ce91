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

int64_t predict_bytes(const NopropPlan* plan, int64_t B, int64_t D) {
  ChainBuffers work;
  Pieces counted = {nullptr};
  take_chain(work, counted, *plan, D, make_forward_panels(B));
  return counted.used;
}

void predict_rows(const PredictTask& task, int64_t sample, int64_t replica, int64_t first,
                  int64_t rows, char* workspace) {
  const NopropSlices& slices = *task.slices;
  const NopropPlan& plan = *slices.plan;
  const NopropMix& mix = *task.mix;
  const Panels shape = make_forward_panels(rows);
  const int64_t D = mix.D, L = slices.n / task.R;
  const int last = plan.num_inputs + plan.num_layers - 1;
  const int64_t M = width_of(plan, last);
  ChainBuffers work;
  Pieces pieces = {workspace};
  take_chain(work, pieces, plan, D, shape);
  for (int j = 0; j < plan.num_inputs; ++j)
    if (j != plan.z) {
      load_input(work.saved.strips[j], work.saved.value[j], task.inputs[j], plan, j, 0, replica,
                 first, 0, shape.vectors(), task.B, shape);
      make_operand(work.saved, plan, j, shape);
    }

  float* z = work.saved.value[plan.z];
  const auto key = [&](uint32_t block) {
    return NoiseKey{(uint64_t)task.seeds[replica], block | kInferenceStream << 16, (uint32_t)sample,
                    (uint32_t)(task.first_row + first)};
  };
  draw_normal(z, key(kStartBlock), D, shape);
  float* u_hat = mix.W_embed ? work.u_hat : work.p;
  for (int64_t l = 0; l < L; ++l) {
    make_operand(work.saved, plan, plan.z, shape);
    walk_forward(work.saved, plan, slices.layers, slices.index[replica * L + l], false, shape);
    head_estimate(work.p, u_hat, mix.head, work.saved.value[last], mix.W_embed, M, D, shape);
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
}

}  // namespace
}  // namespace noprop
