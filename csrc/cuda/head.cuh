// The head: errors and d_logits of the three heads, and u_hat.
//
//   u_hat   = p @ W_embed,  p = softmax(logits) or logits;   target = u_y - flow * eps
//   d_u_hat = 2 scale (u_hat - target);  d_p = d_u_hat @ W_embed.T
//   d_logits = d_p (linear)  or  p * (d_p - sum over M of p * d_p) (softmax);  scale = weight /
//   rows cross entropy: error = -log p[y],  d_logits = scale * (p - one_hot(y))
//
// All in float32 on unrounded values. A row belongs to the same kRowLanes lanes throughout, which
// own every kRowLanes-th class and column of it, so that a thread may read what it wrote without a
// barrier. Only the products with W_embed cross rows, through shared memory.
#pragma once

#include "cuda/reduce.cuh"

namespace noprop::cuda {

// A product of kRows rows: kHeadDepth of the sum at a time, kHeadAcross columns of the result, of
// which a thread makes 4 rows x 2 columns.
constexpr int kHeadDepth = kRowLanes, kLogRowLanes = 4, kLogHeadAcross = 7,
              kHeadAcross = 1 << kLogHeadAcross;
static_assert(kRowLanes == 1 << kLogRowLanes && kRows == 16 && kThreads == 256);
constexpr int kLeftStride = kRows + 4;         // 16-byte rows, two lanes to a bank
constexpr int kRightStride = kHeadAcross + 2;  // no conflict whether columns or depth go over lanes
constexpr int kStagedStride = kHeadAcross + 16;  // the two rows of a warp in different banks
static_assert(dev::Carve::cost(kHeadDepth * kLeftStride * 4) +
                  dev::Carve::cost(kHeadDepth * kRightStride * 4) +
                  dev::Carve::cost(kRows * kStagedStride * 4) <=
              kScratchBytes);

struct HeadScratch {
  float* s_a;    // (kHeadDepth, kLeftStride): the left operand, transposed
  float* s_b;    // (kHeadDepth, kRightStride)
  float* s_out;  // (kRows, kStagedStride)
};

NOPROP_DEV HeadScratch head_scratch(unsigned char* scratch) {
  dev::Carve carve{scratch};
  HeadScratch s;
  s.s_a = carve.take<float>(kHeadDepth * kLeftStride);
  s.s_b = carve.take<float>(kHeadDepth * kRightStride);
  s.s_out = carve.take<float>(kRows * kStagedStride);
  return s;
}

// the row of a thread
struct HeadRow {
  int in_tile, lane;
  int64_t row;          // of the batch
  bool real;            // it is there
  const float* logits;  // (M,)
  float largest, total;
  bool linear;
};

NOPROP_DEV HeadRow head_row(const Program& p, const float* logits, int M, int tile, bool linear) {
  const int in_tile = tile_row(), in_batch = tile * kRows + in_tile;
  HeadRow r{in_tile, row_lane(), in_batch, in_batch < p.B, nullptr, 0.0f, 1.0f, linear};
  r.logits = logits + (r.real ? r.row * M : 0);
  if (linear) return r;
  float largest = -INFINITY, total = 0.0f;
  for (int m = r.lane; m < M; m += kRowLanes) largest = fmaxf(largest, r.logits[m]);
  r.largest = row_max(largest);
  // a NaN, which the maximum passes over, is in the sum
  for (int m = r.lane; m < M; m += kRowLanes) total += expf(r.logits[m] - r.largest);
  r.total = row_sum(total);
  return r;
}

NOPROP_DEV float p_of(const HeadRow& r, int m) {
  return r.linear ? r.logits[m] : dev::div_rn(expf(r.logits[m] - r.largest), r.total);
}

// s_out[row, c] = sum over depth of a(depth) * W[depth, first + c], depth ascending, c < columns;
// a is of the thread's own row. With `by_column` W (., D) is read as W[first + c, depth]. A thread
// makes one result where there are no more columns than lanes of a row. All threads must call.
template <typename Left>
NOPROP_DEV void multiply_rows(const HeadScratch& s, const HeadRow& r, Left a, const float* W,
                              int depth, int first, int columns, int D, bool by_column) {
  const bool narrow = columns <= kRowLanes;
  const int log_width = narrow ? kLogRowLanes : kLogHeadAcross;
  const int thread = r.in_tile * kRowLanes + r.lane;
  const int rows_at = narrow ? r.in_tile : thread / 64 * 4;
  const int column = narrow ? r.lane : thread % 64;
  float sum[4][2] = {};
  for (int start = 0; start < depth; start += kHeadDepth) {
    const int own = start + r.lane;
    s.s_a[r.lane * kLeftStride + r.in_tile] = own < depth ? a(own) : 0.0f;
    for (int item = thread; item < kHeadDepth << log_width; item += kThreads) {
      const int k = by_column ? item % kHeadDepth : item >> log_width;
      const int c = by_column ? item / kHeadDepth : item & ((1 << log_width) - 1);
      const int64_t place =
          by_column ? int64_t{first + c} * D + start + k : int64_t{start + k} * D + first + c;
      const bool inside = c < columns && start + k < depth;
      s.s_b[k * kRightStride + c] = inside ? W[place] : 0.0f;
    }
    dev::sync_block();
    const float *left = s.s_a + rows_at, *right = s.s_b + column;
    if (narrow) {
#pragma unroll
      for (int k = 0; k < kHeadDepth; ++k) {
        sum[0][0] = dev::fma_rn(left[k * kLeftStride], right[k * kRightStride], sum[0][0]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kHeadDepth; ++k) {
        const auto rows = *reinterpret_cast<const Neighbours<float, 4>*>(left + k * kLeftStride);
        for (int i = 0; i < 4; ++i) {
          for (int j = 0; j < 2; ++j) {
            sum[i][j] = dev::fma_rn(rows.value[i], right[k * kRightStride + 64 * j], sum[i][j]);
          }
        }
      }
    }
    dev::sync_block();
  }
  float* out = s.s_out + rows_at * kStagedStride + column;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (!narrow || i + j == 0) out[i * kStagedStride + 64 * j] = sum[i][j];
    }
  }
  dev::sync_block();
}

// calls visit(d, u_hat[d]) for the columns of the thread's row
template <typename Visit>
NOPROP_DEV void for_u_hat(const HeadScratch& s, const HeadRow& r, const float* W, int M, int D,
                          Visit visit) {
  if (W == nullptr) {
    if (!r.real) return;
    for (int d = r.lane; d < D; d += kRowLanes) visit(d, p_of(r, d));
    return;
  }
  for (int first = 0; first < D; first += kHeadAcross) {
    const int columns = min_of(D - first, kHeadAcross);
    multiply_rows(s, r, [&](int m) { return p_of(r, m); }, W, M, first, columns, D, false);
    if (!r.real) continue;
    for (int c = r.lane; c < columns; c += kRowLanes) {
      visit(first + c, s.s_out[r.in_tile * kStagedStride + c]);
    }
  }
}

NOPROP_DEV void u_hat_tile(const Program& p, const UHatStage& s, const Coord& coord, int tile,
                           unsigned char* scratch) {
  const HeadRow r = head_row(p, at<const float>(s.logits, coord), s.M, tile, s.linear != 0);
  float* u_hat = at<float>(s.u_hat, coord) + r.row * s.D;
  for_u_hat(head_scratch(scratch), r, s.W_embed, s.M, s.D,
            [&](int d, float value) { u_hat[d] = value; });
  dev::sync_block();  // s_out is read to its end
}

// the values that a thread of the head needs beside its row
struct HeadTerms {
  int64_t y;
  float scale;
  float *error, *d_logits;  // of all rows; d_logits may be null
};

NOPROP_DEV void cross_entropy(const HeadStage& s, const HeadRow& r, const HeadTerms& t) {
  if (!r.real) return;
  if (r.lane == 0 && t.error != nullptr) {
    // a logit that is not finite is in the sum, whichever class it has
    t.error[r.row] = logf(r.total) - (r.logits[t.y] - r.largest);
  }
  if (t.d_logits == nullptr) return;
  for (int m = r.lane; m < s.M; m += kRowLanes) {
    t.d_logits[r.row * s.M + m] = t.scale * (p_of(r, m) - static_cast<float>(m == t.y));
  }
}

// error and d_u_hat; all threads must call
NOPROP_DEV void squared_error(const HeadStage& s, const HeadRow& r, const HeadTerms& t,
                              const Coord& coord, const HeadScratch& shared) {
  const float* eps = at<const float>(s.eps, coord);
  float* d_u_hat = at<float>(s.d_u_hat, coord);
  float error = 0.0f;
  for_u_hat(shared, r, s.W_embed, s.M, s.D, [&](int d, float u_hat) {
    const int64_t at_d = r.row * s.D + d;
    float target = s.W_embed == nullptr ? static_cast<float>(d == t.y) : s.W_embed[t.y * s.D + d];
    if (eps != nullptr) target -= s.flow * eps[at_d];
    const float residual = u_hat - target;
    error += residual * residual;
    if (d_u_hat != nullptr) d_u_hat[at_d] = 2 * t.scale * residual;
  });
  error = row_sum(error);
  if (r.real && r.lane == 0 && t.error != nullptr) t.error[r.row] = error;
}

// d_logits and p from d_u_hat, which this thread wrote; all threads must call
NOPROP_DEV void logits_gradient(const HeadStage& s, const HeadRow& r, const HeadTerms& t,
                                const Coord& coord, const HeadScratch& shared) {
  const float* d_u_hat = at<const float>(s.d_u_hat, coord) + r.row * s.D;
  float *d_logits = t.d_logits + r.row * s.M, *p = at<float>(s.p, coord);
  const bool one = s.M <= kRowLanes;  // class of a lane: its numbers stay in registers
  float dot = 0.0f, p_m = 0.0f, d_p = 0.0f;
  const auto take = [&](int m, float value) {
    p_m = p_of(r, m);
    d_p = value;
    dot += p_m * d_p;
    if (p != nullptr) p[r.row * s.M + m] = p_m;
    d_logits[m] = d_p;
  };
  if (s.W_embed == nullptr) {
    for (int m = r.lane; r.real && m < s.M; m += kRowLanes) take(m, d_u_hat[m]);
  } else {
    for (int first = 0; first < s.M; first += kHeadAcross) {
      const int columns = min_of(s.M - first, kHeadAcross);
      multiply_rows(
          shared, r, [&](int d) { return r.real ? d_u_hat[d] : 0.0f; }, s.W_embed, s.D, first,
          columns, s.D, true);
      for (int c = r.lane; r.real && c < columns; c += kRowLanes) {
        take(first + c, shared.s_out[r.in_tile * kStagedStride + c]);
      }
    }
  }
  if (r.linear) return;
  dot = row_sum(dot);
  for (int m = r.lane; r.real && m < s.M; m += kRowLanes) {
    if (!one) {
      p_m = p_of(r, m);
      d_p = d_logits[m];
    }
    d_logits[m] = p_m * (d_p - dot);
  }
}

// if d_logits is there, so must d_u_hat be, except for cross entropy
NOPROP_DEV void head_tile(const Program& p, const HeadStage& s, const Coord& coord, int tile,
                          unsigned char* scratch) {
  const HeadRow r =
      head_row(p, at<const float>(s.logits, coord), s.M, tile, s.head == Head::kLinear);
  HeadTerms t{0, 0.0f, at<float>(s.error, coord), at<float>(s.d_logits, coord)};
  if (r.real) {
    t.y = at<const int64_t>(s.labels, coord)[r.row];
    t.scale = at(s.weight, coord)[r.row * s.weight.stride_row] / s.rows;
  }
  if (s.head == Head::kCrossEntropy) return cross_entropy(s, r, t);
  const HeadScratch shared = head_scratch(scratch);
  squared_error(s, r, t, coord, shared);
  if (t.d_logits != nullptr) logits_gradient(s, r, t, coord, shared);
  dev::sync_block();  // s_out is read to its end
}

}  // namespace noprop::cuda
