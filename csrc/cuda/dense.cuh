// Dense layers: out = activation(concat(sources) @ weight.T + bias) + add, and the gradient of a
// result, the sum over its consumers of d_y @ weight[:, columns].
//
// Several sources are read one after another into one sum and never concatenated in memory.
// Consumers are summed in plan order, each product from zero.
#pragma once

#include "cuda/tiles.cuh"

namespace noprop::cuda {

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
  y.each(rows, columns, [&](int e, int, int c) { offset[e] = bias[c]; });

  for (int source = 0; source < s.num_sources; ++source) {
    const int width = s.widths[source];
    const float* x = at<float>(s.sources[source], place) + static_cast<int64_t>(row) * width;
    y.add({x, width, rows}, {weight, s.in_width, columns}, width, scratch);
    weight += width;
  }

  const int64_t first = static_cast<int64_t>(row) * s.H + column;
  float* const out = at<float>(s.out, place) + first;
  float* const activated = at<float>(s.activated, place);
  const float* const add = at<float>(s.add, place);
  y.each(rows, columns, [&](int e, int r, int c) {
    const int64_t entry = static_cast<int64_t>(r) * s.H + c;
    float value = y.sum[e] + offset[e];
    if (s.relu) value = relu(value);
    if (activated != nullptr) activated[first + entry] = value;
    if (add != nullptr) value += add[first + entry];
    out[entry] = value;
  });
}

template <Precision P, int TILE>
NOPROP_DEV void result_gradient_tile(const Program& p, const ResultGradientStage& s,
                                     const Place& place, int tile, unsigned char* scratch) {
  using Sums = Product<P, TILE, Along::kSum, Along::kTile>;
  const int across = (s.F + TILE - 1) / TILE;
  const int row = tile / across * TILE, column = tile % across * TILE;
  const int rows = p.B - row, columns = s.F - column;
  const int64_t first = static_cast<int64_t>(row) * s.F + column;

  Sums total;
  for (int c = 0; c < s.num_consumers; ++c) {
    const Consumer& consumer = s.consumers[c];
    const float* d_y = at<float>(consumer.d_y, place);
    Sums part;
    if (consumer.weight == nullptr) {  // the result is added there
      part.each(rows, columns, [&](int e, int r, int f) {
        part.sum[e] = d_y[first + static_cast<int64_t>(r) * s.F + f];
      });
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

  float* const d_result = at<float>(s.d_result, place);
  float* const d_y = at<float>(s.d_y, place);
  const float* const activated = at<float>(s.activated, place);
  total.each(rows, columns, [&](int e, int r, int f) {
    const int64_t entry = first + static_cast<int64_t>(r) * s.F + f;
    if (d_result != nullptr) d_result[entry] = total.sum[e];
    if (d_y == nullptr) return;
    d_y[entry] = activated != nullptr && activated[entry] <= 0.0f ? 0.0f : total.sum[e];
  });
}

}  // namespace noprop::cuda
