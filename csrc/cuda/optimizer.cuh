// The optimizers: the rates of a slice's update, from the host's values and the count of updates,
// and the update of several entries of a parameter at once.
//
//     SGD:   g += wd * param;  m = momentum * m + g;  param -= lr * (m, or g + momentum * m)
//     Adam:  g += wd * param;  AdamW: param *= 1 - lr * wd;  then both
//            m += (1 - beta_1) (g - m);  v = beta_2 * v + (1 - beta_2) g^2
//            param -= lr / c_1 * m / (sqrt(v) / sqrt(c_2) + eps),  c_i = 1 - beta_i^updates
//
// Quotients and roots are rounded to nearest by the steps that div_rn and sqrt_rn take for ordinary
// operands, without their branches. So a thread's entries are computed side by side, not one by
// one.
#pragma once

#include "cuda/coord.cuh"

namespace noprop::cuda {

// a / b; of a smaller than 2^-100 the last bit may differ
NOPROP_DEV float quotient(float a, float b) {
  float r = dev::rcp_approx(b);
  const float first = a * r;  // right where b is 0 or infinite, or the quotient is
  r = dev::fma_rn(dev::fma_rn(-b, r, 1.0f), r, r);
  float q = a * r;
  q = dev::fma_rn(dev::fma_rn(-b, q, a), r, q);
  q = dev::fma_rn(dev::fma_rn(-b, q, a), r, q);
  return fabsf(q) < INFINITY ? q : first;
}

// the root of a v that is not negative
NOPROP_DEV float root(float v) {
  const bool small = v < 1.0f;
  const float x = small ? v * 0x1p64f : v;  // else a residual could be too small for a float
  const float y = dev::rsqrt_approx(fmaxf(x, 0x1p-86f));
  const float s = x * y;
  const float exact = dev::fma_rn(dev::fma_rn(-s, s, x), 0.5f * y, s);
  if (!(v < INFINITY)) return v;
  return small ? exact * 0x1p-32f : exact;
}

// the values that a slice's loss stage leaves for its update
struct Rates {
  float lr, decay, root;  // lr / c_1; weight decay, of AdamW 1 - lr * weight decay; sqrt(c_2)
  bool moves;
};

// The rates follow from lr, weight decay and the count of updates; they are formed in float64 and
// rounded once. Whether the step applies is not known yet.
NOPROP_DEV Rates rates_of(const Hyper& hyper, double lr, double weight_decay, int64_t updates) {
  Rates rates{static_cast<float>(lr), static_cast<float>(weight_decay), 1.0f, false};
  if (hyper.rule == UpdateRule::kAdamW) rates.decay = static_cast<float>(1.0 - lr * weight_decay);
  if (hyper.rule == UpdateRule::kAdam || hyper.rule == UpdateRule::kAdamW) {
    const double count = static_cast<double>(updates);
    rates.lr = static_cast<float>(lr / -expm1(count * hyper.log_beta_1));
    rates.root = static_cast<float>(sqrt(-expm1(count * hyper.log_beta_2)));
  }
  return rates;
}

NOPROP_DEV Rates load_rates(const Program& p, const Buffer& buffer, const Coord& coord) {
  if (p.hyper.rule == UpdateRule::kNone) return {0.0f, 0.0f, 1.0f, false};
  const float* from = at<const float>(buffer, coord);
  return {from[0], from[1], from[2], from[3] != 0.0f};
}

// N entries w with moments m and v; moments that the rule does not use are left alone; g is lost
template <int N>
NOPROP_DEV void step(const Hyper& h, const Rates& rates, float (&g)[N], float (&w)[N],
                     float (&m)[N], float (&v)[N]) {
  if (h.rule == UpdateRule::kAdamW) {
#pragma unroll
    for (int e = 0; e < N; ++e) w[e] *= rates.decay;
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) g[e] += rates.decay * w[e];
  }
  if (moments(h.rule) == 2) {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      m[e] += h.one_less_beta_1 * (g[e] - m[e]);
      v[e] = h.beta_2 * v[e] + h.one_less_beta_2 * (g[e] * g[e]);
      w[e] -= quotient(rates.lr * m[e], quotient(root(v[e]), rates.root) + h.eps);
    }
  } else if (moments(h.rule) == 1) {
    const bool nesterov = h.rule == UpdateRule::kNesterov;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      m[e] = h.momentum * m[e] + g[e];
      w[e] -= rates.lr * (nesterov ? g[e] + h.momentum * m[e] : m[e]);
    }
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) w[e] -= rates.lr * g[e];
  }
}

}  // namespace noprop::cuda
