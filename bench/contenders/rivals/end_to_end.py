"""end_to_end: back-propagation through the same T blocks, which NoProp avoids.

The chain is inference's without its noise, z_t = a_t u_hat_t + b_t z_{t-1} from z_0 ~ N(0, I); the
loss is the last block's mean |u_hat_T - u_y|^2. Plain, with each block checkpointed, with
the gradient accumulated over parts of the batch, or with AdamW run inside backward as each gradient
arrives. For speed and memory.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...problem.problem import Problem, Weights
from ..contender import Contender
from .sequential import Block, adamw, stack


class EndToEnd(Contender):
    maths = "end_to_end"

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        checkpointed: bool = False,
        parts: int = 1,
        in_backward: bool = False,
    ) -> None:
        super().__init__(problem, threads)
        self.blocks = [Block(problem.weights, t, problem.embedding) for t in range(self.shape.T)]
        self.a, self.b = problem.a.tolist(), problem.b.tolist()
        self.checkpointed, self.parts, self.in_backward = checkpointed, parts, in_backward
        params = [param for block in self.blocks for param in block.parameters()]
        self.optimizers = []
        if in_backward:
            for param in params:
                optimizer = self.optimizer([param])
                param.register_post_accumulate_grad_hook(lambda _, o=optimizer: self.update(o))
        else:
            self.optimizers.append(self.optimizer(params))

    def optimizer(self, params: list[nn.Parameter]) -> torch.optim.AdamW:
        return adamw(params, self.problem)

    @staticmethod
    def update(optimizer: torch.optim.AdamW) -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def loss(self, x: Tensor, u_y: Tensor, z: Tensor) -> Tensor:
        """Sum over rows of |u_hat_T - u_y|^2 / B, so that parts add."""
        u_hat = z
        for block, a, b in zip(self.blocks, self.a, self.b, strict=True):
            if self.checkpointed:
                u_hat = checkpoint(block, x, z, use_reentrant=False, preserve_rng_state=False)
            else:
                u_hat = block(x, z)
            z = a * u_hat + b * z
        return (u_hat - u_y).square().sum() / self.shape.B

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        s = self.shape
        size = (len(indices), s.B, s.D)
        z_0 = torch.randn(size, device=self.device) if eps is None else eps[:, 0]
        history = torch.zeros(len(indices), 1, device=self.device)
        for rows, z, out in zip(indices, z_0, history, strict=True):
            for part, z_part in zip(rows.chunk(self.parts), z.chunk(self.parts), strict=True):
                loss = self.loss(*self.batch(part), z_part)
                loss.backward()
                out += loss.detach()
            for optimizer in self.optimizers:
                self.update(optimizer)
        return history

    def gradient_bytes(self) -> int:
        if self.in_backward:  # each is freed by its own update
            return 4 * max(param.numel() for param in self.blocks[0].parameters())
        return super().gradient_bytes()

    def weights(self) -> Weights:
        return stack(self.blocks)
