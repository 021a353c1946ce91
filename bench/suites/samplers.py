"""Times samplers of CT and FM: `python -m bench samplers [--quick] [--out FILE]`.

An answer is the way from z_0 in 1,000 steps, through one block for all t: CT's "ddim" and
"ancestral", FM's "euler". A shape's name ends in the rows of the batch. All compute hx and its
share of f once an answer. Rivals know t's share, a row for each of the 1,000 t, before the clock
starts; ours computes it in every call. `chunk_compiled` has ten steps in one compiled function.

As in `bench run`, a contender's last z must be a float64 twin's before it is timed, on the first
rows of the batch and with the noise of "ancestral" given, and contenders take turns.

Of ours it also tells what an answer of one evaluation takes, and the time of the 1,000 over that of
one and 999 times what each of the next hundred adds ("over linear"); shortest times, as other work
only adds to them.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from noprop_kernels import philox

from ..contenders.contender import Entry
from ..contenders.ours import Ours
from ..contenders.rivals.continuous.network import encode, hidden
from ..contenders.rivals.paper.network import images
from ..problem import continuous
from ..problem.problem import Problem, Weights
from ..problem.sizes import SAMPLER_SHAPES
from ..report.cells import aligned
from ..report.lines import Line, is_ours
from ..report.suite_rows import sampler_rows
from ..report.tables import plain_table
from .infer import Inference
from .rounds import measure_rounds
from .run import run
from .suite import Lineup, Suite

STEPS = 1000
SAMPLERS = ("ddim", "ancestral", "euler")
CHAIN = ("hz", "f", "f1", "f2", "logits")  # layers of every step
MOST_ROWS_OF_CHUNKS = 128  # with more a step is long beside its call
CHECK_CALLS = 2
CHECK_ROWS = 16
NEXT = 100  # evaluations behind the first, over which what one adds is measured
PAIR_SECONDS = 1.0  # of answers with one and with 1 + NEXT evaluations, in turns
LEAST_PAIRS = 3


class Sampler(Inference):
    """
    Args:
        maths: the sampler.

    Attributes:
        evaluations: steps of an answer.
    """

    def __init__(self, problem: Problem, threads: int, *, maths: str) -> None:
        super().__init__(problem, threads, maths=maths)
        self.goal = "fm" if maths == "euler" else "ct"
        self.evaluations = STEPS

    def answer(self, eps: Tensor | None = None) -> Tensor:
        """The last z (B, D); eps (steps, B, D) is "ancestral"'s noise, drawn here where None."""
        raise NotImplementedError

    def check_noise(self) -> tuple[Tensor | None, Tensor]:
        """Noise for the correctness check: the argument for `answer`, and that it then uses."""
        if self.maths != "ancestral":
            return None, torch.zeros(STEPS, 1, 1)
        s = self.shape
        eps = torch.randn(STEPS, s.B, s.D, generator=torch.Generator().manual_seed(6))
        return eps, eps

    def flop(self) -> int:
        return self.shape.sampler_flop(self.evaluations)


class OursSampler(Sampler):
    """One native call; without noise it begins at z_0 = 0."""

    def __init__(self, problem: Problem, threads: int, *, maths: str) -> None:
        super().__init__(problem, threads, maths=maths)
        self.blocks = Ours(problem, threads, maths=self.goal).blocks
        s, self.noise = self.shape, maths == "ancestral"
        self.z_0 = torch.zeros(s.B, s.D)
        if self.noise:
            self.z_0 = self.numbers_of(philox.BLOCK_Z_0)

    def numbers_of(self, block: int) -> Tensor:
        address = (self.blocks.seeds, philox.STREAM_INFERENCE, 0, 0, block)
        return philox.normal(*address, self.shape.B, self.shape.D)[0]

    def answer(self, eps: Tensor | None = None) -> Tensor:
        if eps is not None:
            raise ValueError("ours: eps must be None, the noise is a function of the seed")
        options: Any = {"sampler": self.maths, "steps": self.evaluations, "noise": self.noise}
        return self.blocks.predict(self.x, **options).z[0, 0]

    def check_noise(self) -> tuple[None, Tensor]:
        if not self.noise:
            return None, torch.zeros(STEPS, 1, 1)
        return None, torch.stack([self.numbers_of(block) for block in range(STEPS)])

    def step_bytes(self, indices: Tensor) -> None:
        return None  # native workspace, which PyTorch's record does not show


def advance(
    goal: str, p: Weights, z: Tensor, share: Tensor, rows: Any, numbers: Any, eps: Any
) -> Tensor:
    """z (B, D) after len(rows) steps.

    `share` (B, H) is what x adds to the first hidden layer, bias and all; `rows` (H,) what t adds
    at each step; `numbers` its a, b and c.
    """
    first, *rest = hidden(p)
    for i, (row, (a, b, c)) in enumerate(zip(rows, numbers, strict=True)):
        hz = linear(z, p["hz.weight"], p["hz.bias"]).relu()
        f = torch.addmm(share + row, hz, p[f"{first}.z"].T).relu()
        for name in rest:
            f = linear(f, p[f"{name}.weight"], p[f"{name}.bias"]).relu()
        found = linear(f, p["logits.weight"], p["logits.bias"])
        z = a * (found if goal == "fm" else found.softmax(dim=1)) + b * z
        if eps is not None:
            z = z + c * eps[i]
    return z


class Rival(Sampler):
    """
    Args:
        chunk: steps in one call of the function that is compiled, or not.
        compiled: whether it is, and the encoder.
        backend: of torch.compile.
    """

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        maths: str,
        chunk: int = 1,
        compiled: bool = False,
        backend: str = "inductor",
    ) -> None:
        super().__init__(problem, threads, maths=maths)
        s, self.chunk = self.shape, chunk
        self.p = {name: value[0].clone() for name, value in problem.weights.items()}
        self.first = hidden(self.p)[0]
        parts = self.p[f"{self.first}.weight"].chunk(3, dim=1)  # of hx, hz and ht
        self.f_x, f_z, f_t = (part.contiguous() for part in parts)
        self.p[f"{self.first}.z"] = f_z
        table = continuous.table(maths, STEPS)
        time = continuous.embed(table.t, s.plan.widths["t"]).float()
        ht = linear(time, self.p["ht.weight"], self.p["ht.bias"]).relu()
        self.rows = (ht @ f_t.T).split(chunk)
        self.chain = {name: w for name, w in self.p.items() if name.partition(".")[0] in CHAIN}
        numbers = torch.stack(table[1:], dim=1)
        self.coefficients: Sequence[Any] = [each.tolist() for each in numbers.split(chunk)]
        self.drops = dict.fromkeys(s.dropout, 0.0)
        self.encode: Callable[..., Tensor] = encode
        self.advance: Callable[..., Tensor] = advance
        if s.image is not None:
            self.x = images(problem, self.x).contiguous(memory_format=torch.channels_last)
        if compiled:
            self.coefficients = numbers.float().split(chunk)  # a Python number would compile anew
            compile: Any = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
            self.encode, self.advance = compile(encode), compile(advance)

    def answer(self, eps: Tensor | None = None) -> Tensor:
        s, z = self.shape, self.z_0.clone()
        hx = self.encode(self.p, self.x, self.drops)
        share = torch.addmm(self.p[f"{self.first}.bias"], hx, self.f_x.T)
        for i, (rows, numbers) in enumerate(zip(self.rows, self.coefficients, strict=True)):
            noise = None
            if self.maths == "ancestral":
                at = i * self.chunk
                noise = torch.randn(len(rows), s.B, s.D) if eps is None else eps[at:][: len(rows)]
            z = self.advance(self.goal, self.chain, z, share, rows, numbers, noise)
        return z


@torch.inference_mode()
def check_answers(contender: Any) -> list[float]:
    """Compares an answer's first rows with the twin's; returns the seconds of each answer.

    Raises:
        Mismatch: they differ.
    """
    assert isinstance(contender, Sampler)
    problem, seconds = contender.problem, []
    given, used = contender.check_noise()
    z = contender.z_0
    for _ in range(CHECK_CALLS):  # the first compiles
        begin = time.perf_counter()
        z = contender.answer(given)
        seconds.append(time.perf_counter() - begin)
    rows = slice(CHECK_ROWS)
    x, z_0 = problem.X[: problem.shape.B][rows], contender.z_0[rows]
    want = continuous.sample(problem, contender.maths, STEPS, x, z_0, used[:, rows])
    continuous.check_sample(z[rows], want)
    return seconds


def measure(lineup: Lineup, suite: Suite, rounds: int, end: float) -> list[Line]:
    """The rounds' lines, and for ours what an evaluation adds."""
    lines = measure_rounds(lineup, suite, rounds, end)
    turns = {(turn.name, turn.contender.maths): turn for turn in lineup.checked}
    for line in lines:
        line["evaluations"] = STEPS
        if is_ours(line["contender"]):
            turn = turns[line["contender"], line["maths"]]
            line |= linear_of(turn.contender, min(turn.samples[1]))
    return lines


def linear_of(contender: Any, whole: float) -> Line:
    """Milliseconds of one evaluation and of what another adds; an answer over as many of them."""
    times: dict[int, list[float]] = {1: [], 1 + NEXT: []}
    end = time.perf_counter() + PAIR_SECONDS
    while len(times[1]) < LEAST_PAIRS or time.perf_counter() < end:
        for count, found in times.items():
            found.append(milliseconds(contender, count))
    contender.evaluations = STEPS
    first, more = (min(found) for found in times.values())
    more = (more - first) / NEXT
    return {
        "first_ms": first,
        "next_ms": more,
        "over_linear": whole / (first + (STEPS - 1) * more),
    }


def milliseconds(contender: Sampler, evaluations: int) -> float:
    """An answer with so many evaluations."""
    contender.evaluations = evaluations
    begin = time.perf_counter()
    contender.answer()
    return (time.perf_counter() - begin) * 1e3


def table(lines: Sequence[Line]) -> str:
    return plain_table(lines) + "\n\n" + aligned(sampler_rows(lines))


def each(name: str, make: Callable[..., Sampler], **how: Any) -> list[Entry]:
    """A contender with each sampler."""
    return [Entry(name, partial(make, maths=maths), **how) for maths in SAMPLERS]


SUITE = Suite(
    prog="samplers",
    about=__doc__,
    quick="128 rows",
    entries=(
        *each("ours", OursSampler),
        *each("eager", Rival),
        *each("step_compiled", partial(Rival, compiled=True), compiles=True),
        *each(
            "chunk_compiled",
            partial(Rival, compiled=True, chunk=10),
            compiles=True,
            fits=lambda shape: shape.B <= MOST_ROWS_OF_CHUNKS,
        ),
    ),
    shapes=SAMPLER_SHAPES,
    quick_shapes=("small_x128", "paper-mnist_x128"),
    Ks=(1,),
    check=check_answers,
    measure=measure,
    table=table,
    kind="samplers",
    all_threads=True,
)
main = partial(run, SUITE)
