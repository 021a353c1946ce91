// The network of a learned gamma(t), its slope, and the gradient to its parameters, in float64:
//
//   net(t)  = sum of c_j h_j,  h_j = tanh(a_j (t - 1/2) + b_j),  a = softplus(w1), c = softplus(w2)
//   net'(t) = sum of a_j c_j (1 - h_j^2)
//
// Forward, lanes are points t, and a sum ascends over the units j; the gradient has units in lanes,
// and its sums ascend over the points. So each sum is in one order, whatever the lanes and threads.
// The gradient computes h again, which takes less time than to keep it.
#pragma once

#include "cpu/kernels/doubles.h"

namespace noprop {
namespace {

// a, b, c of some units, each array padded to whole vectors
struct GammaUnits {
  double *a, *b, *c;
  int64_t count;
};

// units first .. first + count of replica r
inline void make_units(const GammaUnits& units, const NopropGamma& gamma, int64_t r,
                       int64_t first) {
  const int64_t at = r * gamma.hidden + first;
  for (int64_t j = 0; j < units.count; j += kDoubles) {
    const int64_t rest = units.count - j;
    store_doubles(units.a + j, softplus(load_floats(gamma.w1 + at + j, rest)), kDoubles);
    store_doubles(units.b + j, load_floats(gamma.b1 + at + j, rest), kDoubles);
    store_doubles(units.c + j, softplus(load_floats(gamma.w2 + at + j, rest)), kDoubles);
  }
}

// net and net' at `count` points t
inline void gamma_net(double* net, double* slope, const double* t, int64_t count,
                      const GammaUnits& units) {
  for (int64_t i = 0; i < count; i += kDoubles) {
    const DoubleVec x = load_doubles(t + i, count - i) - 0.5;
    DoubleVec sum = {}, slopes = {};
    for (int64_t j = 0; j < units.count; ++j) {
      const DoubleVec h = tanh(x * units.a[j] + units.b[j]);
      sum += h * units.c[j];
      slopes += (1.0 - h * h) * (units.a[j] * units.c[j]);
    }
    store_doubles(net + i, sum, count - i);
    store_doubles(slope + i, slopes, count - i);
  }
}

// the points of a gradient: t - 1/2, and the loss' gradient in net and net'
struct GammaPoints {
  double *x, *d_net, *d_slope;
  int64_t count;
};

// gradients of w1, b1, w2 of the units, which begin at unit `first` of replica r
inline void gamma_net_gradient(const NopropGammaGrads& out, const NopropGamma& gamma, int64_t r,
                               int64_t first, const GammaUnits& units, const GammaPoints& points) {
  const int64_t at = r * gamma.hidden + first;
  for (int64_t j = 0; j < units.count; j += kDoubles) {
    const DoubleVec a = load_doubles(units.a + j, kDoubles),
                    b = load_doubles(units.b + j, kDoubles);
    const DoubleVec c = load_doubles(units.c + j, kDoubles), twice_a = a * 2.0;
    DoubleVec of_h = {}, of_slope = {}, of_b = {}, of_x = {};
    for (int64_t i = 0; i < points.count; ++i) {
      const double x = points.x[i], d_net = points.d_net[i], d_slope = points.d_slope[i];
      const DoubleVec h = tanh(a * x + b), rest = 1.0 - h * h;
      of_h += h * d_net;
      of_slope += rest * d_slope;
      // of the argument of tanh, divided by c: (1 - h^2)' = -2 h (1 - h^2)
      const DoubleVec pull = rest * (d_net - h * twice_a * d_slope);
      of_b += pull;
      of_x += pull * x;
    }
    const int64_t left = units.count - j;
    const DoubleVec w1 = load_floats(gamma.w1 + at + j, left);
    const DoubleVec w2 = load_floats(gamma.w2 + at + j, left);
    store_floats(out.w1 + at + j, c * (of_x + of_slope) * softplus_gradient(w1), left);
    store_floats(out.b1 + at + j, c * of_b, left);
    store_floats(out.w2 + at + j, (of_h + a * of_slope) * softplus_gradient(w2), left);
  }
}

}  // namespace
}  // namespace noprop
