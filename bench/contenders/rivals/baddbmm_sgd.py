"""baddbmm_sgd: plain SGD needs no kernel of ours, its fused update is one baddbmm_ on the weights.

W <- (1 - lr * weight_decay) W - lr * d_out.mT @ input
"""

import torch
from torch import Tensor

from ...problem.problem import Problem, Weights
from ..contender import Contender
from .stacked import join, split, stem


class BaddbmmSGD(Contender):
    maths = "sgd"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        self.params = split(problem.weights)
        self.signal, self.noise = problem.signal[:, None, None], problem.noise[:, None, None]
        self.d_scale = 2 / self.shape.B * problem.weight[:, None, None]

    @torch.no_grad()
    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        eps = self.draw(*indices.shape) if eps is None else eps
        history = [self.step(*self.batch(rows), e) for rows, e in zip(indices, eps, strict=True)]
        return torch.stack(history)

    def step(self, x: Tensor, u_y: Tensor, eps: Tensor) -> Tensor:
        """Losses (T,), and the update; a layer's gradient is computed before its weights are
        updated."""
        p = self.params
        z = self.signal * u_y + self.noise * eps
        hx = stem(p["hx.weight"], p["hx.bias"], x, shared=True).relu_()
        hz = torch.baddbmm(p["hz.bias"][:, None], z, p["hz.weight"].mT).relu_()
        f = torch.baddbmm(p["f.bias"][:, None], hx, p["f.x"].mT).baddbmm_(hz, p["f.z"].mT).relu_()
        q = torch.baddbmm(p["logits.bias"][:, None], f, p["logits.weight"].mT).softmax(dim=2)
        W = self.problem.embedding
        difference = (q if W is None else q @ W) - u_y
        losses = self.problem.weight * difference.square().sum(dim=2).mean(dim=1)

        d_q = self.d_scale * difference
        d_q = d_q if W is None else d_q @ W.T
        d_logits = q * (d_q - (d_q * q).sum(dim=2, keepdim=True))
        d_f = torch.bmm(d_logits, p["logits.weight"]).mul_(f > 0)
        d_hx = torch.bmm(d_f, p["f.x"]).mul_(hx > 0)
        d_hz = torch.bmm(d_f, p["f.z"]).mul_(hz > 0)
        self.update("logits.weight", d_logits, f, bias="logits.bias")
        self.update("f.x", d_f, hx, bias="f.bias")
        self.update("f.z", d_f, hz)
        self.update("hx.weight", d_hx, x.expand(self.shape.T, -1, -1), bias="hx.bias")
        self.update("hz.weight", d_hz, z, bias="hz.bias")
        return losses

    def update(self, name: str, d_out: Tensor, source: Tensor, bias: str | None = None) -> None:
        lr = self.problem.lr
        keep = 1 - lr * self.problem.weight_decay
        self.params[name].baddbmm_(d_out.mT, source, beta=keep, alpha=-lr)
        if bias:
            self.params[bias].mul_(keep).sub_(d_out.sum(dim=1), alpha=lr)

    def weights(self) -> Weights:
        return join(self.params)
