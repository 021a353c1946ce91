"""vmapped: one module's call under torch.func.vmap over the stacked parameters of all blocks."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from ....problem.problem import Weights
from ..stacked import Stacked
from .network import PaperBlock, images, without_counts


class Vmapped(Stacked):
    def first_params(self) -> Weights:
        blocks = [PaperBlock(self.problem, t) for t in range(self.shape.T)]
        params, self.buffers = stack_module_state(blocks)
        module = blocks[0]

        def u_hat(state: tuple[Weights, Weights], *inputs: Any) -> Tensor:
            return functional_call(module, state, inputs)

        self.vmap = partial(vmap, u_hat, randomness="different")
        return {name: w.detach() for name, w in params.items()}

    def losses(self, x: Tensor, u_y: Tensor, eps: Tensor) -> Tensor:
        z = self.signal * u_y + self.noise * eps
        x = images(self.problem, x).contiguous()
        drops = {
            name: 0 if isinstance(drop, Tensor) else None for name, drop in self.dropout.items()
        }
        run = self.vmap(in_dims=(0, None, 0, drops))
        u_hat = run((self.params, self.buffers), x, z, self.dropout)
        return self.problem.weight * (u_hat - u_y).square().sum(dim=2).mean(dim=1)

    def weights(self) -> Weights:
        state = without_counts(self.params | self.buffers)
        return {name: value.detach().clone() for name, value in state.items()}
