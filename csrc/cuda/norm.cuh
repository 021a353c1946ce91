// Batch norm: statistics over all rows, by (mean, M2) of chunks merged in order, and y_hat; and its
// gradient. A lane has a column, a warp every kWarps-th row of a chunk; a chunk's sums are those of
// its warps, in their order.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/reduce.cuh"

namespace noprop::cuda {

static_assert(kColumns == kLanes && kChunkRows % kWarps == 0);
constexpr int kWarpRows = kChunkRows / kWarps;  // of a chunk
static_assert(2 * dev::Carve::cost(2 * kThreads * 4) <= kScratchBytes);

// the sum over warps of what was put in s_parts (kWarps, kLanes), for the thread's column
NOPROP_DEV float sum_of_warps(const float* s_parts) {
  float sum = 0.0f;
  const int lane = lane_index();
  for (int warp = 0; warp < kWarps; ++warp) sum += s_parts[warp * kLanes + lane];
  return sum;
}

struct Moments {
  float mean, var;  // var biased
};

// the moments of the thread's column of y (B, H), which exists if `real`; all threads must call
NOPROP_DEV Moments batch_moments(const float* y, int column, bool real, int B, int H,
                                 unsigned char* scratch) {
  dev::Carve carve{scratch};
  float *s_sums = carve.take<float>(kThreads), *s_squares = carve.take<float>(kThreads);
  float mean = 0.0f, m2 = 0.0f;
  const int thread = thread_index(), warp = thread / kLanes;
  for (int first = 0; first < B; first += kChunkRows) {
    const int rows = min_of(B - first, kChunkRows);
    float value[kWarpRows], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kWarpRows; ++j) {
      const int row = warp + j * kWarps;
      value[j] = real && row < rows ? y[int64_t{first + row} * H + column] : 0.0f;
      sum += value[j];
    }
    s_sums[thread] = sum;
    dev::sync_block();
    const float chunk_mean = dev::div_rn(sum_of_warps(s_sums), static_cast<float>(rows));
#pragma unroll
    for (int j = 0; j < kWarpRows; ++j) {
      const float apart = warp + j * kWarps < rows ? value[j] - chunk_mean : 0.0f;
      squares += apart * apart;
    }
    s_squares[thread] = squares;
    dev::sync_block();  // also: s_sums may be written again
    const float share = dev::div_rn(static_cast<float>(rows), static_cast<float>(first + rows));
    const float delta = chunk_mean - mean;
    mean += delta * share;
    m2 += sum_of_warps(s_squares) + delta * delta * (static_cast<float>(first) * share);
  }
  dev::sync_block();
  return {mean, dev::div_rn(m2, static_cast<float>(B))};
}

// the batch's or the running moments of the thread's column; stores and moves what the stage asks
// for
NOPROP_DEV Moments norm_moments(const Program& p, const NormStage& s, const Coord& coord,
                                int column, bool real, unsigned char* scratch) {
  const int64_t param = coord.slice * s.H + column;
  if (!s.training) {
    return real ? Moments{s.running_mean[param], s.running_var[param]} : Moments{0.0f, 1.0f};
  }
  const Moments moments =
      batch_moments(at<const float>(s.y, coord), column, real, p.B, s.H, scratch);
  const float bessel = dev::div_rn(static_cast<float>(p.B), static_cast<float>(p.B - 1));
  const float unbiased = moments.var * bessel;
  if (real && warp_index() == 0) {
    if (float* to = at<float>(s.batch_mean, coord)) to[column] = moments.mean;
    if (float* to = at<float>(s.batch_var, coord)) to[column] = unbiased;
    if (s.move) {
      move_statistic(s.running_mean[param], moments.mean, s.momentum);
      move_statistic(s.running_var[param], unbiased, s.momentum);
    }
  }
  // NaN if the batch's variance would make the running one not finite, so that the loss is NaN too
  return {moments.mean, moments.var + (unbiased - unbiased)};
}

NOPROP_DEV void norm_tile(const Program& p, const NormStage& s, const Coord& coord, int tile,
                          unsigned char* scratch) {
  const int column = tile * kColumns + lane_index();
  const bool real = column < s.H;
  const Moments moments = norm_moments(p, s, coord, column, real, scratch);
  if (!real) return;
  const float mean = moments.mean;
  const float rstd = dev::div_rn(1.0f, dev::sqrt_rn(moments.var + s.eps));
  if (warp_index() == 0) {
    if (float* to = at<float>(s.mean, coord)) to[column] = mean;
    if (float* to = at<float>(s.rstd, coord)) to[column] = rstd;
  }
  const float *y = at<const float>(s.y, coord), *add = at<const float>(s.add, coord);
  float *out = at<float>(s.out, coord), *kept = at<float>(s.kept, coord);
  const float weight = s.weight[coord.slice * s.H + column];
  const float bias = s.bias[coord.slice * s.H + column];
#pragma unroll 4
  for (int row = warp_index(); row < p.B; row += kWarps) {
    const int64_t here = int64_t{row} * s.H + column;
    const float y_hat = (y[here] - mean) * rstd;
    Activated made;
    with_activation(s.activation,
                    [&](auto activation) { made = activation.activate(weight * y_hat + bias); });
    if (kept != nullptr) kept[here] = made.kept;
    float value = made.result;
    if (add != nullptr) value += add[here];
    out[here] = value;
  }
}

// d_y = weight * rstd * (d_out - d_bias / B - y_hat * d_weight / B), d_weight and d_bias. Out of
// training the statistics are constants, and the two means fall away.
NOPROP_DEV void norm_gradient_tile(const Program& p, const NormGradientStage& s, const Coord& coord,
                                   int tile, unsigned char* scratch) {
  const int column = tile * kColumns + lane_index();
  const bool real = column < s.H;
  const float *y = at<const float>(s.y, coord), *d_out = at<const float>(s.d_out, coord);
  const float mean = real ? at<const float>(s.mean, coord)[column] : 0.0f;
  const float rstd = real ? at<const float>(s.rstd, coord)[column] : 0.0f;
  dev::Carve carve{scratch};
  float *s_weight = carve.take<float>(2 * kThreads), *s_bias = carve.take<float>(2 * kThreads);
  float d_weight = 0.0f, d_bias = 0.0f;
  const int thread = thread_index(), warp = thread / kLanes;
  for (int first = 0; first < p.B; first += kChunkRows) {
    const int rows = min_of(p.B - first, kChunkRows);
    // the halves of the scratch take turns, so that one barrier a chunk will do
    const int half = first / kChunkRows % 2 * kThreads;
    float sum_weight = 0.0f, sum_bias = 0.0f;
#pragma unroll 4
    for (int row = warp; row < rows; row += kWarps) {
      if (!real) break;
      const int64_t here = int64_t{first + row} * s.H + column;
      const float d = d_out[here];
      sum_weight += d * ((y[here] - mean) * rstd);
      sum_bias += d;
    }
    s_weight[half + thread] = sum_weight;
    s_bias[half + thread] = sum_bias;
    dev::sync_block();
    d_weight += sum_of_warps(s_weight + half);
    d_bias += sum_of_warps(s_bias + half);
  }
  dev::sync_block();
  if (!real) return;
  if (warp == 0) {
    if (float* to = at<float>(s.d_weight, coord)) to[column] = d_weight;
    if (float* to = at<float>(s.d_bias, coord)) to[column] = d_bias;
  }
  const float scale = s.weight[coord.slice * s.H + column] * rstd;
  const float B = static_cast<float>(p.B);
  const float mean_weight = s.training ? dev::div_rn(d_weight, B) : 0.0f;
  const float mean_bias = s.training ? dev::div_rn(d_bias, B) : 0.0f;
  float* d_y = at<float>(s.d_y, coord);
#pragma unroll 4
  for (int row = warp; row < p.B; row += kWarps) {
    const int64_t here = int64_t{row} * s.H + column;
    float d = d_out[here];
    if (s.training) d = d - mean_bias - (y[here] - mean) * rstd * mean_weight;
    d_y[here] = scale * d;
  }
}

}  // namespace noprop::cuda
