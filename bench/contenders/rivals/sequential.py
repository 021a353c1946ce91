"""sequential: a module and a fused AdamW per block, eager autograd: a user's first version."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ...problem.problem import Problem, Weights
from ..contender import Contender


class Block(nn.Module):
    """u_hat = softmax(logits(f(hx(x), hz(z)))) @ W_embed, with slice t of the problem's weights.

    Args:
        weights: the problem's.
        t: from 0.
        W_embed: (M, D), or None for one-hot.
    """

    def __init__(self, weights: Weights, t: int, W_embed: Tensor | None = None) -> None:
        super().__init__()
        self.W_embed = W_embed
        F, H = weights["hx.weight"].shape[2], weights["hx.weight"].shape[1]
        D, M = weights["hz.weight"].shape[2], weights["logits.weight"].shape[1]
        self.hx, self.hz = nn.Linear(F, H), nn.Linear(D, H)
        self.f, self.logits = nn.Linear(2 * H, H), nn.Linear(H, M)
        self.to(weights["hx.weight"].device)
        self.load_state_dict({name: value[t] for name, value in weights.items()})

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        f = self.f(torch.cat([self.hx(x).relu(), self.hz(z).relu()], dim=1)).relu()
        p = self.logits(f).softmax(dim=1, dtype=torch.float32)
        return p if self.W_embed is None else p @ self.W_embed


def adamw(params: Iterable[Tensor], problem: Problem) -> torch.optim.AdamW:
    """PyTorch's fused AdamW, capturable on a GPU."""
    how = {"fused": True, "capturable": problem.device.type == "cuda"}
    return torch.optim.AdamW(params, lr=problem.lr, weight_decay=problem.weight_decay, **how)


def stack(blocks: Sequence[nn.Module]) -> Weights:
    """The blocks' weights, stacked as the problem's."""
    states = [block.state_dict() for block in blocks]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


class Sequential(Contender):
    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        self.blocks = [self.make_block(t) for t in range(self.shape.T)]
        self.optimizers = [adamw(block.parameters(), problem) for block in self.blocks]
        # Python floats: a product with one needs no tensor
        self.signal, self.noise = problem.signal.tolist(), problem.noise.tolist()
        self.weight = problem.weight.tolist()

    def make_block(self, t: int) -> nn.Module:
        return Block(self.problem.weights, t, self.problem.embedding)

    def u_hat(self, t: int, x: Tensor, z: Tensor) -> Tensor:
        """(B, D) of block t."""
        return self.blocks[t](x, z)

    def step(self, t: int, x: Tensor, u_y: Tensor, eps: Tensor) -> Tensor:
        """Block t's loss, after its update."""
        z = torch.add(self.signal[t] * u_y, eps, alpha=self.noise[t])
        with self.autocast():
            u_hat = self.u_hat(t, x, z)
        error = (u_hat - u_y).square().sum(dim=1).mean()
        loss = self.weight[t] * error
        loss.backward()
        self.optimizers[t].step()
        self.optimizers[t].zero_grad(set_to_none=True)
        return loss.detach()

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        K, T = len(indices), self.shape.T
        eps = self.draw(*indices.shape) if eps is None else eps
        losses = torch.empty(K, T, device=self.device)
        for k in range(K):
            x, u_y = self.batch(indices[k])
            for t in range(T):
                losses[k, t] = self.step(t, x, u_y, eps[k, t])
        return losses

    def gradient_bytes(self) -> int:
        return 4 * self.shape.parameters // self.shape.T  # each block frees its own

    def weights(self) -> Weights:
        return stack(self.blocks)
