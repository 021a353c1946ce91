"""The records of a suite, its line-up, and contenders that passed their check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..contenders.contender import Contender, Entry
from ..problem.problem import Problem
from ..problem.sizes import Shape
from ..report.lines import Line
from ..report.tables import plain_table


@dataclass
class Checked:
    """A contender that passed its check, and its samples: milliseconds a step, by K."""

    name: str
    contender: Contender
    compile_seconds: float | None
    samples: dict[int, list[float]]


@dataclass
class Lineup:
    """The contenders of one shape at one number of threads, ready to be timed.

    Args:
        problem: their problem.
        base: the common part of their result lines.
        checked: those that passed their check.
        failed: a line for each of the others.
        passed: whether none of those was wrong.
    """

    problem: Problem
    base: Line
    checked: list[Checked]
    failed: list[Line]
    passed: bool = True


@dataclass(frozen=True)
class Suite:
    """The contenders and the settings of a command.

    Args:
        prog, about, quick: the command's name, its description, and what a quick run is.
        entries: the contenders.
        shapes: by name.
        quick_shapes: the names of a quick run.
        Ks: steps a call.
        check: raises unless a new contender is right; returns its calls' seconds, the first first.
        measure: (lineup, suite, rounds, deadline) to result lines.
        table: of those lines, to print.
        kind: of the result lines, where they are not to be compared with those of `bench run`.
        precisions: those that --precision offers.
        all_threads: whether the default of --threads is all cores.
        device: "cpu"; "cuda", where a contender that does not fit into memory is no error; or
            "rehearsal": as on a GPU, but on the CPU.
    """

    prog: str
    about: str | None
    quick: str
    entries: Sequence[Entry]
    shapes: Mapping[str, Shape]
    quick_shapes: Sequence[str]
    Ks: Sequence[int]
    check: Callable[[Contender], list[float]]
    measure: "Callable[[Lineup, Suite, int, float], list[Line]]"
    table: Callable[[Sequence[Line]], str] = plain_table
    kind: str | None = None
    precisions: Sequence[str] = ("float32",)
    all_threads: bool = False
    device: str = "cpu"

    @property
    def tensors_on(self) -> str:
        return "cuda" if self.device == "cuda" else "cpu"
