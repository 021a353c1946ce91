// This unit is compiled once for each instruction set, whose name is NOPROP_ISA. It has all passes
// and kernels, behind one table.
#include "cpu/isa.h"

#include "cpu/kernels/times.h"
#include "cpu/passes/levels.h"
#include "cpu/passes/predict.h"
#include "cpu/passes/shared_update.h"

// These catch flags that outside_flags.cmake did not see, such as those of a compiler's own files.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "this compiler is set to inexact floating point: -ffast-math or a part of it"
#endif
#if NOPROP_LANES != NOPROP_ISA_LANES || (NOPROP_LANES == 4 && defined(__SSE3__))
#error "this compiler is set to instructions that not every processor has: -march"
#endif

namespace noprop {
namespace {

inline bool all_finite(const void* data, int32_t dtype, int64_t count) {
  if (dtype == NOPROP_FLOAT32) return all_finite(static_cast<const float*>(data), count);
  if (dtype == NOPROP_BFLOAT16) {
    const uint16_t* x = static_cast<const uint16_t*>(data);
    int bad = 0;
    for (int64_t i = 0; i < count; ++i) bad |= (x[i] & 0x7f80) == 0x7f80;
    return !bad;
  }
  return true;
}

// `rounds` bursts of multiply-adds, on as many accumulators as hide their latency; returns the
// billions of operations done
inline double fma_gflop(int64_t rounds) {
  constexpr int kSums = NOPROP_REGISTERS == 32 ? 24 : 12;
  constexpr int64_t kRound = 100000;
  Vec sums[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) {
    // A compiler computes sums that it knows to be equal, or to stay as they are, once.
    sums[i] = held(broadcast(2.0f + (float)i));
  }
  const Vec factor = broadcast(0.999f), term = broadcast(1e-3f);
  for (int64_t k = 0; k < rounds * kRound; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + term;
  }
#pragma GCC unroll 24
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  volatile float sink = sum_lanes(sums[0]);  // the compiler must not drop the work
  (void)sink;
  return 2.0 * kLanes * kSums * kRound * 1e-9 * (double)rounds;
}

}  // namespace

#define NOPROP_NAME2(isa) k_##isa
#define NOPROP_NAME(isa) NOPROP_NAME2(isa)
#define NOPROP_TEXT2(isa) #isa
#define NOPROP_TEXT(isa) NOPROP_TEXT2(isa)

extern const Isa NOPROP_NAME(NOPROP_ISA);

#if defined(__AVX512BF16__)
// This unit has the products of pairs. The avx512 unit has all else, float32 plans included: it is
// compiled once, for the same instructions.
extern const Isa k_avx512;

namespace {

bool is_own(const NopropPlan& plan) {
  return plan.precision == NOPROP_BFLOAT16 && !has_images(plan);  // convolutions have no pairs
}

}  // namespace

constinit const Isa NOPROP_NAME(NOPROP_ISA) = {
    .name = NOPROP_TEXT(NOPROP_ISA),
    .lanes = kLanes,
    .train_bytes =
        [](const NopropPlan* plan, int64_t B, int64_t D, const StepNeeds& needs,
           int32_t team_size) {
          return (is_own(*plan) ? train_bytes : k_avx512.train_bytes)(plan, B, D, needs, team_size);
        },
    .train_slice =
        [](const TrainTask& task, int64_t i, char* workspace) {
          (is_own(*task.slices->plan) ? train_slice : k_avx512.train_slice)(task, i, workspace);
        },
    .packed_bytes = packed_bytes,
    .pack_rows =
        [](const PackTask& task) {
          return (is_own(*task.plan) ? pack_rows : k_avx512.pack_rows)(task);
        },
    .noise_bytes = [](int64_t rows, int64_t D) { return k_avx512.noise_bytes(rows, D); },
    .noise_slice = [](const NoiseTask& task, int64_t i,
                      char* workspace) { k_avx512.noise_slice(task, i, workspace); },
    .draw_times = [](double* t, const int64_t* seeds, const NopropNoise& noise, int64_t k,
                     int64_t i, int64_t B,
                     int64_t strata) { k_avx512.draw_times(t, seeds, noise, k, i, B, strata); },
    .embed_times = [](float* out, const double* t, int64_t count, const double* frequencies,
                      int64_t n) { k_avx512.embed_times(out, t, count, frequencies, n); },
    .levels_bytes = [](int64_t hidden) { return k_avx512.levels_bytes(hidden); },
    .levels_rows = [](const LevelsTask& task, int64_t r, int64_t first, int64_t rows,
                      char* workspace) { k_avx512.levels_rows(task, r, first, rows, workspace); },
    .levels_gradient_bytes = [](int64_t units,
                                int64_t B) { return k_avx512.levels_gradient_bytes(units, B); },
    .levels_gradient =
        [](const LevelsGradientTask& task, int64_t r, int64_t first, int64_t units,
           char* workspace) { k_avx512.levels_gradient(task, r, first, units, workspace); },
    .update_shared =
        [](const NopropParam* params, const int64_t* counts, int32_t num, int64_t r,
           const NopropUpdateRule& rule,
           int64_t updates) { k_avx512.update_shared(params, counts, num, r, rule, updates); },
    .saved_bytes =
        [](const NopropPlan* plan, int64_t B) {
          return (is_own(*plan) ? saved_bytes : k_avx512.saved_bytes)(plan, B);
        },
    .forward_bytes =
        [](const NopropPlan* plan, int64_t rows, bool saves, int32_t team_size) {
          return (is_own(*plan) ? forward_bytes : k_avx512.forward_bytes)(plan, rows, saves,
                                                                          team_size);
        },
    .forward_slice =
        [](const ForwardTask& task, int64_t i, char* workspace) {
          (is_own(*task.slices->plan) ? forward_slice : k_avx512.forward_slice)(task, i, workspace);
        },
    .head_bytes = [](int64_t rows, int64_t M,
                     int64_t D) { return k_avx512.head_bytes(rows, M, D); },
    .head_slice = [](const HeadTask& task, int64_t i,
                     char* workspace) { k_avx512.head_slice(task, i, workspace); },
    .backward_bytes =
        [](const NopropPlan* plan, int64_t B, bool input_gradients, int32_t team_size) {
          return (is_own(*plan) ? backward_bytes : k_avx512.backward_bytes)(
              plan, B, input_gradients, team_size);
        },
    .backward_slice =
        [](const BackwardTask& task, int64_t i, char* workspace) {
          (is_own(*task.slices->plan) ? backward_slice : k_avx512.backward_slice)(task, i,
                                                                                  workspace);
        },
    .update_slice = [](const UpdateTask& task, int64_t i,
                       char* workspace) { k_avx512.update_slice(task, i, workspace); },
    .predict_bytes =
        [](const PredictTask& task, int64_t rows, int64_t samples, int32_t crew_size) {
          return (is_own(*task.slices->plan) ? predict_bytes : k_avx512.predict_bytes)(
              task, rows, samples, crew_size);
        },
    .predict_rows =
        [](const PredictTask& task, const PredictPart& part, Crew& crew, char* workspace) {
          (is_own(*task.slices->plan) ? predict_rows : k_avx512.predict_rows)(task, part, crew,
                                                                              workspace);
        },
    .all_finite = [](const void* data, int32_t dtype,
                     int64_t count) { return k_avx512.all_finite(data, dtype, count); },
    .fma_gflop = [](int64_t rounds) { return k_avx512.fma_gflop(rounds); },
};
#else
constinit const Isa NOPROP_NAME(NOPROP_ISA) = {
    .name = NOPROP_TEXT(NOPROP_ISA),
    .lanes = kLanes,
    .train_bytes = train_bytes,
    .train_slice = train_slice,
    .packed_bytes = packed_bytes,
    .pack_rows = pack_rows,
    .noise_bytes = noise_bytes,
    .noise_slice = noise_slice,
    .draw_times = draw_times,
    .embed_times = embed_times,
    .levels_bytes = levels_bytes,
    .levels_rows = levels_rows,
    .levels_gradient_bytes = levels_gradient_bytes,
    .levels_gradient = levels_gradient,
    .update_shared = update_shared,
    .saved_bytes = saved_bytes,
    .forward_bytes = forward_bytes,
    .forward_slice = forward_slice,
    .head_bytes = head_bytes,
    .head_slice = head_slice,
    .backward_bytes = backward_bytes,
    .backward_slice = backward_slice,
    .update_slice = update_slice,
    .predict_bytes = predict_bytes,
    .predict_rows = predict_rows,
    .all_finite = all_finite,
    .fma_gflop = fma_gflop,
};
#endif

}  // namespace noprop
