// The noise levels of a CT whose gamma is learned, at the t of a step's rows, and the gradient of
// its parameters: the closed forms between gamma's network and a training step.
//
//   gbar  = (net(t) - net(0)) / (net(1) - net(0)),  gamma = gamma_0 + spread (1 - gbar)
//   spread = softplus(delta),  gamma_1 = gamma_0 + spread,  alpha_bar = sigmoid(-gamma)
//   signal = sqrt(alpha_bar),  noise = sqrt(1 - alpha_bar),  SNR' = -gamma' exp(-gamma)
//   prior  = 1/2 (ab_0 |u|^2 - D ab_0 - D log(1 - ab_0)),  ab_0 = alpha_bar at gamma_1
#pragma once

#include "cpu/isa.h"
#include "cpu/kernels/gamma.h"
#include "cpu/kernels/saved.h"

namespace noprop {
namespace {

inline int64_t padded_doubles(int64_t count) {
  return (count + kDoubles - 1) / kDoubles * kDoubles;
}

inline GammaUnits take_units(Pieces& pieces, int64_t count) {
  const int64_t padded = padded_doubles(count);
  GammaUnits units = {};
  units.a = pieces.take<double>(padded);
  units.b = pieces.take<double>(padded);
  units.c = pieces.take<double>(padded);
  units.count = count;
  return units;
}

inline int64_t levels_bytes(int64_t hidden) {
  Pieces counted = {nullptr};
  take_units(counted, hidden);
  return counted.used;
}

// a vector of rows: gbar and its slope, and what follows from them
struct LevelsVec {
  DoubleVec gbar, gbar_slope, gamma, slope, signal, noise, snr;
};

NOPROP_INLINE LevelsVec levels_vec(DoubleVec net, DoubleVec net_slope, const double* ends,
                                   double gamma_0, double spread) {
  const double rise = ends[1] - ends[0];
  LevelsVec made;
  made.gbar = (net - ends[0]) / rise;
  made.gbar_slope = net_slope / rise;
  made.gamma = (1.0 - made.gbar) * spread + gamma_0;
  made.slope = -(made.gbar_slope * spread);
  made.signal = sqrt(sigmoid(-made.gamma));
  made.noise = sqrt(sigmoid(made.gamma));
  made.snr = exp(-made.gamma);
  return made;
}

// of rows first .. first + rows of replica r; the first rows' task also has those at the ends
inline void levels_rows(const LevelsTask& task, int64_t r, int64_t first, int64_t rows,
                        char* workspace) {
  const NopropGamma& gamma = *task.gamma;
  const NopropWeighting& weighting = *task.weighting;
  const NopropLevels& out = *task.out;
  Pieces pieces = {workspace};
  const GammaUnits units = take_units(pieces, gamma.hidden);
  make_units(units, gamma, r, 0);
  const double at_ends[2] = {0, 1};
  double ends[2], slopes[2];
  gamma_net(ends, slopes, at_ends, 2, units);
  const double gamma_0 = (double)gamma.gamma_0[r], spread = softplus_of(gamma.delta[r]);

  const int64_t at = r * task.B + first;
  double* const net = out.net + r * (task.B + 2) + first;
  gamma_net(net, out.net_slope + at, task.t + at, rows, units);
  for (int64_t i = 0; i < rows; i += kDoubles) {
    const int64_t rest = rows - i;
    const LevelsVec levels =
        levels_vec(load_doubles(net + i, rest), load_doubles(out.net_slope + at + i, rest), ends,
                   gamma_0, spread);
    store_floats(out.signal + at + i, levels.signal, rest);
    store_floats(out.noise + at + i, levels.noise, rest);
    DoubleVec weight = DoubleVec{} + 1.0;
    if (weighting.kind == NOPROP_SNR) weight = -levels.slope * levels.snr;
    if (weighting.kind == NOPROP_MIN_SNR)
      weight =
          levels.snr > DoubleVec{} + weighting.most ? DoubleVec{} + weighting.most : levels.snr;
    store_floats(out.weight + at + i, weight * weighting.scale, rest);
  }
  if (first != 0) return;
  __builtin_memcpy(out.net + r * (task.B + 2) + task.B, ends, sizeof ends);
  const DoubleVec last = DoubleVec{} + gamma_0, start = last + spread;
  store_floats(out.last_signal + r, sqrt(sigmoid(-last)), 1);
  store_floats(out.last_noise + r, sqrt(sigmoid(last)), 1);
  const double alpha_bar = sigmoid(-start)[0], D = (double)task.D;
  const DoubleVec below = start < DoubleVec{} ? start : DoubleVec{};
  const double log_rest = (below - log1p(exp(-absolute(start))))[0];  // log(1 - alpha_bar)
  out.alpha_bar_0[r] = alpha_bar;
  out.prior[r] = 0.5 * (alpha_bar * task.u_squared[r] - D * alpha_bar - D * log_rest);
}

inline GammaPoints take_points(Pieces& pieces, int64_t B) {
  const int64_t padded = padded_doubles(B + 2);
  GammaPoints points = {};
  points.x = pieces.take<double>(padded);
  points.d_net = pieces.take<double>(padded);
  points.d_slope = pieces.take<double>(padded);
  points.count = B + 2;
  return points;
}

inline int64_t levels_gradient_bytes(int64_t units, int64_t B) {
  Pieces counted = {nullptr};
  take_units(counted, units);
  take_points(counted, B);
  counted.take<double>(padded_doubles(B));
  counted.take<double>(padded_doubles(B));
  return counted.used;
}

inline double sum_of(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += (double)values[i];
  return sum;
}

// The gradients of units first .. first + count of replica r; the first units' task also has those
// of gamma_0 and delta. Every task forms the points' gradients for itself.
inline void levels_gradient(const LevelsGradientTask& task, int64_t r, int64_t first, int64_t count,
                            char* workspace) {
  const NopropGamma& gamma = *task.gamma;
  const NopropWeighting& weighting = *task.weighting;
  const NopropLevelsGrads& given = *task.given;
  const int64_t B = task.B, at = r * B;
  Pieces pieces = {workspace};
  const GammaUnits units = take_units(pieces, count);
  const GammaPoints points = take_points(pieces, B);
  double* const gbar = pieces.take<double>(padded_doubles(B));
  double* const gbar_slope = pieces.take<double>(padded_doubles(B));
  const double* const net = task.net + r * (B + 2);
  const double* const ends = net + B;
  const double gamma_0 = (double)gamma.gamma_0[r], spread = softplus_of(gamma.delta[r]);

  // at first d_net is the gradient in gamma, and d_slope that in its slope
  for (int64_t i = 0; i < B; i += kDoubles) {
    const int64_t rest = B - i;
    const LevelsVec levels =
        levels_vec(load_doubles(net + i, rest), load_doubles(task.net_slope + at + i, rest), ends,
                   gamma_0, spread);
    const DoubleVec d_signal = load_floats(given.d_signal + at + i, rest);
    const DoubleVec d_noise = load_floats(given.d_noise + at + i, rest);
    const DoubleVec d_weight = load_floats(given.d_weight + at + i, rest) * weighting.scale;
    const DoubleVec s = levels.signal, n = levels.noise;
    DoubleVec d_gamma = (d_noise * s - d_signal * n) * (s * n) * 0.5, d_slope = {};
    if (weighting.kind == NOPROP_SNR) {
      d_gamma += d_weight * levels.slope * levels.snr;
      d_slope = -(d_weight * levels.snr);
    }
    if (weighting.kind == NOPROP_MIN_SNR)
      d_gamma -= levels.snr > DoubleVec{} + weighting.most ? DoubleVec{} : d_weight * levels.snr;
    store_doubles(points.x + i, load_doubles(task.t + at + i, rest) - 0.5, rest);
    store_doubles(points.d_net + i, d_gamma, rest);
    store_doubles(points.d_slope + i, d_slope, rest);
    store_doubles(gbar + i, levels.gbar, rest);
    store_doubles(gbar_slope + i, levels.gbar_slope, rest);
  }
  // sums over rows, in their order
  double d_gamma_0 = 0, d_spread = 0, d_rise = 0, d_start = 0;
  const double scale = spread / (ends[1] - ends[0]);
  for (int64_t b = 0; b < B; ++b) {
    const double d_gamma = points.d_net[b], d_slope = points.d_slope[b];
    d_gamma_0 += d_gamma;
    d_spread += d_gamma * (1 - gbar[b]) - d_slope * gbar_slope[b];
    d_rise += scale * (d_gamma * gbar[b] + d_slope * gbar_slope[b]);
    d_start += scale * d_gamma;
    points.d_net[b] = -scale * d_gamma;
    points.d_slope[b] = -scale * d_slope;
  }
  points.x[B] = -0.5;  // t = 0 and 1, by which gbar is normalised
  points.x[B + 1] = 0.5;
  points.d_net[B] = d_start - d_rise;
  points.d_net[B + 1] = d_rise;
  points.d_slope[B] = points.d_slope[B + 1] = 0;

  make_units(units, gamma, r, first);
  gamma_net_gradient(*task.out, gamma, r, first, units, points);
  if (first != 0) return;
  // gamma_1 by the prior, gamma_0 by the last level, each a number of the replica
  const DoubleVec last = DoubleVec{} + gamma_0;
  const double alpha_bar = sigmoid(-(last + spread))[0], D = (double)task.D;
  const double of_u = (task.u_squared[r] - D) * (1 - alpha_bar);
  const double d_gamma_1 = -0.5 * alpha_bar * (of_u + D);
  const double s = sqrt(sigmoid(-last))[0], n = sqrt(sigmoid(last))[0];
  const double d_last =
      sum_of(given.d_last_noise + at, B) * s - sum_of(given.d_last_signal + at, B) * n;
  task.out->gamma_0[r] = (float)(d_gamma_0 + d_gamma_1 + 0.5 * d_last * s * n);
  const DoubleVec delta = DoubleVec{} + (double)gamma.delta[r];
  task.out->delta[r] = (float)((d_spread + d_gamma_1) * softplus_gradient(delta)[0]);
}

}  // namespace
}  // namespace noprop
