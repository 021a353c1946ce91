"""Small data beside logistic regression: `python -m bench grid [--quick] [--out FILE]`.

A network of `noprop train`'s defaults, without a head, against scikit-learn's
LogisticRegression(C=1) on standardised features, means over seeds, of

    Gaussian classes   unit variance, means 6 deviations apart, 10,000 fresh test rows: where there
                       are as many features as classes the corners of a simplex, turned at random;
                       else neighbours on a line or on a triangular lattice
    bundled sets       iris, wine, breast_cancer, digits and diabetes in thirds of its target, a
                       fifth of the rows, another one with each seed, being the test

Unbalanced classes have shares in a geometric sequence, the rarest to the most frequent as 8 to 92:
two classes have 8 and 92 %. Missed, with exit status 1, is an accuracy or balanced accuracy more
than a point below the rival's; a log-loss above 1.3 times the rival's, where that is above 0.01;
and 99 % for two Gaussians of one feature in 256 rows.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from noprop.building import Split, build
from noprop.datasets.dataset import Dataset
from noprop.defaults import LR, default_epochs
from noprop.directions import decay_settings
from noprop.model import Model
from noprop.settings import Settings
from noprop.training import fit

from ..machine import host
from ..report.cells import aligned
from ..report.lines import Line
from ..report.whole_rows import grid_rows
from ..suites import command

DISTANCE = 6.0
RAREST, COMMONEST = 0.08, 0.92
TEST_ROWS = 10_000
TEST_FRACTION = 0.2
POINT = 0.01  # an accuracy may be this much below the rival's
LOG_LOSS_RATIO, LOG_LOSS_LEAST = 1.3, 0.01
SEEDS = 5

Measures = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """A problem: `draw` makes its data from a seed; an accuracy of `least` is required."""

    name: str
    draw: Callable[[int], Dataset]
    least: float = 0.0


def means(classes: int, features: int, rng: np.random.Generator) -> np.ndarray:
    """(classes, features): each DISTANCE from its nearest."""
    if features >= classes:
        corners, _ = np.linalg.qr(rng.standard_normal((features, classes)))
        return DISTANCE / math.sqrt(2) * corners.T
    placed = np.zeros((classes, features))
    if features == 1:
        placed[:, 0] = DISTANCE * np.arange(classes)
        return placed
    i, j = np.mgrid[-classes : classes + 1, -classes : classes + 1].reshape(2, -1)
    lattice = DISTANCE * np.stack([i + j / 2, j * math.sqrt(0.75)], 1)
    nearest = np.argsort(np.hypot(*lattice.T).round(6), kind="stable")
    placed[:, :2] = lattice[nearest[:classes]]
    return placed


def gaussians(classes: int, features: int, rows: int, balanced: bool, seed: int) -> Dataset:
    """Training rows and TEST_ROWS fresh ones of the same shares."""
    rng = np.random.default_rng(seed)
    centre = means(classes, features, rng)
    shares = np.ones(classes) if balanced else np.geomspace(RAREST, COMMONEST, classes)

    def draw(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        ends = np.rint(rows * np.cumsum(shares) / shares.sum()).astype(int)
        y = rng.permutation(np.searchsorted(ends, np.arange(rows), side="right"))
        x = centre[y] + rng.standard_normal((rows, features))
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)

    return Dataset("gaussians", *draw(rows), *draw(TEST_ROWS), classes)


def bundled(name: str, seed: int) -> Dataset:
    """One of scikit-learn's sets, a fifth of each class being the test."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name == "diabetes":
        y = np.searchsorted(np.quantile(y, [1 / 3, 2 / 3]), y)
    parts = train_test_split(x, y, test_size=TEST_FRACTION, stratify=y, random_state=seed)
    x, x_test = (torch.from_numpy(part.astype(np.float32)) for part in parts[:2])
    y, y_test = (torch.from_numpy(part.astype(np.int64)) for part in parts[2:])
    return Dataset(name, x, y, x_test, y_test, int(y.max()) + 1)


def gaussian_cell(classes: int, features: int, rows: int, shares: str, least: float = 0.0) -> Cell:
    return Cell(
        f"{classes} classes, {features} features, {rows} rows, {shares}",
        partial(gaussians, classes, features, rows, shares == "balanced"),
        least,
    )


CELLS = (
    gaussian_cell(2, 1, 256, "balanced", least=0.99),
    gaussian_cell(2, 1, 200, "8:92"),
    gaussian_cell(2, 20, 200, "8:92"),
    gaussian_cell(2, 784, 200, "8:92"),
    gaussian_cell(2, 2, 1000, "8:92"),
    gaussian_cell(2, 20, 5000, "8:92"),
    gaussian_cell(3, 1, 200, "balanced"),
    gaussian_cell(3, 2, 200, "balanced"),
    gaussian_cell(3, 784, 200, "balanced"),
    gaussian_cell(3, 20, 200, "8:92"),
    gaussian_cell(3, 784, 1000, "8:92"),
    gaussian_cell(3, 2, 5000, "balanced"),
    gaussian_cell(10, 20, 200, "balanced"),
    gaussian_cell(10, 20, 200, "8:92"),
    gaussian_cell(10, 784, 200, "balanced"),
    gaussian_cell(10, 1, 1000, "balanced"),
    gaussian_cell(10, 2, 1000, "8:92"),
    gaussian_cell(10, 20, 1000, "8:92"),
    gaussian_cell(10, 784, 1000, "balanced"),
    gaussian_cell(10, 784, 5000, "8:92"),
    *(
        Cell(name, partial(bundled, name))
        for name in ("iris", "wine", "breast_cancer", "digits", "diabetes")
    ),
)
QUICK = (CELLS[0].name, CELLS[1].name, "iris")


def ours(data: Dataset, seed: int) -> Measures:
    """A network trained by the defaults."""
    rows, size = len(data.x), Settings.batch_size
    settings = Settings(
        epochs=default_epochs(rows, size),
        lr=LR,
        seed=seed,
        **decay_settings(data.x, data.inputs.channels),
    )
    built = build(settings, data, Split.of(data, 0.0), None)
    model = Model(built.blocks, normalize=built.normalize)  # answers need no head
    fit(
        model,
        data.x,
        data.y,
        epochs=settings.epochs,
        batch_size=size,
        seed=seed,
        lr_schedule=settings.lr_schedule,
        early_weight_decay=settings.early_weight_decay,
    )
    answer = model.predict(data.x_test)
    return measures(data, answer.labels.numpy(), answer.probs.double().numpy())


def rival(data: Dataset, seed: int) -> Measures:
    """LogisticRegression(C=1) on standardised features, to convergence."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1, max_iter=10_000))
    pipeline.fit(data.x.numpy(), data.y.numpy())
    probs = pipeline.predict_proba(data.x_test.numpy())
    return measures(data, probs.argmax(1), probs)


CONTENDERS = {"ours": ours, "logistic_regression": rival}


def measures(data: Dataset, labels: np.ndarray, probs: np.ndarray) -> Measures:
    """Of (rows,) labels and (rows, M) probabilities on the test rows."""
    y = data.y_test.numpy()
    probs = probs / probs.sum(1, keepdims=True)
    return {
        "accuracy": float(accuracy_score(y, labels)),
        "balanced_accuracy": float(balanced_accuracy_score(y, labels)),
        "log_loss": float(log_loss(y, probs, labels=range(data.classes))),
    }


def missed(ours: Measures, rival: Measures, least: float = 0.0) -> list[str]:
    """The means that are worse than allowed."""
    floors = {name: rival[name] - POINT for name in ("accuracy", "balanced_accuracy")}
    floors["accuracy"] = max(floors["accuracy"], least)
    found = [name for name, floor in floors.items() if not ours[name] >= floor]
    compared = rival["log_loss"] > LOG_LOSS_LEAST
    if compared and not ours["log_loss"] <= LOG_LOSS_RATIO * rival["log_loss"]:
        found.append("log_loss")
    return found


def measure(cell: Cell, seeds: int, threads: int) -> list[Line]:
    """A line for each contender: means over the seeds."""
    seconds = dict.fromkeys(CONTENDERS, 0.0)
    found: dict[str, list[Measures]] = {name: [] for name in CONTENDERS}
    for seed in range(seeds):
        data = cell.draw(seed)
        for name, contender in CONTENDERS.items():
            begun = time.perf_counter()
            found[name].append(contender(data, seed))
            seconds[name] += (time.perf_counter() - begun) / seeds
    mean = {
        name: {key: sum(one[key] for one in each) / seeds for key in each[0]}
        for name, each in found.items()
    }
    base = host.circumstances(cell.name, threads)
    base |= {"kind": "grid", "maths": "classes", "K": None, "seeds": seeds}
    return [
        base
        | mean[name]
        | {"contender": name, "seconds": seconds[name]}
        | {"missed": missed(mean["ours"], mean[name], cell.least) if name != "ours" else []}
        for name in CONTENDERS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    names = [cell.name for cell in CELLS]
    made = argparse.ArgumentParser(
        prog="python -m bench grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="three small cells, two seeds")
    made.add_argument("--cell", nargs="+", choices=names, metavar="NAME", help="default all")
    made.add_argument("--seeds", type=int, help=f"default {SEEDS}")
    made.add_argument("--threads", type=int, default=host.cores())
    made.add_argument("--out", type=Path, help="append JSON lines to this file")
    options = made.parse_args(arguments)
    options.seeds = options.seeds if options.seeds is not None else 2 if options.quick else SEEDS
    command.check_least(made, options, seeds=1, threads=1)
    torch.set_num_threads(options.threads)
    wanted = options.cell or (QUICK if options.quick else names)
    lines: list[Line] = []
    for cell in CELLS:
        if cell.name in wanted:
            new = measure(cell, options.seeds, options.threads)
            command.append(options.out, new)
            lines += new
    print(aligned(grid_rows(lines), left=1))
    return int(any(line["missed"] for line in lines))
