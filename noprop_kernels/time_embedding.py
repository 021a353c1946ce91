"""The embedding of t that a block of continuous time reads as its input "t"."""

import math

import torch
from torch import Tensor

SCALE = 1000.0  # of t in [0, 1]
LONGEST = 1e4  # the longest period, in units of 2 pi


def frequencies(width: int, device: torch.device) -> Tensor:
    """1000 / 10000^(i / n) for i = 0 .. n - 1, n = width / 2: (n,) float64."""
    n = width // 2
    powers = torch.arange(n, dtype=torch.float64, device=device) / n
    return SCALE * torch.exp(-math.log(LONGEST) * powers)


def embed_time(t: Tensor, width: int) -> Tensor:
    """sin and then cos of 1000 t / 10000^(i / n) for i = 0 .. n - 1, n = width / 2.

    The paper says only "positional embeddings"; this is the transformer's, on DDPM's 1,000 steps.

    Args:
        t: any shape, float64, in [0, 1].
        width: even.

    Returns:
        (*t.shape, width) float32, formed in float64 and rounded once.
    """
    n = width // 2
    angle = t[..., None] * frequencies(width, t.device)
    out = torch.empty(*t.shape, width, dtype=torch.float32, device=t.device)
    out[..., :n] = angle.sin()
    out[..., n:] = angle.cos()
    return out
