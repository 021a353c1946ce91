// Gradients of the step's levels and of W_embed: d_signal, d_noise and d_W_embed.
#pragma once

#include "cuda/reduce.cuh"

namespace noprop::cuda {

// d_signal = sum over D of d_z * u_y;  d_noise = sum over D of d_z * eps
NOPROP_DEV void step_gradients_tile(const Program& p, const StepGradientsStage& s,
                                    const Coord& coord, int tile, unsigned char*) {
  const int64_t row = tile * kRows + tile_row();
  const int lane = row_lane();
  const bool real = row < p.B;
  const float *d_z = at<const float>(s.d_z, coord), *eps = at<const float>(s.eps, coord);
  const int64_t y = real ? at<const int64_t>(s.labels, coord)[row] : 0;
  float d_signal = 0.0f, d_noise = 0.0f;
  for (int d = lane; real && d < s.D; d += kRowLanes) {
    const float u_y = s.W_embed == nullptr ? static_cast<float>(d == y) : s.W_embed[y * s.D + d];
    d_signal += d_z[row * s.D + d] * u_y;
    d_noise += d_z[row * s.D + d] * eps[row * s.D + d];
  }
  d_signal = row_sum(d_signal);
  d_noise = row_sum(d_noise);
  if (!real || lane != 0) return;
  at<float>(s.d_signal, coord)[row] = d_signal;
  at<float>(s.d_noise, coord)[row] = d_noise;
}

constexpr int kStaged = 64;  // rows in shared memory at a time
static_assert(kEmbedding * kEmbedding == kThreads && kChunkRows % kStaged == 0);
static_assert(3 * dev::Carve::cost(kStaged * kEmbedding * 4) + dev::Carve::cost(kStaged * 4) <=
              kScratchBytes);

// d_W_embed = p.T @ d_u_hat + one_hot(y).T @ (signal * d_z - d_u_hat), rows ascending within a
// chunk, chunks from the left; a thread has an entry
NOPROP_DEV void embedding_tile(const Program& p, const EmbeddingStage& s, const Coord& coord,
                               int tile, unsigned char* scratch) {
  const int across = (s.D + kEmbedding - 1) / kEmbedding;
  const int m_0 = tile / across * kEmbedding, d_0 = tile % across * kEmbedding;
  const int thread = thread_index(), m_in = thread / kEmbedding, d_in = thread % kEmbedding;
  dev::Carve carve{scratch};
  float* s_p = carve.take<float>(kStaged * kEmbedding);        // (row, m)
  float* s_d_u_hat = carve.take<float>(kStaged * kEmbedding);  // (row, d)
  float* s_d_u_y = carve.take<float>(kStaged * kEmbedding);    // (row, d)
  int32_t* s_y = carve.take<int32_t>(kStaged);
  const float *probs = at<const float>(s.p, coord), *d_u_hat = at<const float>(s.d_u_hat, coord);
  const float *d_z = at<const float>(s.d_z, coord), *signal = at(s.signal, coord);
  const int64_t* labels = at<const int64_t>(s.labels, coord);

  float total = 0.0f, by_prediction = 0.0f, by_label = 0.0f;
  for (int first = 0; first < p.B; first += kStaged) {
    const int rows = min_of(p.B - first, kStaged);
    if (thread < rows) s_y[thread] = static_cast<int32_t>(labels[first + thread]);
    for (int r = m_in; r < rows; r += kEmbedding) {
      const int64_t row = first + r;
      const int m = m_0 + d_in, d = d_0 + d_in;
      const float u = d_u_hat != nullptr && d < s.D ? d_u_hat[row * s.D + d] : 0.0f;
      float u_y = -u;
      if (d_z != nullptr && d < s.D) u_y += signal[row * s.signal.stride_row] * d_z[row * s.D + d];
      s_p[r * kEmbedding + d_in] = probs != nullptr && m < s.M ? probs[row * s.M + m] : 0.0f;
      s_d_u_hat[r * kEmbedding + d_in] = u;
      s_d_u_y[r * kEmbedding + d_in] = u_y;
    }
    dev::sync_block();
    for (int r = 0; r < rows; ++r) {
      by_prediction =
          dev::fma_rn(s_p[r * kEmbedding + m_in], s_d_u_hat[r * kEmbedding + d_in], by_prediction);
      if (s_y[r] == m_0 + m_in) by_label += s_d_u_y[r * kEmbedding + d_in];
    }
    dev::sync_block();
    if ((first + kStaged) % kChunkRows == 0 || first + kStaged >= p.B) {
      total += by_prediction + by_label;
      by_prediction = by_label = 0.0f;
    }
  }
  const int m = m_0 + m_in, d = d_0 + d_in;
  if (m < s.M && d < s.D) at<float>(s.d_W, coord)[int64_t{m} * s.D + d] = total;
}

}  // namespace noprop::cuda
