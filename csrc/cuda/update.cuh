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

// an entry's parameter and moments; what the rule does not use is left alone
struct Entry {
  float w, m, v;
};

NOPROP_DEV void step(const Hyper& h, const Rates& rates, float g, Entry& entry) {
  float &w = entry.w, &m = entry.m, &v = entry.v;
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

// a slice's, or a tile's, entries of a parameter; of a moment that is not used, or not there, null
struct Entries {
  float *w, *m, *v;

  NOPROP_DEV Entries(const Param& param, int kept, int64_t first)
      : w(param.value + first),
        m(kept > 0 ? param.m + first : nullptr),
        v(kept > 1 ? param.v + first : nullptr) {}

  NOPROP_DEV Entry load(int64_t at) const {
    return {w[at], m == nullptr ? 0.0f : m[at], v == nullptr ? 0.0f : v[at]};
  }
  NOPROP_DEV void store(int64_t at, const Entry& entry) const {
    w[at] = entry.w;
    if (m != nullptr) m[at] = entry.m;
    if (v != nullptr) v[at] = entry.v;
  }
};

// one step of entry `at` of a slice's parameter, or its gradient to memory
NOPROP_DEV void put_gradient(const Program& p, const Param& param, const Rates& rates,
                             const Place& place, int64_t at, float g) {
  if (p.hyper.rule == Rule::kNone) {
    param.grad[place.i * param.size + at] = g;
  } else if (rates.moves) {
    const Entries entries(param, moments(p.hyper.rule), place.slice * param.size);
    Entry entry = entries.load(at);
    step(p.hyper, rates, g, entry);
    entries.store(at, entry);
  }
}

constexpr int kTileEntries = kTileH * kTileF;
static_assert(kTileH == 64 && kTileF == 64);

template <Precision P>
using WeightSums = Product<P, kTileH, Along::kTile, Along::kTile>;

// where a tile of a weight stands
struct WeightTile {
  int h, f, rows, columns;  // first row and column, and how many there are from there on
  int64_t first;            // its first entry within a slice

  NOPROP_DEV WeightTile(const UpdateWeightStage& s, int tile) {
    const int across = (s.F + kTileF - 1) / kTileF;
    h = tile / across * kTileH;
    f = tile % across * kTileF;
    rows = s.H - h;
    columns = s.F - f;
    first = static_cast<int64_t>(h) * s.in_width + s.column + f;
  }
};

// The moments of a tile in shared memory: entry e of thread t at e * kThreads + t, v behind m.
// null: they are in global memory.
template <Precision P>
NOPROP_DEV void update_weight_tile(const Program& p, const UpdateWeightStage& s, const Place& place,
                                   int tile, float* resident, unsigned char* scratch) {
  using Sums = WeightSums<P>;
  const Rates rates = load_rates(p, s.rates, place);
  const bool writes = p.hyper.rule == Rule::kNone;
  if (!writes && !rates.moves) return;  // the same for the whole thread block
  const WeightTile where(s, tile);
  const int kept = moments(p.hyper.rule), outside = resident == nullptr ? kept : 0;
  const int in_width = s.in_width;
  const Entries entries(s.param, outside, place.slice * s.param.size + where.first);

  Sums g;
  Entry entry[Sums::kEntries];  // on their way while the product is formed
  if (!writes) {
    g.each(where.rows, where.columns, [&](int e, int r, int c, bool) {
      entry[e] = entries.load(dev::fresh(r * in_width + c));
    });
  }
  g.add({at<float>(s.d_y, place) + where.h, s.H, where.rows},
        {at<float>(s.x, place) + where.f, s.F, where.columns}, p.B, scratch);

  if (writes) {
    float* const grad = s.param.grad + place.i * s.param.size + where.first;
    return g.each(where.rows, where.columns, [&](int e, int r, int c, bool inside) {
      if (inside) grad[r * in_width + c] = g.sum[e];
    });
  }
  g.each(where.rows, where.columns, [&](int e, int r, int c, bool inside) {
    const int kept_at = e * kThreads + g.thread;
    if (outside < kept) entry[e].m = resident[kept_at];
    if (outside + 1 < kept) entry[e].v = resident[kTileEntries + kept_at];
    step(p.hyper, rates, g.sum[e], entry[e]);
    if (outside < kept) resident[kept_at] = entry[e].m;
    if (outside + 1 < kept) resident[kTileEntries + kept_at] = entry[e].v;
    if (inside) entries.store(dev::fresh(r * in_width + c), entry[e]);
  });
}

// a tile's moments of a slice between global memory and their place in shared memory
template <Precision P, bool FETCH>
NOPROP_DEV void move_moments(const Program& p, const UpdateWeightStage& s, int64_t slice, int tile,
                             float* resident) {
  const WeightSums<P> places;
  const WeightTile where(s, tile);
  const int64_t first = slice * s.param.size + where.first;
  for (int part = 0; part < moments(p.hyper.rule); ++part) {
    float* const moment = (part == 0 ? s.param.m : s.param.v) + first;
    float* const kept = resident + part * kTileEntries + places.thread;
    places.each(where.rows, where.columns, [&](int e, int r, int c, bool inside) {
      float& outside = moment[r * s.in_width + c];
      if (FETCH) kept[e * kThreads] = outside;
      if (!FETCH && inside) outside = kept[e * kThreads];
    });
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
