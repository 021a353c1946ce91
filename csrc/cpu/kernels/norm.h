// Batch norm over the rows of a batch: x_hat = (y - mean) / sqrt(var + eps), value =
// activation(scale * x_hat + shift) + add. Statistics are merged by (count, mean, M2) per chunk of
// rows, in order (Chan et al. 1983).
#pragma once

#include "cpu/kernels/panels.h"

namespace noprop {
namespace {

struct Moments {
  float mean, var, unbiased_var;
};

inline Moments batch_moments(const float* y, int64_t H, int64_t feature, const Panels& panels) {
  double count = 0, mean = 0, M2 = 0;
  for (int64_t first = 0; first < panels.B; first += kChunk) {
    const int64_t last = first + kChunk < panels.B ? first + kChunk : panels.B;
    const int64_t g_first = first / kLanes, g_last = (last + kLanes - 1) / kLanes;
    const float rows = (float)(last - first);
    Vec sum = {};
    for (int64_t g = g_first; g < g_last; ++g)
      sum += keep_first(load(y + panels.at(H, feature, g)), panels.B - g * kLanes);
    const float chunk_mean = sum_lanes(sum) / rows;
    Vec squares = {};
    for (int64_t g = g_first; g < g_last; ++g) {
      const Vec d =
          keep_first(load(y + panels.at(H, feature, g)) - chunk_mean, panels.B - g * kLanes);
      squares += d * d;
    }
    const double delta = chunk_mean - mean, total = count + rows;
    mean += delta * rows / total;
    M2 += sum_lanes(squares) + delta * delta * count * rows / total;
    count = total;
  }
  return {(float)mean, (float)(M2 / count), (float)(M2 / (count - 1))};
}

struct Norm {
  const float *scale, *shift;               // (H,)
  const float *running_mean, *running_var;  // (H,), used where not training
  float eps;
};

// x_hat holds y on entry. batch_mean, batch_var (unbiased) and rstd are (H,)
inline void norm_forward(float* value, float* activated, float* x_hat, float* batch_mean,
                         float* batch_var, float* rstd, const Norm& norm, const float* add,
                         bool is_relu, bool training, int64_t H, const Panels& panels,
                         const Share& share) {
  const Range own = own_features(panels, share, H);
  for (int64_t o = own.first; o < own.last; ++o) {
    float mean, var;
    if (training) {
      const Moments moments = batch_moments(x_hat, H, o, panels);
      mean = moments.mean;
      // NaN if the batch's variance would make the running one not finite, so that the loss is NaN
      // too
      var = moments.var + (moments.unbiased_var - moments.unbiased_var);
      batch_mean[o] = mean;
      batch_var[o] = moments.unbiased_var;
    } else {
      mean = norm.running_mean[o];
      var = norm.running_var[o];
    }
    rstd[o] = 1.0f / __builtin_sqrtf(var + norm.eps);
    for_vectors(panels, H, o, [&](int64_t at, int64_t) {
      const Vec hat = (load(x_hat + at) - mean) * rstd[o];
      store(x_hat + at, hat);
      Vec y = hat * norm.scale[o] + norm.shift[o];
      if (is_relu) y = relu(y);
      if (activated) store(activated + at, y);
      if (add) y += load(add + at);
      store(value + at, y);
    });
  }
}

// d_out becomes the gradient of y; with batch statistics d_y = scale rstd (d - (d_shift + x_hat
// d_scale) / B)
inline void norm_backward(float* d_out, float* d_scale, float* d_shift, const float* x_hat,
                          const float* rstd, const float* scale, bool training, int64_t H,
                          const Panels& panels, const Share& share) {
  const float per_row = 1.0f / (float)panels.B;
  const Range own = own_features(panels, share, H);
  for (int64_t o = own.first; o < own.last; ++o) {
    d_shift[o] = sum_rows(panels, H, o, [&](int64_t at, int64_t) { return load(d_out + at); });
    d_scale[o] = sum_rows(panels, H, o, [&](int64_t at, int64_t g) {
      return keep_first(load(d_out + at) * load(x_hat + at), panels.B - g * kLanes);
    });
    const float factor = scale[o] * rstd[o];
    for_vectors(panels, H, o, [&](int64_t at, int64_t g) {
      Vec d = load(d_out + at);
      if (training) d -= (load(x_hat + at) * d_scale[o] + d_shift[o]) * per_row;
      store(d_out + at, keep_first(d * factor, panels.B - g * kLanes));
    });
  }
}

inline void move_running(float* running, const float* batch, float momentum, int64_t H) {
  for (int64_t o = 0; o < H; ++o) running[o] = (1.0f - momentum) * running[o] + momentum * batch[o];
}

}  // namespace
}  // namespace noprop
