// A dense layer over several sources: forward, input gradient, weight gradient. Biases and
// activations act on the tile while it is in registers; the weight gradient's tile goes straight to
// the optimizer.
#include "product.h"

namespace noprop {
namespace {

struct Source {
  const float* value;  // panels (width, P)
  int64_t width;
};

// out = activation(concat(sources) @ weight.T + bias) + add, panels (H, P); `activated` (or null)
// keeps what stood before `add`
inline void dense_forward(float* out, float* activated, const Source* sources, int num_sources,
                          const float* weight, const float* bias, const float* add, bool is_relu,
                          int64_t H, const Panels& shape) {
  int64_t in = 0;
  for (int s = 0; s < num_sources; ++s) in += sources[s].width;
  const int64_t P = shape.P;
  with_cols(shape.cols, [&](auto cols) {
    constexpr int COLS = decltype(cols)::value;
    for_row_tiles<COLS>(H, [&](auto rows, int64_t o) {
      constexpr int ROWS = decltype(rows)::value;
      for (int64_t p = 0; p < shape.count; ++p) {
        Vec c[ROWS][COLS] = {};
        const float* w = weight + o * in;
        for (int s = 0; s < num_sources; ++s) {
          const int64_t width = sources[s].width;
          multiply_tile(c, w, in, 1, sources[s].value + p * width * P, P, width);
          w += width;
        }
        for (int i = 0; i < ROWS; ++i)
          for (int j = 0; j < COLS; ++j) {
            const int64_t at = (p * H + o + i) * P + j * kLanes;
            Vec y = c[i][j] + bias[o + i];
            if (is_relu) y = relu(y);
            if (activated) store(activated + at, y);
            if (add) y += load(add + at);
            store(out + at, y);
          }
      }
    });
  });
}

// d_source (width, P) = or += d_out (H, P) times columns first .. first + width of weight (H, in)
inline void dense_input_grad(float* d_source, bool accumulate, const float* d_out,
                             const float* weight, int64_t in, int64_t first, int64_t width,
                             int64_t H, const Panels& shape) {
  const int64_t P = shape.P;
  with_cols(shape.cols, [&](auto cols) {
    constexpr int COLS = decltype(cols)::value;
    for_row_tiles<COLS>(width, [&](auto rows, int64_t f) {
      constexpr int ROWS = decltype(rows)::value;
      for (int64_t p = 0; p < shape.count; ++p) {
        Vec c[ROWS][COLS] = {};
        multiply_tile(c, weight + first + f, 1, in, d_out + p * H * P, P, H);
        for (int i = 0; i < ROWS; ++i)
          for (int j = 0; j < COLS; ++j) {
            float* at = d_source + (p * width + f + i) * P + j * kLanes;
            store(at, accumulate ? load(at) + c[i][j] : c[i][j]);
          }
      }
    });
  });
}

// The weight gradient d_out^T @ source, tile by tile: finish(gradient, o, f, count) gets `count`
// columns from f of row o. strips: the source's. prefetch(o, f, rows, columns) names the tile that
// comes next. Rows of the weights are the outer loop: their three arrays are then read along their
// rows, as the hardware's prefetcher expects.
template <class Finish, class Prefetch>
inline void dense_weight_grad(const float* d_out, const float* strips, int64_t width, int64_t H,
                              const Panels& shape, Finish finish, Prefetch prefetch) {
  const int64_t P = shape.P;
  for_row_tiles<kMaxCols>(H, [&](auto tile_rows, int64_t o) {
    constexpr int ROWS = decltype(tile_rows)::value;
    for_strips(width, [&](int64_t f, int strip_cols) {
      const int64_t next = f + strip_cols * kLanes;
      if (next < width) {
        const int64_t left = width - next;
        prefetch(o, next, ROWS, left < strip_cols * kLanes ? left : strip_cols * kLanes);
      }
      with_cols(strip_cols, [&](auto cols) {
        constexpr int COLS = decltype(cols)::value;
        const float* strip = strips + f * shape.B;
        Vec c[ROWS][COLS] = {};
        for (int64_t p = 0; p < shape.count; ++p) {
          const int64_t K = shape.B - p * P < P ? shape.B - p * P : P;
          multiply_tile(c, d_out + (p * H + o) * P, P, 1, strip + p * P * COLS * kLanes,
                        COLS * kLanes, K);
        }
        alignas(64) float gradient[ROWS][COLS * kLanes];
        for (int i = 0; i < ROWS; ++i)
          for (int j = 0; j < COLS; ++j) store(&gradient[i][j * kLanes], c[i][j]);
        const int64_t count = width - f < COLS * kLanes ? width - f : COLS * kLanes;
        for (int i = 0; i < ROWS; ++i) finish(&gradient[i][0], o + i, f, count);
      });
    });
  });
}

// d_bias[o] = sum over rows of d_out
inline void dense_bias_grad(float* d_bias, const float* d_out, int64_t H, const Panels& shape) {
  for (int64_t o = 0; o < H; ++o)
    d_bias[o] = sum_rows(shape, H, o, [&](int64_t at, int64_t) { return load(d_out + at); });
}

// d_out = 0 where relu gave 0
inline void relu_grad(float* d_out, const float* activated, int64_t H, const Panels& shape) {
  for (int64_t i = 0; i < H * shape.padded(); i += kLanes) {
    const Vec a = load(activated + i);
    store(d_out + i, a <= Vec{} ? Vec{} : load(d_out + i));
  }
}

}  // namespace
}  // namespace noprop
