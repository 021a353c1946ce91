"""Our parts: by the public objects, or by the backend's function where those do more."""

import torch

from noprop_kernels.backends import calls
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.philox import STREAM_EPS
from noprop_kernels.results import Gradients

from ..contenders.ours import Ours
from ..problem.problem import Weights
from .given import UPDATES, Part, PartCall


class OurPart:
    """Our object with a part's moments, and the records that its backend takes."""

    def __init__(self, given: Part) -> None:
        self.blocks = Ours(given.problem, given.threads).blocks
        self.params = {name: p.detach() for name, p in self.blocks.named_parameters()}
        buffers = dict(self.blocks.named_buffers())
        m, v = ({name: buffers[f"{name}_{s}"] for name in self.params} for s in "mv")
        for name in self.params:
            m[name].copy_(given.m[name])
            v[name].copy_(given.v[name])
        blocks, T, B = self.blocks, given.shape.T, given.shape.B
        blocks.updates.fill_(UPDATES)
        self.index = torch.arange(T)
        self.slices = calls.Slices(
            *(blocks.plan, self.params, m, v, {}),
            *(blocks.seeds, blocks.draws, blocks.updates, self.index),
        )
        numbers = blocks.goal.levels(blocks.t)
        signal, size, weight = (
            number[None, :, None].expand(1, T, B)
            for number in (numbers.signal, numbers.noise, numbers.weight)
        )
        self.noising = calls.Noising(signal, size, 0.0)
        self.objective = calls.Objective(weight, 0.0, "softmax", B)
        self.embedding = calls.Embedding(None, given.shape.D)
        self.y = given.y.expand(1, T, B)
        decay = torch.full((T,), given.problem.weight_decay, dtype=torch.float64)
        lr = torch.full((1, T), given.problem.lr, dtype=torch.float64)
        assert blocks.optimizer is not None
        self.rule = calls.Rule(blocks.optimizer, lr, decay)

    def noise(self) -> calls.NoiseAddress:
        draw, block = torch.zeros_like(self.index)[None], self.index[None]
        return calls.NoiseAddress(self.blocks.seeds, draw, block, STREAM_EPS)

    def forward(self, given: Part) -> calls.ForwardCall:
        """Done, with what backward needs of it."""
        inputs = {"x": given.x.expand(len(self.index), -1, -1), "z": given.z}
        inputs = {name: inputs[name] for name in self.blocks.plan.inputs}
        out = torch.empty_like(given.logits)
        call = calls.ForwardCall(self.slices, inputs, out, training=True, save=True)
        cpu.forward(call)
        return call


def draw(given: Part) -> PartCall:
    our, eps = OurPart(given), torch.empty_like(given.z)
    call = calls.AddNoiseCall(our.noise(), our.noising, our.embedding, our.y, None, eps)

    def once() -> Weights:
        cpu.add_noise(call)
        return {"eps": eps}

    return once


def noise(given: Part) -> PartCall:
    blocks = OurPart(given).blocks
    return lambda: {"z": blocks.add_noise(given.y)}


def forward(given: Part) -> PartCall:
    blocks = OurPart(given).blocks

    @torch.no_grad()
    def once() -> Weights:
        return {"logits": blocks.forward(given.x, given.z)}

    return once


def head(given: Part) -> PartCall:
    our, loss, d_logits = OurPart(given), torch.empty(given.shape.T), torch.empty_like(given.logits)
    call = calls.HeadCall(
        our.objective, our.embedding, our.y, given.logits, None, loss, None, d_logits
    )

    def once() -> Weights:
        cpu.head(call)
        return {"losses": loss, "d_logits": d_logits}

    return once


def backward(given: Part) -> PartCall:
    blocks = OurPart(given).blocks
    logits, params = blocks.forward(given.x, given.z), dict(blocks.named_parameters())
    leaves = list(params.values())

    def once() -> Weights:
        grads = torch.autograd.grad(logits, leaves, given.d_logits, retain_graph=True)
        return dict(zip(params, grads, strict=True))

    return once


def update(given: Part) -> PartCall:
    our = OurPart(given)
    T, B = given.shape.T, given.shape.B
    losses, applied = torch.ones(T), torch.ones(T, dtype=torch.bool)
    grads = Gradients(given.grads, losses, torch.ones(T, B), applied, our.index, B)

    def once() -> Weights:
        our.blocks.update(grads)
        return our.params

    return once


def backend_update(given: Part) -> PartCall:
    our = OurPart(given)
    apply = torch.ones(given.shape.T, dtype=torch.bool)
    call = calls.UpdateCall(our.slices, given.grads, apply, our.rule)

    def once() -> Weights:
        cpu.update(call)
        return our.params

    return once


def backward_update(given: Part) -> PartCall:
    """The backward of one forward again and again, which stays valid: only weights move."""
    our = OurPart(given)
    saved, applied = our.forward(given).saved, torch.empty(given.shape.T, dtype=torch.bool)
    call = calls.BackwardCall(our.slices, saved, given.d_logits, None, {}, our.rule, applied)

    def once() -> Weights:
        cpu.backward(call)
        return our.params

    return once
