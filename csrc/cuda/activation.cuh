// Each activation is a pair of functions: itself, which also returns the gradient's operand, and
// the gradient.
#pragma once

#include "cuda/dev.h"
#include "cuda/program.h"

namespace noprop::cuda {

struct Activated {
  float result, kept;  // kept: the gradient's operand
};

struct Identity {
  NOPROP_DEV static Activated activate(float y) { return {y, y}; }
  NOPROP_DEV static float gradient(float d_result, float) { return d_result; }
};

// max(y, 0), and NaN if y is NaN
struct Relu {
  NOPROP_DEV static Activated activate(float y) {
    const float result = y <= 0.0f ? 0.0f : y;
    return {result, result};
  }
  NOPROP_DEV static float gradient(float d_result, float result) {
    return result <= 0.0f ? 0.0f : d_result;
  }
};

// y Phi(y), Phi the normal distribution function; its derivative is Phi(y) + y exp(-y^2 / 2) /
// sqrt(2 pi)
struct Gelu {
  static constexpr float kFar = 16.0f;  // from 0: Phi and the density are 0 or 1 in float32

  NOPROP_DEV static float distribution(float y) { return 0.5f + 0.5f * erff(y * 0.70710678f); }
  NOPROP_DEV static Activated activate(float y) {
    return {y < -kFar ? 0.0f : y * distribution(y), y};
  }
  NOPROP_DEV static float gradient(float d_result, float y) {
    const float change = y * (0.39894228f * expf(-0.5f * y * y));
    return d_result * (distribution(y) + (y < -kFar || y > kFar ? 0.0f : change));
  }
};

// body(pair of functions)
template <class Body>
NOPROP_DEV void with_activation(Activation activation, Body body) {
  if (activation == Activation::kRelu) return body(Relu{});
  if (activation == Activation::kGelu) return body(Gelu{});
  return body(Identity{});
}

}  // namespace noprop::cuda
