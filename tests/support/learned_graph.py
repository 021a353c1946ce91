"""The whole loss of a coupled step as one torch graph in float64, and the comparison with it."""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

import noprop_kernels as nk
from noprop_kernels import philox

from .blocks import M
from .learned import SGD

F64 = torch.float64


@dataclass
class Graph:
    """The whole loss of a coupled step in float64, on the noise and the t of its next step."""

    coupled: nk.Coupled
    y: Tensor
    t: int | None
    terms: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coupled = self.coupled
        shared, blocks, head = coupled.shared, coupled.blocks, coupled.head
        self.leaves = {
            f"shared.{name}": value.detach()[0].to(F64).clone().requires_grad_()
            for name, value in shared.named_parameters()
        }
        self.W = self.leaves.get("shared.W_embed")
        if self.W is None:
            self.W = torch.eye(M, dtype=F64) if shared.W_embed is None else shared.W_embed.to(F64)
        self.modules = [copy.deepcopy(module).to(F64) for module in blocks.to_modules()]
        for i, module in enumerate(self.modules):
            for name, value in module.named_parameters():
                self.leaves[f"blocks.{i}.{name}"] = value
        if head is not None:
            for name, value in head.named_parameters():
                leaf = value.detach()[0].to(F64).clone().requires_grad_()
                self.leaves[f"head.{name}"] = leaf

    def read(self, z: Tensor) -> Tensor:
        names = ("head.logits.weight", "head.logits.bias")
        return functional.linear(z, *(self.leaves[name] for name in names))

    def eps(self, stack: torch.nn.Module, block: int, stream: int = 0) -> Tensor:
        slot = block if isinstance(stack, nk.DenoisingBlocks) else 0
        address = (stack.seeds[:1], stream, 0, stack.draws[slot], block)
        return philox.normal(*address, len(self.y), self.W.shape[1], dtype=F64)[0]

    def gamma(self, t: Tensor) -> Tensor:
        """Appendix B, with torch's own derivative behind it."""
        if f"shared.gamma.{'delta'}" not in self.leaves:
            return self.coupled.blocks.goal.schedule(t) if t.ndim else 6 - 9 * t
        of = {name: self.leaves[f"shared.gamma.{name}"] for name in ("w1", "b1", "w2", "delta")}
        soft = functional.softplus

        def net(at: Tensor) -> Tensor:
            at = at[..., None] - 0.5
            return (soft(of["w2"]) * torch.tanh(soft(of["w1"]) * at + of["b1"])).sum(-1)

        ends = net(torch.tensor([0.0, 1.0], dtype=F64))
        gbar = (net(t) - ends[0]) / (ends[1] - ends[0])
        return self.leaves["shared.gamma.gamma_0"] + soft(of["delta"]) * (1 - gbar)

    def timed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t, signal, noise and weight of the rows."""
        goal = self.coupled.blocks.goal
        t = self.coupled.blocks.times(len(self.y))[0]
        if isinstance(goal, nk.FM):
            return t, t, 1 - t, torch.ones_like(t)
        t = t.requires_grad_()
        gamma = self.gamma(t)
        if goal.weight == "snr":
            snr = torch.exp(-gamma)
            (slope,) = torch.autograd.grad(snr.sum(), t, create_graph=True)
        else:
            slope = torch.ones_like(t)
        alpha_bar = torch.sigmoid(-gamma)
        weight = 0.5 * goal.eta * slope
        return t.detach(), alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), weight

    def block_loss(self, x: Tensor, t: int) -> Tensor:
        coupled, y = self.coupled, self.y
        goal, blocks, W = coupled.blocks.goal, coupled.blocks, self.W
        inputs = [x.to(F64)]
        if isinstance(goal, nk.DT):
            alpha_bar = goal.schedule.alpha_bar[t - 1 : t]
            signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            snr = goal.schedule.snr
            weight = 0.5 * goal.T * goal.eta * (snr[t] - snr[t - 1])
        else:
            times, signal, noise, weight = self.timed()
        eps = self.eps(blocks, t - 1)
        z = signal[:, None] * W[y] + noise[:, None] * eps
        if goal.sigma:
            z = z + goal.sigma * self.eps(blocks, t - 1, philox.STREAM_EPS_1)
        inputs.append(z)
        if goal.timed:
            inputs.append(nk.embed_time(times, 6).to(F64))
        logits = self.modules[t - 1](*inputs)
        u_hat = (logits if goal.flow else logits.softmax(-1)) @ W
        target = (W.detach() if coupled.shared.detach_target else W)[y] - goal.flow * eps
        loss = (weight * (u_hat - target).square().sum(-1)).mean()
        if goal.flow and coupled.head is not None:
            end = z + noise[:, None] * u_hat
            self.terms["anchor"] = functional.cross_entropy(self.read(end), y)
        return loss

    def run(self, x: Tensor) -> None:
        """Sets the terms: block losses by t, the head's, the prior, FM's anchor."""
        coupled, y, W = self.coupled, self.y, self.W
        goal = coupled.blocks.goal
        for t in range(1, goal.T + 1) if self.t is None else (self.t,):
            self.terms[f"block {t}"] = self.block_loss(x, t)
        if goal.flow:
            return
        if isinstance(goal, nk.DT):
            first, last = goal.schedule.alpha_bar[[0, -1]]
        else:
            first, last = torch.sigmoid(-self.gamma(torch.tensor([0.0, 1.0], dtype=F64)))
        z = last.sqrt() * W[y]
        z = z + (1 - last).sqrt() * self.eps(coupled.head, (self.t or 1) - 1, philox.STREAM_HEAD)
        self.terms["head"] = functional.cross_entropy(self.read(z), y)
        squared = W[y].square().sum(-1).mean()
        D = W.shape[1]
        self.terms["prior"] = 0.5 * (first * squared - D * first - D * torch.log(1 - first))

    def gradients(self, x: Tensor, count: int) -> dict[str, Tensor]:
        """Of each part's whole loss; what is shared takes the mean over `count` blocks."""
        self.run(x)
        blocks = sum(value for name, value in self.terms.items() if name.startswith("block"))
        rest = sum(value for name, value in self.terms.items() if not name.startswith("block"))
        names = [*self.leaves]
        options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        of_blocks = torch.autograd.grad(blocks, self.leaves.values(), **options)
        of_rest = [torch.zeros_like(value) for value in of_blocks]
        if isinstance(rest, Tensor):
            of_rest = torch.autograd.grad(rest, self.leaves.values(), **options)
        parts = zip(names, of_blocks, of_rest, strict=True)
        return {name: (a / count if name.startswith("shared") else a) + b for name, a, b in parts}


def gradients_of(coupled: nk.Coupled, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the last step, from the moments, by the names of Graph."""
    found = {}
    for name, value in coupled.state_dict().items():
        if not name.endswith("_m"):
            continue
        grad = value - SGD.momentum * before[name]
        param = coupled.get_parameter(name.removesuffix("_m")).detach()
        torch.testing.assert_close(param, before[name.removesuffix("_m")] - SGD.lr * value)
        part, _, rest = name.removesuffix("_m").partition(".")
        if part == "blocks":
            found |= {f"blocks.{i}.{rest}": each for i, each in enumerate(grad)}
        else:
            found[f"{part}.{rest}"] = grad[0]
    return found


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Equal up to float32, in units of the part's largest entry."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        part = name.rpartition(".")[0]
        largest = max(float(v.abs().max()) for k, v in want.items() if k.startswith(part))
        error = (got[name].double() - value).abs().max()
        assert error <= 2e-5 * largest, f"{name}: {error:.2e} of {largest:.2e}"
