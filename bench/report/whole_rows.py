"""The tables of the commands that train whole models."""

from collections.abc import Iterable

from .cells import Rows
from .lines import Line, timed

PART_SECONDS = ("head_seconds", "display_seconds")
REACHED = (("target_epochs", "{}"), ("target_seconds", "{:.2f}"))
BEST = {"accuracy": max, "log_loss": min, "fit_seconds": min, "predict_seconds": min}
TEXTS = {"accuracy": "{:.2%}", "log_loss": "{:.4f}"}


def job_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench job`'s lines: a run's seconds, with their parts."""
    rows: Rows = [
        (
            *("data", "contender", "epochs", "s/epoch", "over the kernels", "head, s"),
            *("display, s", "compile s", "evaluation s", "accuracy", "goal", "epochs to it"),
            "seconds to it",
        )
    ]
    for line in timed(lines, "job"):
        evaluated = line["evaluation_seconds"] is not None
        rows.append(
            (
                *(line["shape"], line["contender"], str(line["epochs"])),
                f"{line['seconds_per_epoch']:.3f}",
                "" if line["added"] is None else f"{line['added']:.1%}",
                *("" if line[part] is None else f"{line[part]:.3f}" for part in PART_SECONDS),
                "" if line["compile_seconds"] is None else f"{line['compile_seconds']:.0f}",
                f"{line['evaluation_seconds']:.2f}" if evaluated else "",
                f"{line['accuracy'][-1]:.2%}" if evaluated else "",
                f"{line['target']:.0%}" if evaluated else "",
                *("" if line[name] is None else text.format(line[name]) for name, text in REACHED),
            )
        )
    return rows


def local_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench local`'s lines: accuracies by block, of each way to answer."""
    rows: Rows = []
    for line in timed(lines, "local"):
        for part, text in (("accuracy_per_block", ""), ("accuracy_of_mean", ", mean of 1 to t")):
            values = line[part]
            if values is None:
                continue
            rows = rows or [
                ("data", "loss of a block", *(f"t = {t + 1}" for t in range(len(values))))
            ]
            cells = (f"{value:.2%}" for value in values)
            rows.append((line["shape"], line["contender"] + text, *cells))
    return rows or [()]


def grid_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench grid`'s lines: our means and the rival's, and the misses."""
    cells: dict[str, dict[str, Line]] = {}
    for line in timed(lines, "grid"):
        cells.setdefault(line["shape"], {})[line["contender"]] = line
    names = ("accuracy", "balanced_accuracy", "log_loss")
    rows: Rows = [("data", "accuracy", "balanced accuracy", "log-loss", "seconds", "missed")]
    for shape, found in cells.items():
        ours, rival = found["ours"], found["logistic_regression"]
        texts = [
            f"{one[name]:.4f}" if name == "log_loss" else f"{one[name]:.2%}"
            for name in names
            for one in (ours, rival)
        ]
        pairs = [f"{mine} ({other})" for mine, other in zip(texts[::2], texts[1::2], strict=True)]
        missed = ", ".join(rival["missed"]).replace("_", " ")
        rows.append((shape, *pairs, f"{ours['seconds']:.1f}", missed))
    return rows


def estimator_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows: each contender on each set, the best of a column with a star."""
    sets: dict[str, dict[str, Line]] = {}
    for line in timed(lines, "estimator"):
        sets.setdefault(line["shape"], {})[line["contender"]] = line
    rows: Rows = [("data", "classifier", "accuracy", "log-loss", "fit, s", "predict, s")]
    for name, found in sets.items():
        best = {key: of(line[key] for line in found.values()) for key, of in BEST.items()}
        for contender, line in found.items():
            texts = (
                TEXTS.get(key, "{:.3g}").format(line[key]) + "*" * (line[key] == best[key])
                for key in BEST
            )
            rows.append((name, contender.replace("_", " "), *texts))
    return rows
