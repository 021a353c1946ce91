"""What the rivals at CT and FM have in common: drawn t and noise, and images as they read them."""

import torch
from torch import Tensor

from ....problem.continuous import embed
from ....problem.problem import Problem, Weights
from ...contender import Contender
from ..paper.network import images


class Timed(Contender):
    """
    Args:
        maths: "ct" or "fm".

    Attributes:
        width: of the embedding of t.
        memory_format: of images, maps and the weights of convolutions.
    """

    memory_format = torch.channels_last

    def __init__(self, problem: Problem, threads: int, *, maths: str) -> None:
        super().__init__(problem, threads, maths=maths)
        self.width = self.shape.plan.widths["t"]

    def embed(self, t: Tensor) -> Tensor:
        return embed(t, self.width)

    def drawn(self, indices: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        """t (K, R, B) and eps (K, R, B, D) of K steps, each in one call; or those given."""
        if eps is not None:
            return eps[..., -1].contiguous(), eps[..., :-1].contiguous()  # as if drawn
        K, B = indices.shape
        t = torch.rand(K, self.shape.T, B, device=self.device)
        return t, self.draw(K, B)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, u_y = super().batch(rows)
        if self.shape.image is not None:
            x = images(self.problem, x).contiguous(memory_format=self.memory_format)
        return x, u_y

    def first_params(self, r: int) -> Weights:
        """Copies of replica r's."""
        params = {name: w[r].clone() for name, w in self.problem.weights.items()}
        return {name: self.formatted(w) for name, w in params.items()}

    def formatted(self, weight: Tensor) -> Tensor:
        if weight.ndim < 4:
            return weight
        return weight.contiguous(memory_format=self.memory_format)


def stacked(params: list[Weights]) -> Weights:
    """Replicas' weights as the problem has them, copied."""
    return {
        name: torch.stack([each[name].detach() for each in params]).contiguous()
        for name in params[0]
    }


def adam(params: list[Tensor], problem: Problem) -> torch.optim.Adam:
    """PyTorch's fused Adam, with the L2 penalty."""
    return torch.optim.Adam(params, lr=problem.lr, weight_decay=problem.weight_decay, fused=True)
