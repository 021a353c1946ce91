// The loss of a slice, whether its step applies, its counters, and the rates of its update.
#pragma once

#include "cuda/optimizer.cuh"
#include "cuda/reduce.cuh"

namespace noprop::cuda {

// The last thread forms the rates of the next update, since its warp has the least to do for a
// small batch; the other threads get nothing of use. store_rates writes them and counts the update.
template <typename S>
NOPROP_DEV Rates next_rates(const Program& p, const S& s, const Coord& coord) {
  if (thread_index() != kThreads - 1 || at<float>(s.rates, coord) == nullptr) return {};
  return rates_of(p.hyper, *at(s.lr, coord), *at(s.weight_decay, coord),
                  s.updates[coord.slice] + 1);
}

template <typename S>
NOPROP_DEV void store_rates(const S& s, const Coord& coord, const Rates& rates, bool applies) {
  float* to = at<float>(s.rates, coord);
  if (thread_index() != kThreads - 1 || to == nullptr) return;
  to[0] = rates.lr;
  to[1] = rates.decay;
  to[2] = rates.root;
  to[3] = static_cast<float>(applies);
  if (applies) ++s.updates[coord.slice];
}

// sum over rows of weight * error: a warp has a chunk, and all threads fold the chunks from the
// left
NOPROP_DEV float weighted_sum(const Program& p, const float* error, const float* weight,
                              int64_t weight_stride, unsigned char* scratch) {
  static_assert(dev::Carve::cost(kWarps * 4) <= kScratchBytes);
  float* s_chunks = dev::Carve{scratch}.take<float>(kWarps);
  float total = 0.0f;
  for (int first = 0; first < p.B; first += kWarps * kChunkRows) {
    const int begin = first + warp_index() * kChunkRows, end = min_of(p.B, begin + kChunkRows);
    float sum = 0.0f;
    for (int64_t row = begin + lane_index(); row < end; row += kLanes) {
      sum += weight[row * weight_stride] * error[row];
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) s_chunks[warp_index()] = sum;
    dev::sync_block();
    for (int warp = 0; warp < kWarps && first + warp * kChunkRows < p.B; ++warp) {
      total += s_chunks[warp];
    }
    dev::sync_block();
  }
  return total;
}

NOPROP_DEV void loss_tile(const Program& p, const LossStage& s, const Coord& coord, int,
                          unsigned char* scratch) {
  const Rates rates = next_rates(p, s, coord);
  int32_t bad = 0;
  const int tiles = (p.B + kRows - 1) / kRows;
  for (int j = 0; j < s.num_flags; ++j) {
    const int32_t* flags = at<const int32_t>(s.flags[j], coord);
    for (int tile = thread_index(); tile < tiles; tile += kThreads) bad |= flags[tile];
  }
  if (s.num_flags > 0) bad = block_or(bad, scratch);
  const float loss = weighted_sum(p, at<const float>(s.error, coord), at(s.weight, coord),
                                  s.weight.stride_row, scratch) /
                     s.rows;
  const bool applies = fabsf(loss) < INFINITY && bad == 0;
  store_rates(s, coord, rates, applies);
  if (thread_index() != 0) return;
  if (float* to = at<float>(s.loss, coord)) *to = loss;
  if (uint8_t* to = at<uint8_t>(s.applied, coord)) *to = applies;
  if (s.draws != nullptr) ++s.draws[coord.slice];
  if (s.errors != nullptr && bad != 0) dev::atomic_or(s.errors, bad);
}

NOPROP_DEV void rates_tile(const Program& p, const RatesStage& s, const Coord& coord, int,
                           unsigned char* scratch) {
  const Rates rates = next_rates(p, s, coord);
  uint8_t* applied = at<uint8_t>(s.applied, coord);
  const float* d_logits = at<const float>(s.d_logits, coord);
  if (d_logits == nullptr) return store_rates(s, coord, rates, *applied != 0);
  int32_t bad = 0;
#pragma unroll 4
  for (int64_t j = thread_index(); j < s.size; j += kThreads) {
    if (!(fabsf(d_logits[j]) < INFINITY)) bad = 1;
  }
  bad = block_or(bad, scratch);
  store_rates(s, coord, rates, bad == 0);
  if (thread_index() == 0 && applied != nullptr) *applied = bad == 0;
}

}  // namespace noprop::cuda
