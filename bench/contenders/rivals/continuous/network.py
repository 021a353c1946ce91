"""A block of CT or FM as functions of its parameters by name: the three-stem MLP, or the paper's.

Labels are one-hot.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, max_pool2d

from ....problem.continuous import Levels
from ....problem.problem import Weights
from ..paper.network import Drops, dropped


def encode(p: Weights, x: Tensor, drops: Drops) -> Tensor:
    """hx (B, H) of rows (B, F), or by convolutions of cropped images (B, C, H, W)."""
    for name, drop in drops.items():
        x = torch.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"]).relu()
        x = dropped(x if name == "c2" else max_pool2d(x, 2), drop)
    return linear(x.flatten(1), p["hx.weight"], p["hx.bias"]).relu()


def hidden(p: Weights) -> list[str]:
    """The layers between the stems and the logits."""
    return [name for name in ("f", "f1", "f2") if f"{name}.weight" in p]


def logits(p: Weights, hx: Tensor, z: Tensor, time: Tensor) -> Tensor:
    """(B, M) of hx (B, H), z (B, D) and the embeddings of t."""
    hz = linear(z, p["hz.weight"], p["hz.bias"]).relu()
    ht = linear(time, p["ht.weight"], p["ht.bias"]).relu()
    f = torch.cat([hx, hz, ht], dim=1)
    for name in hidden(p):
        f = linear(f, p[f"{name}.weight"], p[f"{name}.bias"]).relu()
    return linear(f, p["logits.weight"], p["logits.bias"])


def noised(levels: Levels, u_y: Tensor, eps: Tensor) -> Tensor:
    """z (..., B, D) at levels (..., B)."""
    return levels.signal[..., None] * u_y + levels.noise[..., None] * eps


def loss(maths: str, logits: Tensor, weight: Tensor, u_y: Tensor, eps: Tensor) -> Tensor:
    """(...) of logits and eps (..., B, D), of weight (..., B) and u_y (B, D)."""
    if maths == "fm":
        return (logits - (u_y - eps)).square().sum(dim=-1).mean(dim=-1)
    error = (logits.softmax(dim=-1) - u_y).square().sum(dim=-1)
    return (weight * error).mean(dim=-1)
