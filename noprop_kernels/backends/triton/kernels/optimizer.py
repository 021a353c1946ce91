"""The optimizers in Triton: what a slice's step takes from the host and the count of updates, and
the step itself.

    SGD:   g += wd * param;  m = momentum * m + g;  param -= lr * (m, or g + momentum * m)
    Adam:  g += wd * param;  AdamW: param *= 1 - lr * wd;  then both
           m += (1 - beta_1) (g - m);  v = beta_2 * v + (1 - beta_2) g^2
           param -= lr / c_1 * m / (sqrt(v) / sqrt(c_2) + eps),  c_i = 1 - beta_i^updates

`hyper` is (momentum, 1 - beta_1, beta_2, 1 - beta_2, eps).
"""

import triton
import triton.language as tl


@triton.jit
def rates_of(
    lr, wd, updates, RULE: tl.constexpr, LOG_BETA_1: tl.constexpr, LOG_BETA_2: tl.constexpr
):
    """What depends on lr, wd or updates, in float64: lr / c_1; wd, of AdamW 1 - lr * wd; sqrt(c_2).

    `updates` counts this one.
    """
    decay = wd
    root = tl.full((), 1.0, tl.float64)
    if RULE == "adamw":
        decay = 1.0 - lr * wd
    if RULE == "adam" or RULE == "adamw":
        count = updates.to(tl.float64)
        lr = lr / (1.0 - tl.exp(count * tl.full((), LOG_BETA_1, tl.float64)))
        root = tl.sqrt(1.0 - tl.exp(count * tl.full((), LOG_BETA_2, tl.float64)))
    return lr, decay, root


@triton.jit
def step(g, w, m, v, lr, decay, root, hyper, RULE: tl.constexpr):
    """w, m and v behind one step with the gradient g; lr, decay and root are those of rates_of.

    A moment that the optimizer does not keep comes and goes as any tile of this shape.
    """
    if RULE == "adamw":
        w = w * decay
    else:
        g = g + decay * w
    if RULE == "adam" or RULE == "adamw":
        rest_1, beta_2, rest_2, eps = hyper[1], hyper[2], hyper[3], hyper[4]
        m = m + rest_1 * (g - m)
        v = beta_2 * v + rest_2 * (g * g)
        scaled = tl.div_rn(tl.sqrt_rn(v), tl.zeros_like(v) + root)
        w = w - tl.div_rn(lr * m, scaled + eps)
    elif RULE == "sgd":
        w = w - lr * g
    else:  # "momentum" or "nesterov"
        m = hyper[0] * m + g
        w = w - lr * (g + hyper[0] * m if RULE == "nesterov" else m)
    return w, m, v
