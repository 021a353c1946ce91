"""Times the whole job: `python -m bench job [--data mnist] [--epochs 10] [--quick] [--out FILE]`.

`ours` is the loop of `noprop train --data mnist --preset mlp`: its own order of the rows, pixels as
they are in the file, its progress bar; its time is reported separately for the blocks, the bar and
the output head, which is not part of the comparison. `train_steps` is that loop without the
trainer, the same calls on the same batches, and must end in the same bits. `step_compiled` trains
the same network from the same weights at the same learning rates, fed by torch: pixels normalised
to float32 before the clock starts, shuffled by randperm, gathered by indexing; its compilation is
reported separately.

They take turns epoch by epoch in one process. After each epoch the clock is stopped while both
networks answer the test rows, by the same code: the chain without noise, argmax of z_T.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from noprop.batching import Batches
from noprop.building import Split, build
from noprop.datasets.dataset import Dataset
from noprop.epochs import Epoch, Progress
from noprop.loop import learning_rates
from noprop.model import Model
from noprop.progress import display
from noprop.settings import Settings
from noprop.training import fit
from noprop_kernels import AdamW, philox

from ..contenders.rivals.stacked import split
from ..contenders.rivals.step_compiled import StepCompiled, copy_state, zeros_like
from ..machine import host
from ..problem.problem import Problem, Weights, schedule
from ..problem.sizes import Shape
from ..problem.twin import Mismatch
from ..report.cells import aligned
from ..report.lines import Line
from ..report.whole_rows import job_rows
from ..suites import command
from ..suites.check import check_steps
from ..suites.infer import Stacked
from . import training_options

CLOCK = time.perf_counter
ROWS_AT_ONCE = 1000
NOISE_STEPS = 32  # steps of the rival whose noise is drawn in one call


@dataclass
class Record:
    """The times of one contender, epoch by epoch.

    Attributes:
        seconds: of training its blocks.
        accuracy: on the test rows.
        evaluation: seconds of the evaluation.
    """

    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    evaluation: list[float] = field(default_factory=list)

    def evaluate(self, problem: Problem, weights: Weights, x: Tensor, y: Tensor) -> None:
        begin = CLOCK()
        self.accuracy.append(accuracy(problem, weights, x, y))
        self.evaluation.append(CLOCK() - begin)

    def line(self, target: float) -> Line:
        good = [i for i, value in enumerate(self.accuracy, 1) if value >= target]
        return {
            "epochs": len(self.seconds),
            "epoch_seconds": self.seconds,
            "seconds_per_epoch": statistics.median(self.seconds),
            "accuracy": self.accuracy,
            "evaluation_seconds": statistics.median(self.evaluation) if self.evaluation else None,
            "target": target,
            "target_epochs": good[0] if good else None,
            "target_seconds": sum(self.seconds[: good[0]]) if good else None,
            **dict.fromkeys(("compile_seconds", "head_seconds", "display_seconds", "added")),
        }


@torch.inference_mode()
def accuracy(problem: Problem, weights: Weights, x: Tensor, y: Tensor) -> float:
    """Accuracy: argmax of z_T, from the chain without noise."""
    chain, right = Stacked(replace(problem, weights=weights)), 0
    for rows, labels in zip(x.split(ROWS_AT_ONCE), y.split(ROWS_AT_ONCE), strict=True):
        z_0 = torch.zeros(len(rows), problem.shape.D)
        right += int((chain(rows, z_0).argmax(1) == labels).sum())
    return right / len(x)


class Watch:
    """The trainer's wall clock in parts, and its calls by their number of steps."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance
        self.begin()

    def begin(self) -> None:
        """A new epoch begins now."""
        self.seconds = {"blocks": 0.0, "head": 0.0, "display": 0.0}
        self.calls: list[int] = []
        self.steps_done = 0
        self.since = CLOCK()

    def on_call(self, progress: Progress, samples: int) -> None:
        now = CLOCK()
        steps = progress.block_steps - self.steps_done
        self.seconds["blocks" if steps else "head"] += now - self.since
        if steps:
            self.calls.append(steps)
            self.steps_done += steps
        self.advance(samples)
        self.since = CLOCK()
        self.seconds["display"] += self.since - now


class TrainSteps:
    """The trainer's calls of train_steps without the trainer, to time them alone."""

    def __init__(self, model: Model, content: Dataset, settings: Settings) -> None:
        self.model, self.content, self.settings = model, content, settings
        self.batches = Batches(len(content.x), settings.batch_size, has_norm=False)

    def epoch(self, number: int, calls: Sequence[int]) -> float:
        """Seconds inside train_steps, in calls with these numbers of steps."""
        s, seconds, done = self.settings, 0.0, 0
        order = philox.permutation(s.seed, number, len(self.content.x))
        total = s.epochs * self.batches.steps
        for K in calls:
            indices = self.batches.take(order, done, K)
            first = number * self.batches.steps + done
            lr = learning_rates(s.lr, s.lr_schedule, first, K, total)
            begin = CLOCK()
            self.model.blocks.train_steps(
                self.content.x, self.content.y, indices, lr=lr, normalize=self.model.normalize
            )
            seconds += CLOCK() - begin
            done += K
        return seconds


class RivalJob:
    """step_compiled as its users would train: all else is torch's."""

    def __init__(self, problem: Problem, settings: Settings, threads: int, backend: str) -> None:
        self.problem, self.settings = problem, settings
        self.step = StepCompiled(problem, threads, in_place=True, backend=backend)
        self.batches = Batches(problem.shape.rows, settings.batch_size, has_norm=False)
        seconds = check_steps(self.step)
        begin = CLOCK()
        if self.batches.tail:  # another size compiles another function
            self.step.steps(torch.zeros(1, self.batches.tail, dtype=torch.int64))
        self.compile_seconds = seconds[0] - seconds[-1] + CLOCK() - begin
        params = split(problem.weights)
        copy_state(self.step.state, (params, zeros_like(params), zeros_like(params)))
        self.step.updates = 0

    def epoch(self, number: int) -> float:
        """Seconds of one epoch."""
        s, begin, done, history = self.settings, CLOCK(), 0, []
        order = torch.randperm(self.problem.shape.rows)
        total, first = s.epochs * self.batches.steps, number * self.batches.steps
        while done < self.batches.steps:
            indices = self.batches.take(order, done, NOISE_STEPS)
            rates = learning_rates(s.lr, s.lr_schedule, first + done, len(indices), total)
            eps = self.step.draw(*indices.shape)
            for k, lr in enumerate(rates.tolist()):
                self.step.lr = lr
                history.append(self.step.steps(indices[k : k + 1], eps[k : k + 1]))
            done += len(indices)
        torch.cat(history).sum(0).tolist()  # as any training loop does
        return CLOCK() - begin


def problem_of(model: Model, content: Dataset, settings: Settings) -> Problem:
    """The rival's problem: the model's initial weights, and its rows as float32."""
    blocks, s = model.blocks, settings
    assert isinstance(blocks.optimizer, AdamW)  # what the rival has
    shape = Shape(
        *(s.data, s.batch_size, content.features, s.hidden, blocks.D, blocks.M, s.T),
        rows=len(content.x),
    )
    return Problem(
        *(shape, *schedule(s.T, s.eta)),
        weights={name: p.detach().clone() for name, p in blocks.named_parameters()},
        X=model.features(content.x),
        Y=content.y,
        lr=s.lr,
        weight_decay=s.weight_decay,
    )


def measure(
    content: Dataset, settings: Settings, threads: int, target: float, backend: str = "inductor"
) -> list[Line]:
    """Trains all of them; returns a line each.

    Raises:
        Mismatch: a contender computes something else.
    """
    torch.set_num_threads(threads)
    whole = Split.of(content, 0.0)
    models = [build(settings, content, whole, None) for _ in range(2)]
    model, bare = models[0], TrainSteps(models[1], content, settings)
    problem = problem_of(model, content, settings)
    rival = RivalJob(problem, settings, threads, backend)
    x_test, y_test = model.features(content.x_test), content.y_test
    ours, alone, other = Record(), Record(), Record()
    parts: dict[str, list[float]] = {"head": [], "display": []}
    torch.manual_seed(settings.seed)

    def after_epoch(epoch: Epoch) -> None:
        number, taken = epoch.epoch - 1, watch.seconds
        ours.seconds.append(taken["blocks"] + taken["display"])
        for name, values in parts.items():
            values.append(taken[name])
        ours.evaluate(problem, parameters(model), x_test, y_test)
        alone.seconds.append(bare.epoch(number, watch.calls))
        same = zip(parameters(model).values(), parameters(bare.model).values(), strict=True)
        if not all(torch.equal(a, b) for a, b in same):
            raise Mismatch("train_steps alone ends in other weights than the trainer")
        other.seconds.append(rival.epoch(number))
        other.evaluate(problem, rival.step.weights(), x_test, y_test)
        print(
            f"  epoch {epoch.epoch}: ours {ours.seconds[-1]:.2f} s, {ours.accuracy[-1]:.2%}; "
            f"step_compiled {other.seconds[-1]:.2f} s, {other.accuracy[-1]:.2%}",
            file=stdout,
            flush=True,
        )
        watch.begin()

    rows, stdout = len(content.x), sys.stdout  # which the bar takes
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, force_terminal=True)
        with display(console, epochs=settings.epochs, rows=rows, done=0) as shown:
            watch = Watch(shown.advance)
            fit(
                model,
                *(content.x, content.y),
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                seed=settings.seed,
                lr_schedule=settings.lr_schedule,
                on_call=watch.on_call,
                on_epoch=after_epoch,
            )
    ratios = [a / b for a, b in zip(ours.seconds, alone.seconds, strict=True)]
    more: dict[str, Any] = {f"{name}_seconds": statistics.median(v) for name, v in parts.items()}
    more["added"] = statistics.median(ratios) - 1
    base = host.circumstances(settings.data, threads)
    base |= {"kind": "job", "maths": "adamw", "K": None, "settings": vars(settings)}
    return [
        base | ours.line(target) | more | {"contender": "ours"},
        base | alone.line(target) | {"contender": "train_steps"},
        base
        | other.line(target)
        | {"contender": "step_compiled", "compile_seconds": rival.compile_seconds},
    ]


def parameters(model: Model) -> Weights:
    return {name: value.detach() for name, value in model.blocks.named_parameters()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = training_options.parser("job", __doc__)
    parser.add_argument("--target", type=float, default=0.98, help="test accuracy to reach")
    options, settings, content = training_options.parsed(parser, arguments)
    print(f"{settings.data}, {options.threads} threads", flush=True)
    lines = measure(content, settings, options.threads, options.target)
    print(aligned(job_rows(lines)))
    command.append(options.out, lines)
    return 0
