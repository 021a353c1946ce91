"""An operation: its inputs, how every contender does it, and what its result must be."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk

from ..contenders.rivals.step_compiled import adamw, copy_state, rates
from ..problem.twin import Mismatch, root_mean_square

LR, WEIGHT_DECAY = 1e-3, 0.5
RULE = nk.AdamW(lr=LR, weight_decay=WEIGHT_DECAY)
UPDATES = 5  # done already, so that the moments count
GRADIENT = 1e-3  # size of gradients that are given

Result = dict[str, Tensor]
Call = Callable[[], Result]


class Op:
    """An operation at one size, on inputs that are the same for every contender.

    Each of `contenders` is the name of a method that makes a call, which does the operation once
    and returns its results by name. The names of ours begin with `ours`, of what torch.compile
    makes with `compiled`.

    Attributes:
        name, sizes: as in the result files, and those that are measured.
        w: what the results are compared with as a distance moved, by the same names.
        flop: operations of its products.
        traffic: bytes of weights and moments that it reads and writes, each once.

    Args:
        backend: of torch.compile.
    """

    name: str
    sizes: tuple[tuple[int, ...], ...]
    contenders: tuple[str, ...] = ("ours", "eager", "compiled")
    flop = traffic = 0

    def __init__(self, *, backend: str = "inductor") -> None:
        self.compile = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
        self.generator = torch.Generator().manual_seed(0)
        self.draw = partial(torch.randn, generator=self.generator)
        self.w: Result = {}

    formula: Callable[..., Tensor]  # in torch, of an operation without an update

    def run(self, formula: Callable[..., Tensor]) -> Call:
        """The operation by this formula."""
        raise NotImplementedError

    def eager(self) -> Call:
        return self.run(self.formula)

    def compiled(self) -> Call:
        return self.run(self.compile(self.formula))

    def frame(self) -> Call | None:
        """The same call with no work inside: what PyTorch's graph itself costs a function that is
        written in Python, whatever its kernels; None: nobody needs a graph."""
        return None

    def wanted(self, contender: str) -> Result:
        """What the first call's results must be, in float64."""
        raise NotImplementedError

    def check(self, contender: str, result: Mapping[str, Tensor]) -> None:
        """Compares the first call's results with those of this object, which has done nothing yet.

        The root mean square error may be 5e-3 of the result's size, or of the distance moved, and
        one rounding of what it moved from.

        Raises:
            Mismatch: they differ.
        """
        for name, want in self.wanted(contender).items():
            start = self.w.get(name, torch.zeros(())).double()
            size = root_mean_square(want - start)
            error = root_mean_square(result[name].double() - want)
            if not error <= 5e-3 * size + torch.finfo(torch.float32).eps * root_mean_square(start):
                what = f"{self.name}: {contender}'s {name}"
                raise Mismatch(f"{what} differs from float64's by {error:.1e} of {size:.1e}")


class Frame(torch.autograd.Function):
    """A node that keeps its inputs and makes a result and a gradient, whose numbers it leaves."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], x: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(x, *others)
        return x.new_empty(shape)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *others = ctx.saved_tensors
        return None, torch.empty_like(x), *(None for _ in others)


class Updating(Op):
    """An operation that ends with AdamW, after `UPDATES` of its steps.

    Attributes:
        w, m, v: the weights and both moments to begin with.
    """

    def begin(self, w: Result) -> None:
        self.w = w
        self.m = {name: GRADIENT * self.draw(value.shape) for name, value in w.items()}
        self.v = {name: GRADIENT**2 * self.draw(value.shape) ** 2 for name, value in w.items()}

    def optimizer(self, params: Mapping[str, torch.nn.Parameter]) -> torch.optim.AdamW:
        """torch's fused AdamW."""
        options = {"lr": LR, "weight_decay": WEIGHT_DECAY, "fused": True}
        optimizer = torch.optim.AdamW(params.values(), **options)  # type: ignore[arg-type]
        for name, value in params.items():
            moments = {"exp_avg": self.m[name].clone(), "exp_avg_sq": self.v[name].clone()}
            optimizer.state[value] = {"step": torch.tensor(float(UPDATES)), **moments}
        return optimizer

    def load(self, module: torch.nn.Module) -> None:
        """Copies the state into one of our modules, whose buffers are its moments."""
        buffers = dict(module.named_buffers())
        with torch.no_grad():
            for name, param in module.named_parameters():
                param.copy_(self.w[name])
                buffers[f"{name}_m"].copy_(self.m[name])
                buffers[f"{name}_v"].copy_(self.v[name])
            buffers["updates"].fill_(UPDATES)

    def written_out(self, work: Callable[..., tuple[Result, Result]]) -> Callable[..., Result]:
        """work(w, *inputs) to results and gradients, and then AdamW, in one compiled function."""
        state, done = (self.w, self.m, self.v), torch.tensor(float(UPDATES))

        @self.compile
        def step(state: tuple[Result, ...], done: Tensor, *inputs: Tensor) -> Result:
            results, grads = work(state[0], *inputs)
            done += 1  # a tensor, since each new number would compile anew
            copy_state(state, adamw(state, grads, *rates(LR, WEIGHT_DECAY, done)))
            return results

        @torch.no_grad()
        def once(*inputs: Tensor) -> Result:
            return step(state, done, *inputs) | self.w

        return once

    def moved(self, grads: Mapping[str, Tensor]) -> Result:
        """The weights after AdamW, float64."""
        state = [{k: value.double() for k, value in x.items()} for x in (self.w, self.m, self.v)]
        return adamw(state, grads, *rates(LR, WEIGHT_DECAY, UPDATES + 1))[0]
