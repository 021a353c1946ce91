// The head computes u_hat from logits, the rows' errors, their weighted sum, and d_logits. Rows are
// side by side in lanes.
//
//   softmax        u_hat = softmax(logits) @ W_embed      d_logits = p (d_p - sum p d_p)
//   linear         u_hat = logits @ W_embed               d_logits = d_p
//   cross-entropy  error = -log softmax(logits)[y]        d_logits = (p - onehot(y)) weight / rows
//   radial         u_hat = softmax(logits) @ W_embed      d_logits = p (d_p - sum p d_p)
//                  error = -log softmax(r)[y], r_m = -|u_hat - u_m|^2 / (2 radius^2)
// with d_u_hat = 2 weight / rows (u_hat - target) and d_p = d_u_hat @ W_embed^T; the radial head
// has d_r = weight / rows (softmax(r) - onehot(y)) and d_u_hat = d_r @ W_embed / radius^2, since
// d_r sums to 0. One-hot embeddings need no product.
#pragma once

#include "cpu/kernels/product.h"

namespace noprop {
namespace {

struct HeadInput {
  int32_t head;
  int64_t M, D;
  const float* logits;   // panels (M, P)
  const float* W_embed;  // (M, D) or null
  const float* u_y;      // panels (D, P)
  const float* eps;      // panels (D, P), read where flow is not 0
  const int32_t* y;      // (padded,)
  const float* weight;   // weight[b * weight_stride]
  int64_t weight_stride;
  float flow;
  int64_t rows;  // of the whole batch
  float radius;
};

// of step k, slice i
inline HeadInput head_input(const NopropObjective& objective, const NopropEmbedding& embedding,
                            int64_t M, int64_t k, int64_t i, const float* logits, const float* u_y,
                            const float* eps, const int32_t* y) {
  return {
      .head = objective.head,
      .M = M,
      .D = embedding.D,
      .logits = logits,
      .W_embed = embedding.W,
      .u_y = u_y,
      .eps = eps,
      .y = y,
      .weight =
          objective.weight.data + k * objective.weight.stride_k + i * objective.weight.stride_slice,
      .weight_stride = objective.weight.stride_row,
      .flow = objective.flow,
      .rows = objective.rows,
      .radius = objective.radius,
  };
}

struct HeadOutput {
  float* p;         // panels (M, P): the probabilities, or the logits of the linear head
  float* u_hat;     // panels (D, P); may be p where W_embed is null
  float* d_u_hat;   // panels (D, P)
  float* d_r;       // panels (M, P): d_r / radius^2 of the radial head
  float* error;     // (padded,)
  float* d_logits;  // panels (M, P)
};

// out (rows, P) = a (rows, K) times b (K, P), element (r, k) of a at a[r * a_row + k * a_k]. The
// matrices are small, so tiles of one width suffice.
inline void multiply_panels(float* out, const float* a, int64_t a_row, int64_t a_k, const float* b,
                            int64_t rows, int64_t K, const Panels& panels) {
  for_row_tiles<1>(0, rows, [&](auto tile_rows, int64_t r) {
    constexpr int ROWS = decltype(tile_rows)::value;
    for (int64_t g = 0; g < panels.vectors(); ++g) {
      Vec c[ROWS][1] = {};
      multiply_tile(c, a + r * a_row, a_row, a_k, b + panels.at(K, 0, g), panels.P, K);
      for_tile<ROWS, 1>([&](int i, int) { store(out + panels.at(rows, r + i, g), c[i][0]); });
    }
  });
}

// p = softmax(logits); largest = max(logits), and log(sum) = log sum exp(logits) - largest
NOPROP_INLINE void softmax(float* p, const float* logits, int64_t M, int64_t g,
                           const Panels& panels, Vec& largest, Vec& sum) {
  largest = load(logits + panels.at(M, 0, g));
  for (int64_t m = 1; m < M; ++m) largest = max(largest, load(logits + panels.at(M, m, g)));
  sum = Vec{};
  for (int64_t m = 0; m < M; ++m) {
    const Vec e = exp(load(logits + panels.at(M, m, g)) - largest);
    store(p + panels.at(M, m, g), e);
    sum += e;
  }
  for (int64_t m = 0; m < M; ++m) {
    float* at = p + panels.at(M, m, g);
    store(at, load(at) / sum);
  }
}

// computes p and u_hat alone
inline void head_estimate(float* p, float* u_hat, int32_t head, const float* logits,
                          const float* W_embed, int64_t M, int64_t D, const Panels& panels) {
  if (head == NOPROP_LINEAR) {
    __builtin_memcpy(p, logits, sizeof(float) * M * panels.padded());
  } else {
    Vec largest, sum;
    for (int64_t g = 0; g < panels.vectors(); ++g) softmax(p, logits, M, g, panels, largest, sum);
  }
  if (W_embed) {
    multiply_panels(u_hat, W_embed, 1, D, p, D, M, panels);
  } else if (u_hat != p) {
    __builtin_memcpy(u_hat, p, sizeof(float) * M * panels.padded());
  }
}

// Errors of -log softmax(scores)[y], and factor times d_scores. p is the softmax, and may be
// d_scores.
inline void cross_entropy(float* p, float* d_scores, float* error, const float* scores,
                          double factor, const HeadInput& in, const Panels& panels) {
  const int64_t M = in.M;
  for (int64_t g = 0; g < panels.vectors(); ++g) {
    Vec largest, sum;
    softmax(p, scores, M, g, panels, largest, sum);
    const Vec scale =
        per_row(in.weight, in.weight_stride, g, panels) * (float)(factor / (double)in.rows);
    IntVec y;
    __builtin_memcpy(&y, in.y + g * kLanes, sizeof y);
    Vec chosen = {};
    for (int64_t m = 0; m < M; ++m) {
      const int64_t at = panels.at(M, m, g);
      const IntVec is_y = y == (int32_t)m;
      chosen = is_y ? load(scores + at) : chosen;
      const Vec p_m = load(p + at);
      const Vec d = (is_y ? p_m - 1.0f : p_m) * scale;
      store(d_scores + at, keep_first(d, panels.B - g * kLanes));
    }
    // sum * 0 carries a NaN that log loses
    store(error + g * kLanes, (log(sum) + sum * 0.0f) - (chosen - largest));
  }
}

// d_logits from d_u_hat
inline void estimate_grad(const HeadInput& in, const HeadOutput& out, const Panels& panels) {
  const int64_t M = in.M, D = in.D;
  const float* d_p = out.d_u_hat;
  if (in.W_embed) {
    multiply_panels(out.d_logits, in.W_embed, D, 1, out.d_u_hat, M, D, panels);
    d_p = out.d_logits;
  }
  for (int64_t g = 0; g < panels.vectors(); ++g) {
    Vec dot = {};
    if (in.head != NOPROP_LINEAR)
      for (int64_t m = 0; m < M; ++m) {
        const int64_t at = panels.at(M, m, g);
        dot += load(out.p + at) * load(d_p + at);
      }
    for (int64_t m = 0; m < M; ++m) {
      const int64_t at = panels.at(M, m, g);
      const Vec d = load(d_p + at);
      store(out.d_logits + at, in.head != NOPROP_LINEAR ? load(out.p + at) * (d - dot) : d);
    }
  }
}

inline void denoising(const HeadInput& in, const HeadOutput& out, const Panels& panels) {
  const int64_t M = in.M, D = in.D;
  head_estimate(out.p, out.u_hat, in.head, in.logits, in.W_embed, M, D, panels);
  for (int64_t g = 0; g < panels.vectors(); ++g) {
    const Vec scale =
        per_row(in.weight, in.weight_stride, g, panels) * (float)(2.0 / (double)in.rows);
    Vec error = {};
    for (int64_t d = 0; d < D; ++d) {
      const int64_t at = panels.at(D, d, g);
      Vec target = load(in.u_y + at);
      if (in.flow != 0) target -= load(in.eps + at) * in.flow;
      const Vec difference = load(out.u_hat + at) - target;
      error += difference * difference;
      store(out.d_u_hat + at, keep_first(difference * scale, panels.B - g * kLanes));
    }
    store(out.error + g * kLanes, error);
  }
  estimate_grad(in, out, panels);
}

// r_m = factor |u_hat - u_m|^2, panels (M, P). Probabilities see r's absolute error, so that the
// sum over D is formed in pieces of about sqrt(D) terms, which are added from the left.
inline void squared_distances(float* r, float factor, const float* u_hat, const float* W_embed,
                              int64_t M, int64_t D, const Panels& panels) {
  int64_t piece = 4;
  while (piece * piece < D) piece *= 2;
  for_row_tiles<1>(0, M, [&](auto tile_rows, int64_t m) {
    constexpr int ROWS = decltype(tile_rows)::value;
    for (int64_t g = 0; g < panels.vectors(); ++g) {
      Vec total[ROWS] = {};
      for (int64_t first = 0; first < D; first += piece) {
        const int64_t last = D - first < piece ? D : first + piece;
        Vec c[ROWS][1] = {};
        for (int64_t d = first; d < last; ++d) {
          const Vec u = load(u_hat + panels.at(D, d, g));
          for_tile<ROWS, 1>([&](int i, int) {
            const Vec difference = u - W_embed[(m + i) * D + d];
            c[i][0] += difference * difference;
          });
        }
        for_tile<ROWS, 1>([&](int i, int) { total[i] += c[i][0]; });
      }
      for_tile<ROWS, 1>([&](int i, int) { store(r + panels.at(M, m + i, g), total[i] * factor); });
    }
  });
}

inline void radial(const HeadInput& in, const HeadOutput& out, const Panels& panels) {
  const int64_t M = in.M, D = in.D, size = M * panels.padded();
  const double factor = 1.0 / ((double)in.radius * in.radius);
  head_estimate(out.p, out.u_hat, in.head, in.logits, in.W_embed, M, D, panels);
  float* r = out.d_logits;  // up to what all classes of a row share
  if (in.W_embed)
    squared_distances(r, (float)(-0.5 * factor), out.u_hat, in.W_embed, M, D, panels);
  else
    for (int64_t at = 0; at < size; at += kLanes) store(r + at, load(out.p + at) * (float)factor);
  cross_entropy(out.d_r, out.d_r, out.error, r, factor, in, panels);
  if (in.W_embed)
    multiply_panels(out.d_u_hat, in.W_embed, 1, D, out.d_r, D, M, panels);
  else
    __builtin_memcpy(out.d_u_hat, out.d_r, sizeof(float) * size);
  estimate_grad(in, out, panels);
}

// errors and d_logits; returns the loss, sum over rows of weight * error / rows
inline float head_step(const HeadInput& in, const HeadOutput& out, const Panels& panels) {
  if (in.head == NOPROP_CROSS_ENTROPY)
    cross_entropy(out.p, out.d_logits, out.error, in.logits, 1.0, in, panels);
  else if (in.head == NOPROP_RADIAL)
    radial(in, out, panels);
  else
    denoising(in, out, panels);
  const float sum = sum_rows(panels, 1, 0, [&](int64_t at, int64_t g) {
    const Vec weighted = load(out.error + at) * per_row(in.weight, in.weight_stride, g, panels);
    return keep_first(weighted, panels.B - g * kLanes);
  });
  return sum / (float)in.rows;
}

// A chunk of rows of panels (width, P), in the order of a strip's: cols * kLanes floats each, from
// feature f on. value(at, g) is a vector of the panels.
template <class Value>
NOPROP_INLINE void chunk_to_rows(float* rows, int64_t width, int64_t f, int cols, Range vectors,
                                 const Panels& panels, Value value) {
  for (int64_t g = vectors.first; g < vectors.last; ++g)
    for (int j = 0; j < cols; ++j) {
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t feature = f + j * kLanes + i;
        square[i] = feature < width ? value(panels.at(width, feature, g), g) : Vec{};
      }
      transpose(square);
      store_square<false>(rows + j * kLanes, square, g - vectors.first, cols,
                          panels.B - vectors.first * kLanes);
    }
}

// c += factors^T @ rows over the rows of a chunk; factors are rows m .. of panels (M, P)
template <int ROWS, int COLS>
NOPROP_INLINE void add_chunk(Vec (&c)[ROWS][COLS], const float* factors, int64_t M, int64_t m,
                             const float* rows, Range vectors, const Panels& panels) {
  for (int64_t g = vectors.first; g < vectors.last; ++g, rows += kLanes * COLS * kLanes) {
    const int64_t left = panels.B - g * kLanes;
    multiply_tile(c, factors + panels.at(M, m, g), panels.P, 1, rows, COLS * kLanes,
                  left < kLanes ? left : kLanes);
  }
}

// floats of the workspace of embedding_grad: d_u_hat, u_hat and what reaches the label's row
constexpr int64_t kEmbeddingRows = 3 * kChunk * kStrip;

// d_W_embed (M, D): p^T @ d_u_hat through u_hat; of the radial head d_r (u_hat - u_m) / radius^2
// through the distances; and to the label's row -d_u_hat through the target and signal * d_z
// through z. d_z is null if z has features of the caller's.
inline void embedding_grad(float* d_W, float* workspace, const HeadInput& in, const HeadOutput& out,
                           const float* d_z, const float* signal, int64_t signal_stride,
                           const Panels& panels) {
  const int64_t M = in.M, D = in.D, B = panels.B;
  const bool estimates = in.head != NOPROP_CROSS_ENTROPY, radial = in.head == NOPROP_RADIAL;
  const bool targets = estimates && !radial;
  float *d_u_hat = workspace, *u_hat = d_u_hat + kChunk * kStrip, *label = u_hat + kChunk * kStrip;
  for (int64_t row = 0; row < B; row += kChunk) {
    const int64_t end = B - row < kChunk ? B : row + kChunk;
    const Range vectors = {row / kLanes, (end + kLanes - 1) / kLanes};
    Vec signals[kChunkVectors];
    for (int64_t g = vectors.first; g < vectors.last; ++g)
      signals[g - vectors.first] = per_row(signal, signal_stride, g, panels);
    for_strips(D, [&](int64_t f, int cols) {
      if (estimates)
        chunk_to_rows(d_u_hat, D, f, cols, vectors, panels,
                      [&](int64_t at, int64_t) { return load(out.d_u_hat + at); });
      if (radial)
        chunk_to_rows(u_hat, D, f, cols, vectors, panels,
                      [&](int64_t at, int64_t) { return load(out.u_hat + at); });
      if (targets || d_z)
        chunk_to_rows(label, D, f, cols, vectors, panels, [&](int64_t at, int64_t g) {
          Vec sum = {};
          if (d_z) sum = load(d_z + at) * signals[g - vectors.first];
          return targets ? sum - load(out.d_u_hat + at) : sum;
        });
      const int64_t columns = D - f < cols * kLanes ? D - f : cols * kLanes;
      with_cols(cols, [&](auto width) {
        constexpr int COLS = decltype(width)::value;
        for_row_tiles<COLS>(0, M, [&](auto tile_rows, int64_t m) {
          constexpr int ROWS = decltype(tile_rows)::value;
          Vec c[ROWS][COLS] = {};
          if (estimates) add_chunk(c, out.p, M, m, d_u_hat, vectors, panels);
          if (radial) add_chunk(c, out.d_r, M, m, u_hat, vectors, panels);
          float tile[ROWS][COLS * kLanes];
          for_tile<ROWS, COLS>([&](int i, int j) { store(tile[i] + j * kLanes, c[i][j]); });
          for (int64_t b = row; (targets || d_z) && b < end; ++b) {
            const int64_t i = in.y[b] - m;
            if (i < 0 || i >= ROWS) continue;
            const float* from = label + (b - row) * COLS * kLanes;
            for (int j = 0; j < COLS * kLanes; j += kLanes)
              store(tile[i] + j, load(tile[i] + j) + load(from + j));
          }
          for (int i = 0; i < ROWS; ++i) {
            float* to = d_W + (m + i) * D + f;
            for (int64_t d = 0; d < columns; ++d) to[d] = row ? to[d] + tile[i][d] : tile[i][d];
          }
        });
      });
    });
  }
  for (int64_t m = 0; radial && m < M; ++m) {
    const float sum =
        sum_rows(panels, M, m, [&](int64_t at, int64_t) { return load(out.d_r + at); });
    if (!in.W_embed) d_W[m * D + m] -= sum;
    for (int64_t d = 0; in.W_embed && d < D; ++d) d_W[m * D + d] -= sum * in.W_embed[m * D + d];
  }
}

}  // namespace
}  // namespace noprop
