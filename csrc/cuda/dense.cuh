// Dense layers: out = activation(concat(sources) @ weight.T + bias) + add, and the gradient of a
// result, the sum over its consumers of d_y @ weight[:, columns].
//
// Several sources are read one after another into one sum and never concatenated in memory.
// Consumers are summed in plan order, each product from zero.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/tiles.cuh"

namespace noprop::cuda {

template <Precision P, int TILE>
NOPROP_DEV void dense_tile(const Program& p, const DenseStage& s, const Coord& coord, int tile,
                           unsigned char* scratch) {
  using Sums = Product<P, TILE, Major::kSum, Major::kSum>;
  const int H = s.H, across = (H + TILE - 1) / TILE;
  const int row = tile / across * TILE, column = tile % across * TILE;
  const int rows = p.B - row, columns = H - column;
  const float* weight = s.weight + (coord.slice * H + column) * s.in_width;
  Sums y;
  float bias[Sums::kEntries] = {};  // on its way while the product is formed
  y.read(View<const float>(s.bias, coord.slice * H + column, 0, rows, columns), bias);

  for (int source = 0; source < s.num_sources; ++source) {
    const int width = s.widths[source];
    const float* x = at<float>(s.sources[source], coord) + static_cast<int64_t>(row) * width;
    y.add({x, width, rows}, {weight, s.in_width, columns}, width, scratch);
    weight += width;
  }

  float kept[Sums::kEntries];
  with_activation(s.activation, [&](auto activation) {
#pragma unroll
    for (int e = 0; e < Sums::kEntries; ++e) {
      const Activated made = activation.activate(y.sum[e] + bias[e]);
      y.sum[e] = made.result;
      kept[e] = made.kept;
    }
  });
  const int64_t first = static_cast<int64_t>(row) * H + column;
  y.write({at<float>(s.kept, coord), first, H, rows, columns}, kept);
  float add[Sums::kEntries] = {};
  y.read(View<const float>(at<const float>(s.add, coord), first, H, rows, columns), add);
#pragma unroll
  for (int e = 0; e < Sums::kEntries; ++e) y.sum[e] += add[e];
  y.write({at<float>(s.out, coord), first, H, rows, columns}, y.sum);
}

template <Precision P, int TILE>
NOPROP_DEV void result_gradient_tile(const Program& p, const ResultGradientStage& s,
                                     const Coord& coord, int tile, unsigned char* scratch) {
  using Sums = Product<P, TILE, Major::kSum, Major::kTile>;
  const int F = s.F, across = (F + TILE - 1) / TILE;
  const int row = tile / across * TILE, column = tile % across * TILE;
  const int rows = p.B - row, columns = F - column;
  const int64_t first = static_cast<int64_t>(row) * F + column;

  Sums total;
  for (int c = 0; c < s.num_consumers; ++c) {
    const Consumer& consumer = s.consumers[c];
    const float* d_y = at<const float>(consumer.d_y, coord);
    Sums part;
    if (consumer.weight == nullptr) {  // the result is added there
      part.read(View<const float>(d_y, first, F, rows, columns), part.sum);
    } else {
      const int height = consumer.height;
      const float* weight =
          consumer.weight + coord.slice * height * consumer.in_width + consumer.column + column;
      part.add({d_y + static_cast<int64_t>(row) * height, height, rows},
               {weight, consumer.in_width, columns}, height, scratch);
    }
#pragma unroll
    for (int e = 0; e < Sums::kEntries; ++e) total.sum[e] += part.sum[e];
  }

  total.write({at<float>(s.d_result, coord), first, F, rows, columns}, total.sum);
  float kept[Sums::kEntries] = {};
  total.read(View<const float>(at<const float>(s.kept, coord), first, F, rows, columns), kept);
  with_activation(s.activation, [&](auto activation) {
#pragma unroll
    for (int e = 0; e < Sums::kEntries; ++e)
      total.sum[e] = activation.gradient(total.sum[e], kept[e]);
  });
  total.write({at<float>(s.d_y, coord), first, F, rows, columns}, total.sum);
}

}  // namespace noprop::cuda
