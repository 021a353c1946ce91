// The end of a step: every parameter's gradient and its update, and the running statistics.
//
// A weight gradient's tile goes from the product's registers through the optimizer into the weight;
// gradients reach memory only where they are asked for (UpdateRule::kNone).
#pragma once

#include "cuda/optimizer.cuh"
#include "cuda/tiles.cuh"

namespace noprop::cuda {

// updates entry `at` of a slice's parameter, or writes its gradient to memory
NOPROP_DEV void put_gradient(const Program& p, const Param& param, const Rates& rates,
                             const Coord& coord, int64_t at, float g) {
  if (p.hyper.rule == UpdateRule::kNone) {
    param.grad[coord.i * param.size + at] = g;
  } else if (rates.moves) {
    const int kept = moments(p.hyper.rule);
    const int64_t entry = coord.slice * param.size + at;
    float d[1] = {g}, w[1] = {param.value[entry]}, m[1] = {}, v[1] = {};
    if (kept > 0) m[0] = param.m[entry];
    if (kept > 1) v[0] = param.v[entry];
    step(p.hyper, rates, d, w, m, v);
    param.value[entry] = w[0];
    if (kept > 0) param.m[entry] = m[0];
    if (kept > 1) param.v[entry] = v[0];
  }
}

constexpr int kTileEntries = kTileH * kTileF;
static_assert(kTileH == 64 && kTileF == 64);

template <Precision P>
using WeightSums = Product<P, kTileH, Major::kTile, Major::kTile>;

// the position of a weight's tile
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

// a tile's moment in shared memory: entry e of thread t at e * kThreads + t
template <int N>
NOPROP_DEV void load_moment(const float* resident, float (&moment)[N]) {
  static_assert(N * kThreads == kTileEntries);
#pragma unroll
  for (int e = 0; e < N; ++e) moment[e] = resident[e * kThreads + thread_index()];
}

template <int N>
NOPROP_DEV void store_moment(float* resident, const float (&moment)[N]) {
#pragma unroll
  for (int e = 0; e < N; ++e) resident[e * kThreads + thread_index()] = moment[e];
}

// resident: the tile's moments in shared memory, v behind m; null: they are in global memory
template <Precision P>
NOPROP_DEV void update_weight_tile(const Program& p, const UpdateWeightStage& s, const Coord& coord,
                                   int tile, float* resident, unsigned char* scratch) {
  using Sums = WeightSums<P>;
  const Rates rates = load_rates(p, s.rates, coord);
  const bool writes = p.hyper.rule == UpdateRule::kNone;
  if (!writes && !rates.moves) return;  // the same for the whole thread block
  const WeightTile where(s, tile);
  const int kept = moments(p.hyper.rule), outside = resident == nullptr ? kept : 0;
  const auto view = [&](float* data) { return where.of(data, coord.slice, s.param.size); };
  const View<float> w_view = view(writes ? nullptr : s.param.value);
  const View<float> m_view = view(outside > 0 ? s.param.m : nullptr);
  const View<float> v_view = view(outside > 1 ? s.param.v : nullptr);

  Sums g;
  float w[Sums::kEntries] = {}, m[Sums::kEntries] = {}, v[Sums::kEntries] = {};
  g.read(w_view, w);  // on their way while the product is formed
  g.read(m_view, m);
  g.read(v_view, v);
  g.add({at<const float>(s.d_y, coord) + where.h, s.H, where.rows},
        {at<const float>(s.x, coord) + where.f, s.F, where.columns}, p.B, scratch);

  if (writes) return g.write(where.of(s.param.grad, coord.i, s.param.size), g.sum);
  if (outside < kept) load_moment(resident, m);
  if (outside + 1 < kept) load_moment(resident + kTileEntries, v);
  step(p.hyper, rates, g.sum, w, m, v);
  if (outside < kept) store_moment(resident, m);
  if (outside + 1 < kept) store_moment(resident + kTileEntries, v);
  g.write(w_view, w);
  g.write(m_view, m);
  g.write(v_view, v);
}

// copies a tile's moments of a slice between global memory and their place in shared memory
template <Precision P, bool FETCH>
NOPROP_DEV void move_moments(const Program& p, const UpdateWeightStage& s, int64_t slice, int tile,
                             float* resident) {
  const WeightSums<P> places;
  const WeightTile where(s, tile);
  for (int part = 0; part < moments(p.hyper.rule); ++part) {
    const View<float> moment = where.of(part == 0 ? s.param.m : s.param.v, slice, s.param.size);
    float* const kept = resident + part * kTileEntries;
    float value[WeightSums<P>::kEntries] = {};
    if (FETCH) {
      places.read(moment, value);
      store_moment(kept, value);
    } else {
      load_moment(kept, value);
      places.write(moment, value);
    }
  }
}

// A bias needs the sum of d_y over rows; the sum of a norm's parameter is there already. Each chunk
// of rows is summed by kWarps threads a column, which are then added in order.
NOPROP_DEV void update_vector_tile(const Program& p, const UpdateVectorStage& s, const Coord& coord,
                                   int tile, unsigned char* scratch) {
  static_assert(kColumns == kLanes && kChunkRows % kWarps == 0);
  const int column = tile * kColumns + lane_index();
  const float* gradient = at<float>(s.gradient, coord);
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
    put_gradient(p, s.param, load_rates(p, s.rates, coord), coord, column, g);
  }
}

// running = (1 - momentum) * running + momentum * batch
NOPROP_DEV void update_statistic_tile(const Program& p, const UpdateStatisticStage& s,
                                      const Coord& coord, int tile) {
  const int column = tile * kColumns + thread_index();
  if (thread_index() >= kColumns || column >= s.H) return;
  if (!load_rates(p, s.rates, coord).moves) return;
  move_statistic(s.running[coord.slice * s.H + column], at<float>(s.batch, coord)[column],
                 s.momentum);
}

NOPROP_DEV void apply_tile(const Program& p, const ApplyStage& s, const Coord& coord, int tile) {
  const Rates rates = load_rates(p, s.rates, coord);
  const float* gradient = at<float>(s.gradient, coord);
  const int64_t first = static_cast<int64_t>(tile) * kApplied;
  for (int e = thread_index(); e < kApplied && first + e < s.param.size; e += kThreads) {
    put_gradient(p, s.param, rates, coord, first + e, gradient[first + e]);
  }
}

}  // namespace noprop::cuda
