// The head computes u_hat from logits, the rows' errors, their weighted sum, and d_logits. Rows are
// side by side in lanes.
//
//   softmax        u_hat = softmax(logits) @ W_embed      d_logits = p (d_p - sum p d_p)
//   linear         u_hat = logits @ W_embed               d_logits = d_p
//   cross-entropy  error = -log softmax(logits)[y]        d_logits = (p - onehot(y)) weight / rows
// with d_u_hat = 2 weight / rows (u_hat - target) and d_p = d_u_hat @ W_embed^T. One-hot embeddings
// need no product.
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
  };
}

struct HeadOutput {
  float* p;         // panels (M, P): the probabilities, or the logits of the linear head
  float* u_hat;     // panels (D, P); may be p where W_embed is null
  float* d_u_hat;   // panels (D, P)
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

inline void cross_entropy(const HeadInput& in, const HeadOutput& out, const Panels& panels) {
  const int64_t M = in.M;
  for (int64_t g = 0; g < panels.vectors(); ++g) {
    Vec largest, sum;
    softmax(out.p, in.logits, M, g, panels, largest, sum);
    const Vec scale =
        per_row(in.weight, in.weight_stride, g, panels) * (float)(1.0 / (double)in.rows);
    IntVec y;
    __builtin_memcpy(&y, in.y + g * kLanes, sizeof y);
    Vec chosen = {};
    for (int64_t m = 0; m < M; ++m) {
      const IntVec is_y = y == (int32_t)m;
      chosen = is_y ? load(in.logits + panels.at(M, m, g)) : chosen;
      const Vec p = load(out.p + panels.at(M, m, g));
      const Vec d = (is_y ? p - 1.0f : p) * scale;
      store(out.d_logits + panels.at(M, m, g), keep_first(d, panels.B - g * kLanes));
    }
    // sum * 0 carries a NaN that log loses
    store(out.error + g * kLanes, (log(sum) + sum * 0.0f) - (chosen - largest));
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
  const float* d_p = out.d_u_hat;
  if (in.W_embed) {
    multiply_panels(out.d_logits, in.W_embed, D, 1, out.d_u_hat, M, D, panels);
    d_p = out.d_logits;
  }
  for (int64_t g = 0; g < panels.vectors(); ++g) {
    Vec dot = {};
    if (in.head == NOPROP_SOFTMAX)
      for (int64_t m = 0; m < M; ++m) {
        const int64_t at = panels.at(M, m, g);
        dot += load(out.p + at) * load(d_p + at);
      }
    for (int64_t m = 0; m < M; ++m) {
      const int64_t at = panels.at(M, m, g);
      const Vec d = load(d_p + at);
      store(out.d_logits + at, in.head == NOPROP_SOFTMAX ? load(out.p + at) * (d - dot) : d);
    }
  }
}

// errors and d_logits; returns the loss, sum over rows of weight * error / rows
inline float head_step(const HeadInput& in, const HeadOutput& out, const Panels& panels) {
  if (in.head == NOPROP_CROSS_ENTROPY)
    cross_entropy(in, out, panels);
  else
    denoising(in, out, panels);
  const float sum = sum_rows(panels, 1, 0, [&](int64_t at, int64_t g) {
    const Vec weighted = load(out.error + at) * per_row(in.weight, in.weight_stride, g, panels);
    return keep_first(weighted, panels.B - g * kLanes);
  });
  return sum / (float)in.rows;
}

// d_W_embed (M, D) by its three paths: u_hat, the target, and z. d_z is null if z has features of
// the caller's.
inline void embedding_grad(float* d_W, const HeadInput& in, const HeadOutput& out, const float* d_z,
                           const float* signal, int64_t signal_stride, const Panels& panels) {
  const bool denoises = in.head != NOPROP_CROSS_ENTROPY;
  for (int64_t m = 0; m < in.M; ++m)
    for (int64_t d = 0; d < in.D; ++d)
      d_W[m * in.D + d] = sum_rows(panels, in.D, d, [&](int64_t at, int64_t g) {
        IntVec y;
        __builtin_memcpy(&y, in.y + g * kLanes, sizeof y);
        const IntVec is_y = y == (int32_t)m;
        Vec sum = {};
        if (denoises) {
          const Vec d_u_hat = load(out.d_u_hat + at);
          sum = load(out.p + panels.at(in.M, m, g)) * d_u_hat - (is_y ? d_u_hat : Vec{});
        }
        if (d_z) {
          const Vec through_z = load(d_z + at) * per_row(signal, signal_stride, g, panels);
          sum += is_y ? through_z : Vec{};
        }
        return keep_first(sum, panels.B - g * kLanes);
      });
}

}  // namespace
}  // namespace noprop
