"""Steps in a loop that trains an encoder in torch too: tanh(Linear(x)) before the blocks."""

import torch
from torch import Tensor, nn

from ..problem.problem import Problem, Weights
from .contender import Contender
from .ours import Ours
from .rivals.sequential import adamw
from .rivals.stacked import Stacked


class Encoded(Contender):
    """A contender's step between the encoder's forward and backward."""

    maths = "encoded"

    def __init__(self, problem: Problem, threads: int, **how: bool) -> None:
        super().__init__(problem, threads, **how)
        F = self.shape.F
        self.encoder = nn.Linear(F, F)
        self.encoder.load_state_dict(
            {name.partition(".")[2]: value for name, value in problem.encoder.items()}
        )
        self.encoder_optimizer = adamw(self.encoder.parameters(), problem)

    def step(self, x: Tensor, rows: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses (T,) of the blocks' step on x (B, F), and d_x (B, F)."""
        raise NotImplementedError

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        history = []
        for k, rows in enumerate(indices):
            x = self.encoder(self.X[rows]).tanh()
            losses, d_x = self.step(x.detach(), rows, None if eps is None else eps[k])
            x.backward(d_x)
            self.encoder_optimizer.step()
            self.encoder_optimizer.zero_grad()
            history.append(losses)
        return torch.stack(history)

    def weights(self) -> Weights:
        own = {f"encoder.{name}": v.detach().clone() for name, v in self.encoder.named_parameters()}
        return super().weights() | own

    def flop(self) -> int:
        s = self.shape
        return super().flop() + 4 * s.B * s.F * s.F + 2 * s.T * s.B * s.F * s.H

    def resident(self) -> dict[str, int]:
        size = 4 * self.shape.F * (self.shape.F + 1)
        more = {"weights": size, "optimizer": 2 * size}
        return {name: size + more.get(name, 0) for name, size in super().resident().items()}


class OursEncoded(Encoded, Ours):
    """By train_step with input_grad=True."""

    def step(self, x: Tensor, rows: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        self.refuse(eps)
        done = self.blocks.train_step(x, self.Y[rows], input_grad=True)
        assert isinstance(done.d_x, Tensor)
        return done.loss, done.d_x.sum(0)

    def step_bytes(self, indices: Tensor) -> None:
        return None  # native workspace, which PyTorch's record does not show


class StackedEncoded(Encoded, Stacked):
    """In plain PyTorch, all blocks in one product each."""

    def step(self, x: Tensor, rows: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        eps = self.draw(1, len(rows))[0] if eps is None else eps
        losses = self.losses(x.requires_grad_(), self.embedding[self.Y[rows]], eps)
        losses.sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        assert x.grad is not None
        return losses.detach(), x.grad
