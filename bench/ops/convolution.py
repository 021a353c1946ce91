"""The products of a convolution, one by one, in T blocks.

No function of ours is one product. Ours is DenoisingBlocks with a plan of a single convolution, its
ReLU and pool, and one logit; of its backward one gradient is wanted. The rivals do the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, max_pool2d

import noprop_kernels as nk
from noprop_kernels.plan import Conv2d, Dense, MaxPool2d, Plan

from .op import Call, Op, Result

MNIST = ((1, 26, 26, 32, 2), (32, 12, 12, 64, 1), (64, 10, 10, 128, 2))
CIFAR10 = ((3, 30, 30, 32, 2), (32, 14, 14, 64, 1), (64, 12, 12, 128, 2))


class Convolution(Op):
    """The forward, of the paper's three convolutions on images without dead pixels.

    The sizes are T, B, the image's C, H and W, channels, and the window of the pool, 1 without.
    """

    name = "convolution"
    sizes = tuple((2, 128, *size) for size in (*MNIST, *CIFAR10))
    contenders = ("ours", "eager", "eager_contiguous")
    wants: tuple[str, ...] = ()  # gradients, instead of the logits

    def __init__(self, T: int, B: int, *size: int, **how: Any) -> None:
        super().__init__(**how)
        C, height, width, channels, self.window = size
        pool = MaxPool2d(self.window) if self.window > 1 else None
        layers = {
            "c": Conv2d("x", channels, activation="relu", pool=pool),
            "logits": Dense(("c", "z"), 1),
        }
        self.plan, self.T = Plan({"x": (C, height, width), "z": (1,)}, layers), T
        self.leaves = {
            name: self.draw(T, *shape) / self.plan.fan_in(name.partition(".")[0]) ** 0.5
            for name, shape in self.plan.parameters().items()
        }
        self.leaves["x"] = self.draw(T, B, C, height, width)
        self.d_logits = self.draw(T, B, 1)
        self.flop = 2 * T * B * self.plan.multiply_adds("c")

    def ours(self) -> Call:
        goal, z = nk.DT(nk.NoiseSchedule.cosine(T=self.T)), torch.zeros(len(self.d_logits[0]), 1)
        blocks = nk.DenoisingBlocks(self.plan, goal, optimizer=None, backend="cpu")
        leaves = dict(blocks.named_parameters()) | {"x": self.leaves["x"].clone()}
        with torch.no_grad():
            for name in self.plan.parameters():
                leaves[name].copy_(self.leaves[name])
        for name, value in leaves.items():
            value.requires_grad_(name in self.wants)
        return self.call([leaves], lambda: [blocks(leaves["x"], z)], [self.d_logits])

    def eager(self) -> Call:
        return self.by_torch(torch.channels_last)

    def eager_contiguous(self) -> Call:
        return self.by_torch(torch.contiguous_format)

    def by_torch(self, memory_format: torch.memory_format) -> Call:
        blocks = []
        for t in range(self.T):
            block = {name: value[t].clone() for name, value in self.leaves.items()}
            for name in ("x", "c.weight"):
                block[name] = block[name].contiguous(memory_format=memory_format)
            for name in self.wants:
                block[name].requires_grad_()
            blocks.append(block)
        return self.call(blocks, lambda: [self.logits(block) for block in blocks], self.d_logits)

    def logits(self, block: Result) -> Tensor:
        """(B, 1) of one block."""
        y = torch.conv2d(block["x"], block["c.weight"], block["c.bias"]).relu()
        y = max_pool2d(y, self.window).flatten(1) if self.window > 1 else y.flatten(1)
        weight = block["logits.weight"][:, :-1]  # the last feature is z, which is 0
        return linear(y, weight, block["logits.bias"])

    def call(
        self,
        leaves: list[Result],
        forward: Callable[[], list[Tensor]],
        d_logits: list[Tensor] | Tensor,
    ) -> Call:
        """Of one tensor for all blocks, or of each block's."""

        @torch.no_grad()
        def logits() -> Result:
            return by_block({"logits": forward()})

        if not self.wants:
            return logits
        kept = forward()

        def gradients() -> Result:
            grads = {
                name: [
                    torch.autograd.grad(out, block[name], d_out, retain_graph=True)[0]
                    for out, block, d_out in zip(kept, leaves, d_logits, strict=True)
                ]
                for name in self.wants
            }
            return by_block(grads)

        return gradients

    def wanted(self, contender: str) -> Result:
        self.leaves = {name: value.double() for name, value in self.leaves.items()}
        self.d_logits = self.d_logits.double()
        return self.by_torch(torch.contiguous_format)()


class ConvolutionInputGradient(Convolution):
    """The backward that computes x's gradient alone."""

    name = "convolution_d_x"
    wants = ("x",)


class ConvolutionWeightGradient(Convolution):
    """The backward that computes the weight's gradient, and those of the biases and the logit."""

    name = "convolution_d_weight"
    wants = ("c.weight",)


def by_block(results: dict[str, list[Tensor]]) -> Result:
    """Each block's own: of one tensor for each, or of one for all."""
    return {
        f"{name} of block {t}": part
        for name, values in results.items()
        for t, part in enumerate(values[0] if len(values) == 1 else values)
    }
