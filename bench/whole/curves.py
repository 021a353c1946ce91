"""Why CT's training is unsteady, and what helps: `python -m bench curves [--quick] [--out FILE]`.

CT and FM on scikit-learn's digits, the MLP block, batches of 128 and Adam, the seeds as replicas of
one object. The first case is the paper's CT between gamma = 6 and -3; the others change one thing,
and some the weight too. Of each case, means over the seeds:

    curves          loss and gradient norm by step, in windows of steps, with their spread over
                    seeds; accuracy on the test rows at ten points, by 100 steps of the sampler,
                    with noise and without it, a class read by the nearest embedding to z_1
    effective rows  (sum w)^2 / sum w^2 of the weights w of a batch's rows, as drawn and in closed
                    form, and of the lengths of their gradients; equal ones have all rows
    noise scale     the batch at which the variance of the mean gradient is its squared length
    by tenth of t   shares of the weights and of the rows' squared gradients, and the squared error
                    of u_hat or v_hat on the test rows
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop.data import load
from noprop.datasets.dataset import Dataset
from noprop_kernels.stack.shared import GAMMA

from ..machine import host
from ..report.cells import aligned
from ..report.curve_rows import curve_rows
from ..report.lines import Line
from ..suites import command
from .row_gradients import (
    drawn_rows,
    effective_rows,
    errors_by_tenth,
    mean_of,
    row_gradients,
    shares,
)

HIDDEN, B, LR, DECAY = 128, 128, 1e-3, 1e-3
STEPS, SEEDS, POINTS, WINDOWS, ANSWER_STEPS = 2000, 5, 10, 100, 100
PROBES = 128  # rows whose gradients are formed one by one, in each tenth of t
ENDS = (GAMMA + "gamma_0", GAMMA + "delta")


@dataclass(frozen=True)
class Case:
    name: str
    goal: nk.CT | nk.FM
    optimizer: nk.Adam = nk.Adam(lr=LR, weight_decay=DECAY)  # noqa: RUF009  # frozen
    cosine: bool = False  # whether the learning rate falls to 0 by a half cosine
    fixed_ends: bool = False  # whether a learned gamma keeps its ends
    rows: int = B


def ends(gamma_0: float, gamma_1: float, weight: Any = "snr") -> nk.CT:
    return nk.CT(nk.Gamma.linear(gamma_0, gamma_1), weight=weight)


def learned(weight: str) -> nk.CT:
    return nk.CT(nk.GammaNetwork(hidden=64), weight=weight)


ADAMW = nk.AdamW(lr=LR, weight_decay=DECAY)
CASES = (
    Case("CT, snr", nk.CT()),
    Case("CT, snr, stratified", nk.CT(stratified=True)),
    Case("CT, snr, AdamW", nk.CT(), ADAMW),
    Case("CT, snr, cosine rate", nk.CT(), cosine=True),
    Case("CT, snr, batches of 576", nk.CT(), rows=576),  # of 128 effective rows
    Case("CT, snr, gamma 5 to -13.3", ends(-13.3, 5)),
    Case("CT, snr, gamma 5 to -2", ends(-2, 5)),
    Case("CT, snr, gamma 4 to -1", ends(-1, 4)),
    Case("CT, snr, gamma learned", learned("snr")),
    Case("CT, snr, gamma learned, ends fixed", learned("snr"), fixed_ends=True),
    Case("CT, min-snr 5", nk.CT(weight=("min-snr", 5))),
    Case("CT, min-snr 1", nk.CT(weight=("min-snr", 1))),
    Case("CT, uniform", nk.CT(weight="uniform")),
    Case("CT, uniform, stratified", nk.CT(weight="uniform", stratified=True)),
    Case("CT, uniform, AdamW", nk.CT(weight="uniform"), ADAMW),
    Case("CT, uniform, cosine rate", nk.CT(weight="uniform"), cosine=True),
    Case("CT, uniform, gamma 4 to -1", ends(-1, 4, "uniform")),
    Case("CT, uniform, gamma learned", learned("uniform")),
    Case("CT, uniform, gamma learned, ends fixed", learned("uniform"), fixed_ends=True),
    Case("FM", nk.FM()),
    Case("FM, stratified", nk.FM(stratified=True)),
    Case("FM, cosine rate", nk.FM(), cosine=True),
)


class Trained:
    """Blocks of a case, one replica for each seed, with what a learned gamma needs."""

    def __init__(self, case: Case, features: int, classes: int, seeds: int) -> None:
        self.case, self.classes = case, classes
        goal, optimizer, seed = case.goal, case.optimizer, list(range(seeds))
        plan = nk.plans.mlp(features, classes, classes, HIDDEN, time=True)
        self.coupled: nk.Coupled | None = None
        self.shared: nk.Shared | None = None
        if isinstance(goal, nk.CT) and isinstance(goal.schedule, nk.GammaNetwork):
            self.shared = nk.Shared(goal, optimizer=optimizer, seed=seed)
        options: dict[str, Any] = {"optimizer": optimizer, "seed": seed, "shared": self.shared}
        self.blocks = nk.DenoisingBlocks(plan, goal, **options)
        if self.shared is not None:
            head = nk.OutputHead(classes, classes, goal=goal, **options)
            self.coupled = nk.Coupled(self.blocks, head, self.shared)
            held = [self.shared.get_parameter(name) for name in ENDS]
            self.held = [(value, value.detach().clone()) for value in held]

    def goal(self, replica: int | None = None) -> Any:
        """The goal with gamma's present values."""
        if self.shared is None:
            return self.case.goal
        return self.shared.present_goal(replica=replica)

    def ends(self) -> list[float]:
        """gamma(0) and gamma(1) of CT, means over replicas; nothing of FM."""
        goal = self.goal()
        return [float(end.mean()) for end in goal.gamma.ends()] if goal.flow == 0 else []

    def step(self, x: Tensor, y: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """One step; its losses and gradient norms, (R,) each."""
        grads = self.blocks.gradients(x, y)
        loss, norm = grads.loss.clone(), grads.norm()
        if self.coupled is None:
            self.blocks.update(grads, lr=lr)
        else:
            self.coupled.step(x, y, lr=lr)
            if self.case.fixed_ends:
                with torch.no_grad():
                    for value, first in self.held:
                        value.copy_(first)
        return loss, norm

    def weights(self) -> tuple[Tensor, Tensor]:
        """t and the weights of the next step's rows, (R, rows) float64 each."""
        t = self.blocks.times(self.case.rows)
        return t, self.goal().levels(t[None]).weight[0].double()

    def accuracies(self, x: Tensor, y: Tensor) -> dict[str, list[float]]:
        """Of each replica, by z_1 and, of CT's chain with noise, by its last estimate."""
        noisy = self.blocks.predict(x, noise=True, steps=ANSWER_STEPS)
        clean = self.blocks.predict(x, noise=False, steps=ANSWER_STEPS)
        answers = {"noise": noisy.z[0], "without": clean.z[0]}
        if isinstance(self.case.goal, nk.CT):
            answers["estimate"] = noisy.u_hat[0]
        right = {name: (value.argmax(-1) == y) for name, value in answers.items()}
        return {name: value.double().mean(-1).tolist() for name, value in right.items()}


def measure(
    case: Case, data: Dataset, steps: int, seeds: int, points: int, probes: int, threads: int
) -> Line:
    """Trains the case and tells all that the module's text lists."""
    begun = time.perf_counter()
    x, x_test = (standardised(part, data.x) for part in (data.x, data.x_test))
    trained = Trained(case, x.shape[1], data.classes, seeds)
    draw = torch.Generator().manual_seed(0)
    loss, norm = torch.empty(2, steps, seeds).unbind(0)
    times, weights = torch.empty(2, steps, seeds, case.rows, dtype=torch.float64).unbind(0)
    at: list[int] = []
    accuracies: list[dict[str, list[float]]] = []
    gradients = {}
    for step in range(steps):
        rows = torch.randint(len(x), (case.rows,), generator=draw)
        lr = LR * (0.5 + 0.5 * math.cos(math.pi * step / steps)) if case.cosine else LR
        times[step], weights[step] = trained.weights()
        loss[step], norm[step] = trained.step(x[rows], data.y[rows], lr)
        done = step + 1
        if done % (steps // points) == 0:
            at.append(done)
            accuracies.append(trained.accuracies(x_test, data.y_test))
        if done in (steps // points, steps):
            found = [
                row_gradients(trained.blocks, trained.goal(r), x, data.y, r, probes)
                for r in range(seeds)
            ]
            gradients["late" if done == steps else "early"] = mean_of(found)
    second = norm[steps // 2 :].double()
    base = host.circumstances(case.name, threads)
    base |= {"kind": "curves", "contender": "ours", "K": None, "data": data.name}
    base |= {"maths": type(case.goal).__name__.lower(), "seeds": seeds, "steps": steps}
    return base | {
        "rows": case.rows,
        "effective_rows": effective_rows(case.goal, case.rows),
        "drawn_rows": drawn_rows(weights, case.rows),
        "share_of_weight": shares(times, weights),
        "gradients": gradients,
        "norm_spread": float((second.std(0) / second.mean(0)).mean()),
        "gamma": trained.ends(),
        "error_by_tenth": errors_by_tenth(trained.blocks, trained.goal(), x_test, data.y_test),
        "loss": windows(loss),
        "norm": windows(norm),
        "at": at,
        "accuracy": {name: [one[name] for one in accuracies] for name in accuracies[0]},
        "seconds": time.perf_counter() - begun,
    }


def standardised(x: Tensor, train: Tensor) -> Tensor:
    """x as float32, of the mean 0 and the deviation 1 over all pixels of the rows `train`."""
    train = train.float()
    return (x.float() - train.mean()) / train.std()


def windows(values: Tensor) -> dict[str, list[float]]:
    """(steps, R) in at most WINDOWS parts: the mean over each, and its deviation over R."""
    parts = [part.double().mean(0) for part in values.tensor_split(min(WINDOWS, len(values)))]
    return {
        "mean": [float(f"{part.mean():.5g}") for part in parts],
        "deviation": [float(f"{part.std():.3g}") for part in parts],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    names = [case.name for case in CASES]
    made = argparse.ArgumentParser(
        prog="python -m bench curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="40 steps, 2 seeds")
    made.add_argument("--case", nargs="+", choices=names, metavar="NAME", help="default all")
    made.add_argument("--steps", type=int, help=f"default {STEPS}")
    made.add_argument("--seeds", type=int, help=f"default {SEEDS}")
    made.add_argument("--threads", type=int, default=host.cores())
    made.add_argument("--out", type=Path, help="append JSON lines to this file")
    options = made.parse_args(arguments)
    steps, seeds, points, probes = (
        (40, 2, 2, 8) if options.quick else (STEPS, SEEDS, POINTS, PROBES)
    )
    options.steps = steps if options.steps is None else options.steps
    options.seeds = seeds if options.seeds is None else options.seeds
    command.check_least(made, options, steps=points, seeds=2, threads=1)
    torch.set_num_threads(options.threads)
    data, lines = load("digits"), []
    for case in CASES:
        if case.name in (options.case or names):
            sizes = options.steps, options.seeds, points, probes
            lines.append(measure(case, data, *sizes, options.threads))
            command.append(options.out, lines[-1:])
    print(aligned(curve_rows(lines), left=1))
    return 0
