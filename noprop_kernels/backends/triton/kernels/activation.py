"""Activations in Triton, each a pair: itself, with what its gradient reads, and the gradient."""

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
FAR = tl.constexpr(16.0)  # from 0: the normal distribution and its density are 0 or 1 in float32


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """(result, what activation_gradient reads); NaN where y is NaN."""
    if ACTIVATION == "relu":
        result = tl.where(y <= 0, 0.0, y)
        return result, result
    elif ACTIVATION == "gelu":
        return tl.where(y < -FAR, 0.0, y * normal_distribution(y)), y
    else:
        return y, y


@triton.jit
def activation_gradient(d_result, kept, ACTIVATION: tl.constexpr):
    """d_y."""
    if ACTIVATION == "relu":
        return tl.where(kept <= 0, 0.0, d_result)
    else:
        tl.static_assert(ACTIVATION == "gelu")
        density = DENSITY_AT_0 * tl.exp(-0.5 * kept * kept)
        change = tl.where(tl.abs(kept) > FAR, 0.0, kept * density)
        return d_result * (normal_distribution(kept) + change)


@triton.jit
def normal_distribution(y):
    """The part of N(0, 1) below y."""
    return 0.5 + 0.5 * tl.erf(y * SQRT_HALF)
