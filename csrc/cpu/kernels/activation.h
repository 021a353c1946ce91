// Each activation is a pair of functions: itself, and its gradient, which reads the result or the
// pre-activation. ReLU acts while sums are in registers (dense.h, norm.h). An activation with more
// arithmetic would be compiled into each tile there, so it acts afterwards, on the member's
// features in memory.
#pragma once

#include "cpu/kernels/panels.h"

namespace noprop {
namespace {

struct Relu {
  static constexpr bool kNeedsPreactivation = false;

  NOPROP_INLINE static Vec activate(Vec y) { return relu(y); }
  NOPROP_INLINE static Vec gradient(Vec d_result, Vec result) {
    return result <= Vec{} ? Vec{} : d_result;
  }
};

// y Phi(y), Phi the distribution function of N(0, 1), whose density is phi; the derivative is
// Phi(y) + y phi(y). With Q = 1 - Phi both follow from a = |y|, without a difference of near
// numbers in the tail: y Phi(y) = relu(y) - a Q(a).
struct Gelu {
  static constexpr bool kNeedsPreactivation = true;

  struct Tail {
    Vec a, above, density;  // Q(a), phi(a)
  };

  // Q(a) = exp(-a^2 / 2) R(a), where (a + 4) R(a) is smooth in q = (a - 4) / (a + 4): a polynomial
  // of degree 9, fitted to the least relative error on 0 <= a <= 14, is within 8.2e-9 of it. At 14
  // and beyond, exp gives 0. In the tail, half an ulp of a^2 / 2 is the most: a^2 2^-25 of Q.
  // Against float64, GELU is within 1e-7 max(1, |y|) and its derivative within 2.2e-7. NaN stays.
  NOPROP_INLINE static Tail tail(Vec y) {
    const Vec far = broadcast(14.0f), size = y < Vec{} ? -y : y;
    const Vec a = size > far ? far : size;
    const Vec inverse = broadcast(1.0f) / (a + 4.0f);
    const Vec q = broadcast(1.0f) - inverse * 8.0f;
    Vec p = broadcast(-1.2952831e-4f);
    p = p * q + 1.8462993e-4f;
    p = p * q + 1.5718588e-3f;
    p = p * q - 3.5149825e-3f;
    p = p * q - 7.5267269e-3f;
    p = p * q + 6.0404144e-2f;
    p = p * q - 1.8652320e-1f;
    p = p * q + 3.8713688e-1f;
    p = p * q - 6.0789663e-1f;
    p = p * q + 7.5528514e-1f;
    const Vec e = exp(a * a * -0.5f);
    return {a, e * inverse * p, e * 0.39894228f};
  }

  NOPROP_INLINE static Vec activate(Vec y) {
    const Tail tail = Gelu::tail(y);
    return relu(y) - tail.a * tail.above;
  }
  NOPROP_INLINE static Vec gradient(Vec d_result, Vec y) {
    const Tail tail = Gelu::tail(y);
    const Vec part = tail.a * tail.density;
    return d_result * (y < Vec{} ? tail.above - part : broadcast(1.0f) - tail.above + part);
  }
};

// body(pair of functions); there is an activation
template <class Body>
NOPROP_INLINE auto with_activation(int32_t activation, Body body) {
  return activation == NOPROP_RELU ? body(Relu{}) : body(Gelu{});
}

inline bool needs_preactivation(int32_t activation) {
  return with_activation(activation, [](auto pair) { return pair.kNeedsPreactivation; });
}

// value = activation + add for own features, panels (H, P). `kept` holds pre-activations on entry,
// and the gradient's operand afterwards. It may be `value` if nothing is added.
inline void activate(float* value, float* kept, const float* add, int32_t activation, int64_t H,
                     const Panels& panels, const Share& share) {
  with_activation(activation, [&](auto pair) {
    for_own_runs(panels, share, H, [&](int64_t at, int64_t count) {
      for (int64_t i = at; i < at + count; i += kLanes) {
        const Vec result = pair.activate(load(kept + i));
        if (!pair.kNeedsPreactivation) store(kept + i, result);
        store(value + i, add ? result + load(add + i) : result);
      }
    });
  });
}

// d_out becomes the gradient of the pre-activation
inline void activation_grad(float* d_out, const float* kept, int32_t activation, int64_t H,
                            const Panels& panels, const Share& share) {
  with_activation(activation, [&](auto pair) {
    for_own_runs(panels, share, H, [&](int64_t at, int64_t count) {
      for (int64_t i = at; i < at + count; i += kLanes)
        store(d_out + i, pair.gradient(load(d_out + i), load(kept + i)));
    });
  });
}

}  // namespace
}  // namespace noprop
