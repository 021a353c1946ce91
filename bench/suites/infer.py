"""Times inference: `python -m bench infer [--quick] [--shape small_x1 ...] [--out FILE]`.

The chain z_t = a_t u_hat_t + b_t z_{t-1} of all T blocks on one batch from a given z_0, without
noise in the steps. A shape's name ends in the rows of the batch. As in `bench run`, a contender's
z_T must be a float64 twin's before it is timed, and contenders take turns; a step is one answer.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..contenders.contender import Contender, Entry
from ..contenders.ours import Ours
from ..contenders.rivals.sequential import Block
from ..contenders.rivals.stacked import split, stem
from ..problem import twin
from ..problem.problem import Problem
from ..problem.sizes import INFERENCE_SHAPES
from .rounds import measure_rounds
from .run import run
from .suite import Suite

CHECK_CALLS = 3


class Inference(Contender):
    """Answers the same B rows again and again.

    Attributes:
        x: (B, F), the rows.
        z_0: (B, D), the start of the chain.
    """

    maths = "inference"

    def __init__(self, problem: Problem, threads: int, *, maths: str | None = None) -> None:
        super().__init__(problem, threads, maths=maths)
        s = self.shape
        self.x = self.X[: s.B].clone()
        self.z_0 = torch.randn(s.B, s.D, generator=torch.Generator().manual_seed(5))

    def answer(self) -> Tensor:
        """z_T (B, D)."""
        raise NotImplementedError

    @torch.inference_mode()
    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        """z_T of the last of len(indices) answers."""
        return [self.answer() for _ in indices][-1]

    def flop(self) -> int:
        return self.shape.forward_flop

    def traffic(self) -> int:
        return 4 * self.shape.parameters  # every weight, read once

    def resident(self) -> dict[str, int]:
        return {"weights": 4 * self.shape.parameters, "optimizer": 0}


class OursInference(Inference):
    """One native call; its chain without noise begins at z_0 = 0."""

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        s = self.shape
        self.blocks = Ours(problem, threads).blocks
        self.z_0 = torch.zeros(s.B, s.D)

    def answer(self) -> Tensor:
        return self.blocks.predict(self.x, noise=False).z[0, 0]

    def step_bytes(self, indices: Tensor) -> None:
        return None  # native workspace, which PyTorch's record does not show


class Modules(nn.Module):
    """A module per block, one after the other: a user's first version."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(problem.weights, t) for t in range(problem.shape.T))
        self.a, self.b = problem.a.tolist(), problem.b.tolist()

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        for block, a, b in zip(self.blocks, self.a, self.b, strict=True):
            z = a * block(x, z) + b * z
        return z


class Stacked(nn.Module):
    """Computes all that depends on x alone before the chain: hx in one product, and f's half.

    The rest runs block by block, since block t reads z_{t-1}.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        p = {name: nn.Parameter(value) for name, value in split(problem.weights).items()}
        self.hx, self.hx_bias = p["hx.weight"], p["hx.bias"]
        self.f_x, self.f_bias = p["f.x"], p["f.bias"]
        chain = ("hz.weight", "hz.bias", "f.z", "logits.weight", "logits.bias")
        self.chain = nn.ModuleList(
            nn.ParameterList(nn.Parameter(p[name][t].clone()) for name in chain)
            for t in range(problem.shape.T)
        )
        self.a, self.b = problem.a.tolist(), problem.b.tolist()

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        hx = stem(self.hx, self.hx_bias, x, shared=True).relu()
        f_x = torch.baddbmm(self.f_bias[:, None], hx, self.f_x.mT)  # (T, B, H)
        for half, params, a, b in zip(f_x, self.chain, self.a, self.b, strict=True):
            hz_weight, hz_bias, f_z, weight, bias = params.parameters()
            hz = linear(z, hz_weight, hz_bias).relu()
            f = torch.addmm(half, hz, f_z.T).relu()
            z = a * linear(f, weight, bias).softmax(dim=1) + b * z
        return z


class Rival(Inference):
    """A chain of PyTorch, eager or compiled, with weights frozen into the code or not."""

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        chain: Callable[[Problem], nn.Module],
        compiled: bool = False,
        frozen: bool = False,
        backend: str = "inductor",
    ) -> None:
        super().__init__(problem, threads)
        self.chain: Callable[[Tensor, Tensor], Tensor] = chain(problem).requires_grad_(False)
        if compiled:
            options: Any = {"freezing": True} if frozen and backend == "inductor" else None
            self.chain = torch.compile(
                self.chain, fullgraph=True, dynamic=False, backend=backend, options=options
            )

    def answer(self) -> Tensor:
        return self.chain(self.x, self.z_0)


def check_answers(contender: Contender) -> list[float]:
    """Runs answers, and compares the last z_T with the twin's; returns each answer's seconds.

    Raises:
        Mismatch: they differ.
    """
    assert isinstance(contender, Inference)
    seconds, z_T = [], contender.z_0
    for _ in range(CHECK_CALLS):  # the first compiles
        begin = time.perf_counter()
        z_T = contender.steps(torch.zeros(1, 1))
        seconds.append(time.perf_counter() - begin)
    twin.check_chain(contender.problem, contender.x, contender.z_0, z_T)
    return seconds


def rival(name: str, chain: Callable[[Problem], nn.Module], slow: bool = False, **how: bool):
    compiles = how.get("compiled", False)
    return Entry(name, partial(Rival, chain=chain, **how), compiles=compiles, slow=slow)


INFERENCE = Suite(
    prog="infer",
    about=__doc__,
    quick="small alone, and one compiled rival",
    entries=(
        Entry("ours", OursInference),
        rival("modules", Modules),
        rival("stacked", Stacked),
        rival("modules_compiled", Modules, slow=True, compiled=True),
        rival("stacked_compiled", Stacked, compiled=True),
        rival("stacked_frozen", Stacked, slow=True, compiled=True, frozen=True),
    ),
    shapes=INFERENCE_SHAPES,
    quick_shapes=("small_x1", "small_x1024"),
    Ks=(1,),
    check=check_answers,
    measure=measure_rounds,
)
main = partial(run, INFERENCE)
