// The optimizers, on a run of a parameter and its gradient: torch.optim's formulas, in place, each
// array read and written once. A formula is a struct: `form` makes a step's scalars, `move` takes
// the step. with_formula knows them all.
#pragma once

#include "cpu/kernels/vec.h"

namespace noprop {
namespace {

// the scalars of one update, formed in float64 on the host
struct UpdateScalars {
  int32_t kind;
  bool nesterov;
  float lr, decay, l2, momentum;
  float beta1_rest, beta2, beta2_rest;  // 1 - beta1, beta2, 1 - beta2
  float step_size, root_scale, eps;     // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

// torch.optim.SGD: has_m is a momentum above 0
struct Sgd {
  static constexpr int32_t kKind = NOPROP_SGD;
  static constexpr bool kHasV = false;
  static void form(UpdateScalars& s, const NopropUpdateRule& rule, double lr, double weight_decay,
                   int64_t) {
    s.nesterov = rule.nesterov != 0;
    s.lr = (float)lr;
    s.momentum = (float)rule.momentum;
    s.l2 = (float)weight_decay;
  }
  NOPROP_INLINE static void move(Vec& w, Vec& m, Vec&, Vec g, const UpdateScalars& s, bool has_m) {
    g += w * s.l2;
    if (has_m) {
      m = m * s.momentum + g;
      g = s.nesterov ? m * s.momentum + g : m;
    }
    w -= g * s.lr;
  }
};

// torch.optim.Adam, whose decay is part of the gradient, and AdamW, whose decay is not
template <bool DECOUPLED>
struct Adam {
  static constexpr int32_t kKind = DECOUPLED ? NOPROP_ADAMW : NOPROP_ADAM;
  static constexpr bool kHasV = true;
  static void form(UpdateScalars& s, const NopropUpdateRule& rule, double lr, double weight_decay,
                   int64_t updates) {
    s.l2 = (float)weight_decay;
    s.decay = (float)(1 - lr * weight_decay);
    const double t = (double)(updates + 1);
    // beta^t in float32 would be wrong by 1e-5
    const double rest1 = rule.beta1 > 0 ? -__builtin_expm1(t * __builtin_log(rule.beta1)) : 1.0;
    const double rest2 = rule.beta2 > 0 ? -__builtin_expm1(t * __builtin_log(rule.beta2)) : 1.0;
    s.beta1_rest = (float)(1 - rule.beta1);
    s.beta2 = (float)rule.beta2;
    s.beta2_rest = (float)(1 - rule.beta2);
    s.step_size = (float)(lr / rest1);
    s.root_scale = (float)(1 / __builtin_sqrt(rest2));
    s.eps = (float)rule.eps;
  }
  NOPROP_INLINE static void move(Vec& w, Vec& m, Vec& v, Vec g, const UpdateScalars& s, bool) {
    if (DECOUPLED)
      w *= s.decay;
    else
      g += w * s.l2;
    m += (g - m) * s.beta1_rest;
    v = v * s.beta2 + (g * g) * s.beta2_rest;
    w -= divide_by_root(m, v, s.root_scale, s.eps) * s.step_size;
  }
};

// visit(Formula{}) of an optimizer
template <class Visit>
inline void with_formula(int32_t kind, const Visit& visit) {
  const auto is = [&](auto formula) {
    if (kind != formula.kKind) return false;
    visit(formula);
    return true;
  };
  (void)(is(Adam<true>{}) || is(Adam<false>{}) || is(Sgd{}));
}

inline UpdateScalars make_scalars(const NopropUpdateRule& rule, double lr, double weight_decay,
                                  int64_t updates) {
  UpdateScalars s = {};
  s.kind = rule.kind;
  with_formula(s.kind, [&](auto formula) { formula.form(s, rule, lr, weight_decay, updates); });
  return s;
}

// A sum of x * 0 stays 0 unless some x is infinite or NaN.
inline bool all_finite(const float* x, int64_t count) {
  Vec sums[4] = {};  // which do not wait for one another
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) sums[j] += load(x + i + j * kLanes) * 0.0f;
  for (; i + kLanes <= count; i += kLanes) sums[0] += load(x + i) * 0.0f;
  if (i < count) sums[0] += load_partial(x + i, (int)(count - i)) * 0.0f;
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) == 0;
}

// a parameter's arrays where a run of it begins; m and v null where the optimizer has none
struct Run {
  float *w, *m, *v;
};

// The processor's own prefetch ends at a page, and does not keep up with four arrays. What is ahead
// of a row's end is the next row. LONG: one long run, whose gradient comes from memory too.
template <class Formula, bool LONG>
NOPROP_INLINE void move_rows(const Run& at, int64_t stride, const float* gradient,
                             int64_t gradient_stride, int64_t rows, int64_t count,
                             const UpdateScalars& s) {
  constexpr int64_t kLine = 16, kAhead = LONG ? 128 : 256;  // floats
  const bool has_m = Formula::kHasV || at.m != nullptr;
  for (int64_t row = 0; row < rows; ++row) {
    float *w = at.w + row * stride, *m = at.m + row * stride, *v = at.v + row * stride;
    const float* g = gradient + row * gradient_stride;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      if (kLanes >= kLine || i % kLine == 0) {
        const int64_t ahead = LONG || i + kAhead < count ? i + kAhead : i + kAhead - count + stride;
        __builtin_prefetch(w + ahead);
        if (has_m) __builtin_prefetch(m + ahead);
        if (Formula::kHasV) __builtin_prefetch(v + ahead);
        if (LONG) __builtin_prefetch(g + i + kAhead);
      }
      Vec w_i = load(w + i), m_i = has_m ? load(m + i) : Vec{};
      Vec v_i = Formula::kHasV ? load(v + i) : Vec{};
      Formula::move(w_i, m_i, v_i, load(g + i), s, has_m);
      store(w + i, w_i);
      if (has_m) store(m + i, m_i);
      if (Formula::kHasV) store(v + i, v_i);
    }
    const int rest = (int)(count - i);
    if (rest == 0) continue;
    Vec w_i = load_partial(w + i, rest), m_i = has_m ? load_partial(m + i, rest) : Vec{};
    Vec v_i = Formula::kHasV ? load_partial(v + i, rest) : Vec{};
    Formula::move(w_i, m_i, v_i, load_partial(g + i, rest), s, has_m);
    store_partial(w + i, w_i, rest);
    if (has_m) store_partial(m + i, m_i, rest);
    if (Formula::kHasV) store_partial(v + i, v_i, rest);
  }
}

// `rows` rows of `count` elements, each array's `stride` apart, from their gradient
inline void update_rows(const Run& at, int64_t stride, const float* gradient,
                        int64_t gradient_stride, int64_t rows, int64_t count,
                        const UpdateScalars& s) {
  with_formula(s.kind, [&](auto formula) {
    move_rows<decltype(formula), false>(at, stride, gradient, gradient_stride, rows, count, s);
  });
}

// a whole parameter, or a long part of one
inline void update_run(const Run& at, const float* gradient, int64_t count,
                       const UpdateScalars& s) {
  with_formula(s.kind, [&](auto formula) {
    move_rows<decltype(formula), true>(at, 0, gradient, 0, 1, count, s);
  });
}

}  // namespace
}  // namespace noprop
