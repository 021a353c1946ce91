"""scikit-learn's classifiers beside ours: `python -m bench estimator [--quick] [--out FILE]`.

noprop.NoPropClassifier, MLPClassifier, HistGradientBoostingClassifier and LogisticRegression, each
by its defaults (LogisticRegression with 1,000 iterations at most), those of dense products on
standardised features, on

    bundled sets       iris, wine, breast_cancer and digits, a fifth of the rows, another one with
                       each seed, being the test
    mnist              60,000 rows, and the published test rows

Accuracy and log-loss on the test rows and the times are means over seeds. A contender's fit is
timed once a seed, its predict_proba of the test rows as the least of three; all take turns.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import noprop
from noprop import data as published
from noprop.datasets.dataset import Dataset

from ..machine import host
from ..report.cells import aligned
from ..report.lines import Line
from ..report.whole_rows import estimator_rows
from ..suites import command
from .grid import bundled

SETS = ("iris", "wine", "breast_cancer", "digits", "mnist")
QUICK = ("iris",)
SEEDS = 5
PREDICTIONS = 3

Measures = dict[str, float]


def of_set(name: str, seed: int) -> Dataset:
    return published.load("mnist") if name == "mnist" else bundled(name, seed)


def logistic_regression(seed: int) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def mlp(seed: int) -> Any:
    return make_pipeline(StandardScaler(), MLPClassifier(random_state=seed))


CONTENDERS: dict[str, Callable[[int], Any]] = {
    "ours": lambda seed: noprop.NoPropClassifier(random_state=seed),
    "mlp": mlp,
    "hist_gradient_boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "logistic_regression": logistic_regression,
}


def measured(model: Any, data: Dataset) -> Measures:
    """Trains a model, and tests it."""
    x, x_test = (part.flatten(1).numpy().astype(np.float32) for part in (data.x, data.x_test))
    y, y_test = data.y.numpy(), data.y_test.numpy()
    begun = time.perf_counter()
    model.fit(x, y)
    fit_seconds = time.perf_counter() - begun
    seconds = []
    for _ in range(PREDICTIONS):
        begun = time.perf_counter()
        probs = model.predict_proba(x_test)
        seconds.append(time.perf_counter() - begun)
    # float32 probabilities add up to 1 in float32 alone
    probs = np.asarray(probs, np.float64)
    return {
        "accuracy": float(accuracy_score(y_test, model.classes_[probs.argmax(1)])),
        "log_loss": float(log_loss(y_test, probs / probs.sum(1, keepdims=True))),
        "fit_seconds": fit_seconds,
        "predict_seconds": min(seconds),
    }


def measure(name: str, contenders: Sequence[str], seeds: int, threads: int) -> list[Line]:
    """A line for each contender: means over the seeds."""
    found: dict[str, list[Measures]] = {contender: [] for contender in contenders}
    base = host.circumstances(name, threads) | {"kind": "estimator", "maths": "classes", "K": None}
    data = of_set(name, 0)
    for seed in range(seeds):
        data = of_set(name, seed)
        for contender in contenders:
            found[contender].append(measured(CONTENDERS[contender](seed), data))
    rows = {"seeds": seeds, "train_rows": len(data.x), "test_rows": len(data.x_test)}
    return [
        base
        | rows
        | {"contender": contender}
        | {key: sum(one[key] for one in each) / seeds for key in each[0]}
        for contender, each in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(
        prog="python -m bench estimator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="iris alone, one seed")
    made.add_argument("--data", nargs="+", choices=SETS, metavar="NAME", help="default all")
    made.add_argument("--contender", nargs="+", choices=CONTENDERS, metavar="NAME")
    made.add_argument("--seeds", type=int, help=f"default {SEEDS}")
    made.add_argument("--threads", type=int, default=host.cores())
    made.add_argument("--out", type=Path, help="append JSON lines to this file")
    options = made.parse_args(arguments)
    options.seeds = options.seeds if options.seeds is not None else 1 if options.quick else SEEDS
    command.check_least(made, options, seeds=1, threads=1)
    torch.set_num_threads(options.threads)
    lines: list[Line] = []
    with threadpool_limits(options.threads):
        for name in options.data or (QUICK if options.quick else SETS):
            chosen = options.contender or [*CONTENDERS]
            new = measure(name, chosen, options.seeds, options.threads)
            command.append(options.out, new)
            lines += new
    print(aligned(estimator_rows(lines), left=2))
    return 0
