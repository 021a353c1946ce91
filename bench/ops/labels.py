"""Operations on B labels of M classes, one-hot: noise, the denoising loss, the output head."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noprop_kernels as nk
from noprop_kernels import philox

from ..problem.twin import Mismatch
from .op import GRADIENT, RULE, Call, Frame, Op, Result, Updating

GOAL = nk.DT(nk.NoiseSchedule.cosine(T=10))


class Labels(Op):
    sizes: tuple[tuple[int, ...], ...] = ((128, 10), (128, 1000))

    def __init__(self, B: int, M: int, **how: Any) -> None:
        super().__init__(**how)
        self.B, self.M = B, M
        self.y = torch.randint(M, (B,), generator=self.generator)
        self.embedding = torch.eye(M)  # a row of it is torch's fastest u_y
        last = GOAL.last()
        self.signal, self.noise = last.signal.item(), last.noise.item()

    def u_y(self) -> Tensor:
        return self.embedding.index_select(0, self.y)


class DenoisingLoss(Labels):
    """Losses of rows, and d_logits."""

    name = "denoising_loss"
    contenders = ("ours", "ours_module", "eager", "compiled")

    def __init__(self, *size: int, **how: Any) -> None:
        super().__init__(*size, **how)
        self.logits = self.draw(self.B, self.M)

    def ours(self) -> Call:
        return self.run(nk.functional.denoising_loss)

    def ours_module(self) -> Call:
        return self.run(nk.DenoisingLoss())

    def frame(self) -> Call:
        return self.run(lambda logits, y: Frame.apply((self.B,), logits))

    def formula(self, logits: Tensor, y: Tensor) -> Tensor:
        return (logits.softmax(-1) - self.embedding.index_select(0, y)).square().sum(-1)

    def run(self, formula: Callable[..., Tensor]) -> Call:
        def once() -> Result:
            logits = self.logits.detach().requires_grad_()
            losses = formula(logits, self.y)
            (d_logits,) = torch.autograd.grad(losses.sum(), logits)
            return {"losses": losses.detach(), "d_logits": d_logits}

        return once

    def wanted(self, contender: str) -> Result:
        q = self.logits.double().softmax(-1)
        difference = q - self.u_y()
        d_logits = 2 * q * (difference - (difference * q).sum(-1, keepdim=True))
        return {"losses": difference.square().sum(-1), "d_logits": d_logits}


class AddNoise(Labels):
    """z = signal * u_y + noise * eps, at one level."""

    name = "add_noise"

    def __init__(self, *size: int, **how: Any) -> None:
        super().__init__(*size, **how)
        self.shape: tuple[int, ...] = (self.B, self.M)

    def ours(self) -> Call:
        levels = {"signal": self.signal, "noise": self.noise}
        draw = partial(nk.functional.add_noise, **levels, seed=0, num_classes=self.M)
        return self.run(lambda y: draw(y)[0])

    def run(self, formula: Callable[..., Tensor]) -> Call:
        return lambda: {"z": formula(self.y)}

    def formula(self, y: Tensor) -> Tensor:
        eps = torch.randn(self.shape)
        return self.signal * self.embedding.index_select(0, y) + self.noise * eps

    def check(self, contender: str, result: Mapping[str, Tensor]) -> None:
        """Raises Mismatch where eps is not N(0, 1), within six deviations of mean and variance."""
        eps = ((result["z"] - self.signal * self.u_y()) / self.noise).double()
        n, mean, variance = eps.numel(), eps.mean().item(), eps.var().item()
        if not (abs(mean) <= 6 * n**-0.5 and abs(variance - 1) <= 6 * (2 / n) ** 0.5):
            what = f"{self.name}: {contender}'s noise"
            raise Mismatch(f"{what} has mean {mean:.3f} and variance {variance:.3f}")


class BlocksNoise(AddNoise):
    """z of all T blocks: DenoisingBlocks.add_noise."""

    name = "blocks.add_noise"
    sizes = ((10, 128, 10),)  # T first

    def __init__(self, T: int, *size: int, **how: Any) -> None:
        super().__init__(*size, **how)
        self.goal = nk.DT(nk.NoiseSchedule.cosine(T=T))
        levels = self.goal.levels(torch.arange(1, T + 1))
        self.signal, self.noise = levels.signal[:, None, None], levels.noise[:, None, None]
        self.shape = (T, self.B, self.M)

    def ours(self) -> Call:
        plan = nk.plans.mlp(1, self.M, self.M, hidden=1)
        blocks = nk.DenoisingBlocks(plan, self.goal, optimizer=RULE)
        return self.run(blocks.add_noise)


class OutputHead(Labels, Updating):
    """A step: z_T of the labels, cross-entropy, the gradient and AdamW."""

    name = "output_head"

    def __init__(self, *size: int, **how: Any) -> None:
        super().__init__(*size, **how)
        weight, bias = self.draw(self.M, self.M) / self.M**0.5, self.draw(self.M)
        self.begin({"logits.weight": weight, "logits.bias": bias})
        self.flop = 2 * 2 * self.B * self.M**2
        self.traffic = 7 * 4 * (self.M + 1) * self.M

    def z(self, eps: Tensor) -> Tensor:
        return self.signal * self.u_y() + self.noise * eps

    def ours(self) -> Call:
        head = nk.OutputHead(self.M, self.M, goal=GOAL, optimizer=RULE)
        self.load(head)
        params = dict(head.named_parameters())

        def once() -> Result:
            params["loss"] = head.train_step(self.y, 1).loss
            return params

        return once

    def eager(self) -> Call:
        params = {name: nn.Parameter(value) for name, value in self.w.items()}
        optimizer = self.optimizer(params)

        def once() -> Result:
            logits = F.linear(self.z(self.draw(self.B, self.M)), *params.values())
            loss = F.cross_entropy(logits, self.y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return params | {"loss": loss}

        return once

    def compiled(self) -> Call:
        step = self.written_out(self.formulas)
        return lambda: step(self.draw(self.B, self.M))

    def formulas(self, w: Result, eps: Tensor) -> tuple[Result, Result]:
        z = self.z(eps)
        logits = F.linear(z, *w.values())
        d_logits = (logits.softmax(-1) - self.u_y()) / self.B
        grads = {"logits.weight": d_logits.T @ z, "logits.bias": d_logits.sum(0)}
        return {"loss": F.cross_entropy(logits, self.y)}, grads

    def wanted(self, contender: str) -> Result:
        eps = self.draw(self.B, self.M)
        if contender == "ours":
            where = (torch.zeros(1, dtype=torch.int64), philox.STREAM_HEAD, 0, 0, 0)
            (eps,) = philox.normal(*where, self.B, self.M)
        w = {name: value.double() for name, value in self.w.items()}
        self.embedding = self.embedding.double()
        result, grads = self.formulas(w, eps.double())
        return result | self.moved(grads)


class BlocksUpdate(Updating):
    """AdamW of all T blocks for given gradients: DenoisingBlocks.update."""

    name = "blocks.update"
    sizes = ((10, 784, 256),)  # T, the width of x, that of the hidden layers

    def __init__(self, T: int, width: int, hidden: int, **how: Any) -> None:
        super().__init__(**how)
        plan, goal = nk.plans.mlp(width, 10, 10, hidden=hidden), nk.DT(nk.NoiseSchedule.cosine(T=T))
        self.blocks = nk.DenoisingBlocks(plan, goal, optimizer=RULE)
        self.begin({k: value.detach().clone() for k, value in self.blocks.named_parameters()})
        self.grads = {name: GRADIENT * self.draw(value.shape) for name, value in self.w.items()}
        self.traffic = 28 * T * plan.num_parameters()

    def ours(self) -> Call:
        self.load(self.blocks)
        ones, index = torch.ones(len(self.blocks)), torch.arange(len(self.blocks))
        grads = nk.Gradients(self.grads, ones, ones[:, None], ones.bool(), index, rows=1)
        params = dict(self.blocks.named_parameters())

        def once() -> Result:
            self.blocks.update(grads)
            return params

        return once

    def eager(self) -> Call:
        params = {name: nn.Parameter(value) for name, value in self.w.items()}
        optimizer = self.optimizer(params)
        for name, value in params.items():
            value.grad = self.grads[name]

        def once() -> Result:
            optimizer.step()
            return params

        return once

    def compiled(self) -> Call:
        return self.written_out(lambda w: ({}, self.grads))

    def wanted(self, contender: str) -> Result:
        return self.moved({name: value.double() for name, value in self.grads.items()})
