// Dense layers: out = activation(concat(sources) @ weight.T + bias) + add, and the gradient of a
// result, the sum over its consumers of d_y @ weight[:, columns].
//
// Several sources are read one after another into one sum and never concatenated in memory.
// Consumers are summed in plan order, each product from zero.
#pragma once

#include "cuda/tiles.cuh"

namespace noprop::cuda {

// null stays null
template <typename T>
NOPROP_DEV T* entry_of(T* first, int64_t entry) {
  return first == nullptr ? nullptr : first + entry;
}

template <Precision P, int TILE>
NOPROP_DEV void dense_tile(const Program& p, const DenseStage& s, const Place& place, int tile,
                           unsigned char* scratch) {
  using Sums = Product<P, TILE, Along::kSum, Along::kSum>;
  const int across = (s.H + TILE - 1) / TILE;
  const int row = tile / across * TILE, column = tile % across * TILE;
  const int rows = p.B - row, columns = s.H - column;
  const float* weight = s.weight + (place.slice * s.H + column) * s.in_width;
  const float* bias = s.bias + place.slice * s.H + column;
  Sums y;
  float offset[Sums::kEntries] = {};  // on its way while the product is formed
  y.each(rows, columns, [&](int e, int, int c, bool) { offset[e] = bias[c]; });

  for (int source = 0; source < s.num_sources; ++source) {
    const int width = s.widths[source];
    const float* x = at<float>(s.sources[source], place) + static_cast<int64_t>(row) * width;
    y.add({x, width, rows}, {weight, s.in_width, columns}, width, scratch);
    weight += width;
  }

  const int H = s.H;
  const bool active = s.relu != 0;
  const int64_t first = static_cast<int64_t>(row) * H + column;
  float* const out = at<float>(s.out, place) + first;
  float* const activated = entry_of(at<float>(s.activated, place), first);
  const float* const add = entry_of(at<const float>(s.add, place), first);
  y.each(rows, columns, [&](int e, int r, int c, bool inside) {
    float value = y.sum[e] + offset[e];
    if (active) value = relu(value);
    const float added = add != nullptr ? value + add[r * H + c] : value;
    if (inside && activated != nullptr) activated[r * H + c] = value;
    if (inside) out[r * H + c] = added;
  });
}

template <Precision P, int TILE>
NOPROP_DEV void result_gradient_tile(const Program& p, const ResultGradientStage& s,
                                     const Place& place, int tile, unsigned char* scratch) {
  using Sums = Product<P, TILE, Along::kSum, Along::kTile>;
  const int F = s.F, across = (F + TILE - 1) / TILE;
  const int row = tile / across * TILE, column = tile % across * TILE;
  const int rows = p.B - row, columns = F - column;
  const int64_t first = static_cast<int64_t>(row) * F + column;

  Sums total;
  for (int c = 0; c < s.num_consumers; ++c) {
    const Consumer& consumer = s.consumers[c];
    const float* d_y = at<const float>(consumer.d_y, place);
    Sums part;
    if (consumer.weight == nullptr) {  // the result is added there
      part.each(rows, columns,
                [&](int e, int r, int f, bool) { part.sum[e] = d_y[first + r * F + f]; });
    } else {
      const int height = consumer.height;
      const float* weight =
          consumer.weight + place.slice * height * consumer.in_width + consumer.column + column;
      part.add({d_y + static_cast<int64_t>(row) * height, height, rows},
               {weight, consumer.in_width, columns}, height, scratch);
    }
#pragma unroll
    for (int e = 0; e < Sums::kEntries; ++e) total.sum[e] += part.sum[e];
  }

  float* const d_result = entry_of(at<float>(s.d_result, place), first);
  float* const d_y = entry_of(at<float>(s.d_y, place), first);
  const float* const activated = entry_of(at<const float>(s.activated, place), first);
  total.each(rows, columns, [&](int e, int r, int f, bool inside) {
    const bool passes = activated == nullptr || !(activated[r * F + f] <= 0.0f);
    if (inside && d_result != nullptr) d_result[r * F + f] = total.sum[e];
    if (inside && d_y != nullptr) d_y[r * F + f] = passes ? total.sum[e] : 0.0f;
  });
}

}  // namespace noprop::cuda
