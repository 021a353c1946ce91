// The end of a step: every parameter's gradient and its step, and the running statistics.
//
// A weight gradient's tile goes from the product's registers through the optimizer into the weight;
// gradients reach memory only where they are asked for (Rule::kNone).
//
//     SGD:   g += wd * param;  m = momentum * m + g;  param -= lr * (m, or g + momentum * m)
//     Adam:  g += wd * param;  AdamW: param *= 1 - lr * wd;  then both
//            m += (1 - beta_1) (g - m);  v = beta_2 * v + (1 - beta_2) g^2
//            param -= lr / c_1 * m / (sqrt(v) / sqrt(c_2) + eps),  c_i = 1 - beta_i^updates
#pragma once

#include "cuda/tiles.cuh"

namespace noprop::cuda {

// what a slice's loss stage left for its update
struct Rates {
  float lr, decay, root;  // lr / c_1; weight decay, of AdamW 1 - lr * weight decay; sqrt(c_2)
  bool moves;
};

NOPROP_DEV Rates load_rates(const Program& p, const Buffer& buffer, const Place& place) {
  if (p.hyper.rule == Rule::kNone) return {0.0f, 0.0f, 1.0f, false};
  const float* from = at<float>(buffer, place);
  return {from[0], from[1], from[2], from[3] != 0.0f};
}

// one step of a parameter w with moments m and v; those that the rule does not use are left alone
NOPROP_DEV void step(const Hyper& h, const Rates& rates, float g, float& w, float& m, float& v) {
  if (h.rule == Rule::kAdamW) {
    w *= rates.decay;
  } else {
    g += rates.decay * w;
  }
  if (moments(h.rule) == 2) {
    m += h.one_less_beta_1 * (g - m);
    v = h.beta_2 * v + h.one_less_beta_2 * (g * g);
    w -= dev::div_rn(rates.lr * m, dev::div_rn(dev::sqrt_rn(v), rates.root) + h.eps);
  } else if (moments(h.rule) == 1) {
    m = h.momentum * m + g;
    w -= rates.lr * (h.rule == Rule::kNesterov ? g + h.momentum * m : m);
  } else {
    w -= rates.lr * g;
  }
}

// one step of entry `at` of a slice's parameter, or its gradient to memory
NOPROP_DEV void put_gradient(const Program& p, const Param& param, const Rates& rates,
                             const Place& place, int64_t at, float g) {
  if (p.hyper.rule == Rule::kNone) {
    param.grad[place.i * param.size + at] = g;
  } else if (rates.moves) {
    const int kept = moments(p.hyper.rule);
    const int64_t entry = place.slice * param.size + at;
    float w = param.value[entry], m = kept > 0 ? param.m[entry] : 0.0f;
    float v = kept > 1 ? param.v[entry] : 0.0f;
    step(p.hyper, rates, g, w, m, v);
    param.value[entry] = w;
    if (kept > 0) param.m[entry] = m;
    if (kept > 1) param.v[entry] = v;
  }
}

constexpr int kTileEntries = kTileH * kTileF;
static_assert(kTileH == 64 && kTileF == 64);

template <Precision P>
using WeightSums = Product<P, kTileH, Along::kTile, Along::kTile>;

// where a tile of a weight stands
struct WeightTile {
  int h, f, rows, columns, stride;  // first row and column, and how many there are from there on
  int64_t first;                    // its first entry within a slice

  NOPROP_DEV WeightTile(const UpdateWeightStage& s, int tile) : stride(s.in_width) {
    const int across = (s.F + kTileF - 1) / kTileF;
    h = tile / across * kTileH;
    f = tile % across * kTileF;
    rows = s.H - h;
    columns = s.F - f;
    first = static_cast<int64_t>(h) * stride + s.column + f;
  }

  // of entry `slice` of a stacked parameter, moment or gradient
  NOPROP_DEV View<float> of(float* data, int64_t slice, int64_t size) const {
    return {data, slice * size + first, stride, rows, columns};
  }
};

// The moments of a tile in shared memory: entry e of thread t at e * kThreads + t, v behind m.
// resident null: they are in global memory.
template <Precision P>
NOPROP_DEV void update_weight_tile(const Program& p, const UpdateWeightStage& s, const Place& place,
                                   int tile, float* resident, unsigned char* scratch) {
  using Sums = WeightSums<P>;
  const Rates rates = load_rates(p, s.rates, place);
  const bool writes = p.hyper.rule == Rule::kNone;
  if (!writes && !rates.moves) return;  // the same for the whole thread block
  const WeightTile where(s, tile);
  const int kept = moments(p.hyper.rule), outside = resident == nullptr ? kept : 0;
  const auto view = [&](float* data) { return where.of(data, place.slice, s.param.size); };
  const View<float> w_place = view(writes ? nullptr : s.param.value);
  const View<float> m_place = view(outside > 0 ? s.param.m : nullptr);
  const View<float> v_place = view(outside > 1 ? s.param.v : nullptr);

  Sums g;
  float w[Sums::kEntries] = {}, m[Sums::kEntries] = {}, v[Sums::kEntries] = {};
  g.read(w_place, w);  // on their way while the product is formed
  g.read(m_place, m);
  g.read(v_place, v);
  g.add({at<const float>(s.d_y, place) + where.h, s.H, where.rows},
        {at<const float>(s.x, place) + where.f, s.F, where.columns}, p.B, scratch);

  if (writes) return g.write(where.of(s.param.grad, place.i, s.param.size), g.sum);
#pragma unroll
  for (int e = 0; e < Sums::kEntries; ++e) {
    const int kept_at = e * kThreads + g.thread;
    if (outside < kept) m[e] = resident[kept_at];
    if (outside + 1 < kept) v[e] = resident[kTileEntries + kept_at];
    step(p.hyper, rates, g.sum[e], w[e], m[e], v[e]);
    if (outside < kept) resident[kept_at] = m[e];
    if (outside + 1 < kept) resident[kTileEntries + kept_at] = v[e];
  }
  g.write(w_place, w);
  g.write(m_place, m);
  g.write(v_place, v);
}

// a tile's moments of a slice between global memory and their place in shared memory
template <Precision P, bool FETCH>
NOPROP_DEV void move_moments(const Program& p, const UpdateWeightStage& s, int64_t slice, int tile,
                             float* resident) {
  const WeightSums<P> places;
  const WeightTile where(s, tile);
  for (int part = 0; part < moments(p.hyper.rule); ++part) {
    const View<float> moment = where.of(part == 0 ? s.param.m : s.param.v, slice, s.param.size);
    float* const kept = resident + part * kTileEntries + places.thread;
    float value[WeightSums<P>::kEntries] = {};
    if (FETCH) places.read(moment, value);
#pragma unroll
    for (int e = 0; e < WeightSums<P>::kEntries; ++e) {
      if (FETCH) {
        kept[e * kThreads] = value[e];
      } else {
        value[e] = kept[e * kThreads];
      }
    }
    if (!FETCH) places.write(moment, value);
  }
}

// A bias: the sum of d_y over rows; a norm's parameter: its sum is there. Each chunk of rows is
// summed by kWarps threads a column, which are then added in order.
NOPROP_DEV void update_vector_tile(const Program& p, const UpdateVectorStage& s, const Place& place,
                                   int tile, unsigned char* scratch) {
  static_assert(kColumns == kLanes && kChunkRows % kWarps == 0);
  const int column = tile * kColumns + lane_index();
  const float* gradient = at<float>(s.gradient, place);
  float g = 0.0f;
  if (s.sum == Sum::kDone && column < s.H) g = gradient[column];
  if (s.sum == Sum::kRows) {
    dev::Carve carve{scratch};
    float* const parts = carve.take<float>(kThreads);
    for (int chunk = 0; chunk < p.B; chunk += kChunkRows) {
      const int end = min_of(p.B, chunk + kChunkRows);
      float part = 0.0f;
      for (int row = chunk + warp_index(); row < end; row += kWarps) {
        if (column < s.H) part += gradient[static_cast<int64_t>(row) * s.H + column];
      }
      parts[thread_index()] = part;
      dev::sync_block();
      float sum = 0.0f;
      for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp * kLanes + lane_index()];
      g += sum;
      dev::sync_block();
    }
  }
  if (warp_index() == 0 && column < s.H) {
    put_gradient(p, s.param, load_rates(p, s.rates, place), place, column, g);
  }
}

// running = (1 - momentum) * running + momentum * batch
NOPROP_DEV void update_statistic_tile(const Program& p, const UpdateStatisticStage& s,
                                      const Place& place, int tile) {
  const int column = tile * kColumns + thread_index();
  if (thread_index() >= kColumns || column >= s.H) return;
  if (!load_rates(p, s.rates, place).moves) return;
  move_statistic(s.running[place.slice * s.H + column], at<float>(s.batch, place)[column],
                 s.momentum);
}

NOPROP_DEV void apply_tile(const Program& p, const ApplyStage& s, const Place& place, int tile) {
  const Rates rates = load_rates(p, s.rates, place);
  const float* gradient = at<float>(s.gradient, place);
  const int64_t first = static_cast<int64_t>(tile) * kApplied;
  for (int e = thread_index(); e < kApplied && first + e < s.param.size; e += kThreads) {
    put_gradient(p, s.param, rates, place, first + e, gradient[first + e]);
  }
}

}  // namespace noprop::cuda
