"""The input of every contender: data, initial weights and the step's numbers, in plain PyTorch.

The step of block t, with embeddings u_y = W[y], one-hot unless the shape says otherwise:

    z      = signal_t * u_y + noise_t * eps           eps ~ N(0, I)
    hx     = relu(Linear(x));  hz = relu(Linear(z))
    f      = relu(Linear([hx, hz]));  logits = Linear(f)
    loss_t = weight_t * mean over rows of |softmax(logits) @ W - u_y|^2

then AdamW. A shape with an image has the paper's block in place of the MLP (paper.py). In the maths
"encoded" x is tanh(Linear(X)), F wide, whose weights the sum of the losses trains. Nothing here
comes from the measured library but the sizes of a plan.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .sizes import Shape

Weights = dict[str, Tensor]
Factors = dict[str, Tensor]  # (T, B, C, H, W) by convolution: what its result is multiplied by


@dataclass
class Problem:
    """One benchmark's inputs.

    Args:
        shape: the sizes.
        signal, noise, weight: (T,) float32, of block t at t - 1.
        a, b: (T,) float32, of the chain z_t = a u_hat + b z_{t-1}, for end-to-end training.
        weights: (T, ...) float32 by the plan's names, "hx.weight" (T, out, in).
        X: (rows, F) float32.
        Y: (rows,) int64.
        lr, weight_decay: of AdamW.
        precision: of the operands of products, "float32" | "tf32" | "bfloat16"; all else is
            float32.
        embedding: (M, D) float32, or None for one-hot.
        encoder: (F, F) and (F,) float32, "encoder.weight" and "encoder.bias".
        coupled: (1, ...) float32, of a timed shape: the output head's "head.weight" and
            "head.bias", and "gamma.w1" and the like of a learned gamma (coupled.py).

    Attributes:
        wanted: the twin's results that contenders' checks have in common.
    """

    shape: Shape
    signal: Tensor
    noise: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    weights: Weights
    X: Tensor
    Y: Tensor
    lr: float = 1e-3
    weight_decay: float = 1e-3
    precision: str = "float32"
    embedding: Tensor | None = None
    encoder: Weights = field(default_factory=dict)
    coupled: Weights = field(default_factory=dict)
    wanted: dict[Any, Any] = field(default_factory=dict, init=False)

    def factors(self, seed: int) -> Factors:
        """Those of dropout in one step: 0, or 1 / (1 - rate)."""
        s, generator = self.shape, torch.Generator(self.device).manual_seed(seed)

        def draw(name: str, rate: float) -> Tensor:
            size = (s.T, s.B, *s.plan.shapes[name])
            kept = torch.rand(size, generator=generator, device=self.device) >= rate
            return kept / (1 - rate)

        return {name: draw(name, rate) for name, rate in s.dropout.items()}

    def statistics(self, dtype: torch.dtype = torch.float32) -> Weights:
        """(T, ...) by the plan's names: the running statistics before the first step."""
        starts = {"mean": torch.zeros, "var": torch.ones}
        return {
            name: starts[name.rpartition("_")[2]](self.shape.T, *size, dtype=dtype)
            for name, size in self.shape.plan.statistics().items()
        }

    @property
    def device(self) -> torch.device:
        return self.X.device

    def indices(self, K: int, seed: int) -> Tensor:
        """(K, B) int64: rows of K mini-batches."""
        generator = torch.Generator(self.device).manual_seed(seed)
        size = (K, self.shape.B)
        return torch.randint(self.shape.rows, size, generator=generator, device=self.device)

    def eps(self, K: int, seed: int) -> Tensor:
        """(K, T, B, D) float32: the noise of K steps.

        Where the shape is timed (K, T, B, D + 1), whose last column is t, uniform in [0, 1).
        """
        s = self.shape
        generator = torch.Generator(self.device).manual_seed(seed)
        eps = torch.randn(K, s.T, s.B, s.D, generator=generator, device=self.device)
        if not s.timed:
            return eps
        t = torch.rand(K, s.T, s.B, 1, generator=generator, device=self.device)
        return torch.cat([eps, t], dim=3)


def make_problem(
    shape: Shape, seed: int = 0, device: str | torch.device = "cpu", **settings: Any
) -> Problem:
    """A problem of this shape, with torch.nn's initial weights and random data.

    `settings` are lr, weight_decay and precision.
    """
    draw: Any = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    weights: Weights = {}
    for name, size in shape.plan.parameters().items():
        layer, _, part = name.partition(".")
        if part.startswith("norm."):
            start = torch.ones if part == "norm.weight" else torch.zeros
            weights[name] = start(shape.T, *size, device=device)
        else:
            uniform = torch.rand(shape.T, *size, **draw) * 2 - 1
            weights[name] = uniform / math.sqrt(shape.plan.fan_in(layer))
    X = torch.randn(shape.rows, shape.F, **draw)
    if shape.image is not None:
        # as images have low frequencies: of white noise all rows have nearly the same features, and
        # batch norm's gradient is a small difference of large numbers
        low = torch.randn(shape.rows, shape.image[0], 4, 4, **draw)
        X = X / 4 + interpolate(low, size=shape.image[1:], mode="bicubic").flatten(1)
    Y = torch.randint(shape.M, (shape.rows,), **draw)
    if not shape.one_hot:
        settings["embedding"] = torch.randn(shape.M, shape.D, **draw) / math.sqrt(shape.D)
    sizes = {"encoder.weight": (shape.F, shape.F), "encoder.bias": (shape.F,)}
    encoder = {
        name: (torch.rand(size, **draw) * 2 - 1) / math.sqrt(shape.F)
        for name, size in sizes.items()
    }
    if shape.timed:
        settings["coupled"] = coupled_weights(shape, draw)
    numbers = (number.to(device) for number in schedule(shape.T))
    return Problem(shape, *numbers, weights=weights, X=X, Y=Y, encoder=encoder, **settings)


GAMMA_0, GAMMA_1 = -3.0, 6.0  # gamma at t = 1 and t = 0, of a learned one at first


def coupled_weights(shape: Shape, draw: dict[str, Any]) -> Weights:
    """Of an output head, as torch.nn's, and of gamma's network, 64 wide, at the paper's 1,024."""
    hidden = 64 if shape.image is None else 1024
    sizes = {"head.weight": (shape.M, shape.D), "head.bias": (shape.M,)}
    made = {
        name: (torch.rand(1, *size, **draw) * 2 - 1) / math.sqrt(shape.D)
        for name, size in sizes.items()
    }
    made |= {f"gamma.{name}": torch.randn(1, hidden, **draw) for name in ("w1", "b1", "w2")}
    spread = GAMMA_1 - GAMMA_0
    ends = {"gamma_0": GAMMA_0, "delta": spread + math.log(-math.expm1(-spread))}
    device = draw["device"]
    return made | {f"gamma.{n}": torch.full((1,), v, device=device) for n, v in ends.items()}


def schedule(T: int, eta: float = 0.1) -> tuple[Tensor, ...]:
    """signal, noise, weight, a, b of the cosine schedule (arXiv:2503.24322v2, eqs. 6 and 8)."""
    u = torch.arange(T + 1, 0, -1, dtype=torch.float64) / (T + 1)
    s = 0.008
    alpha_bar = (
        torch.cos((u + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)
    ) ** 2
    alpha_bar[0] = 0
    previous, now = alpha_bar[:-1], alpha_bar[1:]
    snr = alpha_bar / (1 - alpha_bar)
    alpha = previous / now
    numbers = (
        previous.sqrt(),
        (1 - previous).sqrt(),
        0.5 * T * eta * snr.diff(),
        now.sqrt() * (1 - alpha) / (1 - previous),
        alpha.sqrt() * (1 - now) / (1 - previous),
    )
    return tuple(number.float() for number in numbers)
