"""Records of the calls on what blocks and output head share, as calls.py has them."""

from dataclasses import dataclass

from torch import Tensor

from .calls import Rule, Tensors


@dataclass
class LevelsOut:
    """Outputs of a LevelsCall.

    Args:
        net, net_slope: (R, B + 2) and (R, B) float64, the network at t and then at 0 and 1, and its
            slope at t, which the gradient reads.
        signal, noise, weight: (R, B) float32, of the rows.
        last_signal, last_noise: (R,) float32, at t = 1.
        prior: (R,) float64, KL(q(z_0 | y) || N(0, I)).
        alpha_bar_0: (R,) float64, at t = 0.
    """

    net: Tensor
    net_slope: Tensor
    signal: Tensor
    noise: Tensor
    weight: Tensor
    last_signal: Tensor
    last_noise: Tensor
    prior: Tensor
    alpha_bar_0: Tensor


@dataclass
class LevelsCall:
    """The levels of one step of a CT whose gamma is learned, in float64 and rounded once.

    A backend may have `levels`, `levels_gradient` and `update_shared`; where it has not, autograd
    and `optimizer_step` do the same.

    Args:
        gamma: parameters of gamma_network.NAMES, (R, hidden) or (R,) float32.
        weight, scale, most: the weight of a row's error, scale times SNR'(t) ("snr"), 1
            ("uniform"), or the smaller of SNR(t) and most ("min-snr").
        t: (R, B) float64 in [0, 1].
        u_squared: (R,) float64, the mean of |u_y|^2 over the labels.
        D: width of an embedding.
    """

    gamma: Tensors
    weight: str
    scale: float
    most: float
    t: Tensor
    u_squared: Tensor
    D: int
    out: LevelsOut


@dataclass
class LevelsGradientCall:
    """The gradient in gamma's parameters of the prior and of a loss with the gradients d_signal,
    d_noise, d_weight in the rows' levels and d_last_signal, d_last_noise in each row's last one,
    (R, B) float32. `levels` is a call that ran. Outputs: `grads`, as `levels.gamma`.
    """

    levels: LevelsCall
    d_signal: Tensor
    d_noise: Tensor
    d_weight: Tensor
    d_last_signal: Tensor
    d_last_noise: Tensor
    grads: Tensors


@dataclass
class SharedUpdateCall:
    """One optimizer step of parameters (R, ...) from gradients, in the replicas where `apply` (R,)
    bool is true and every gradient is finite; `applied` (R,) bool, out, says which these are.

    Updates params, m, v (as Slices has them), `updates` and `draws` (R,) int64.
    """

    params: Tensors
    m: Tensors
    v: Tensors
    grads: Tensors
    apply: Tensor
    applied: Tensor
    updates: Tensor
    draws: Tensor
    rule: Rule
