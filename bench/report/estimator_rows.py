"""The table of `bench estimator`."""

from collections.abc import Iterable

from .lines import Line, timed
from .tables import Rows

BEST = {"accuracy": max, "log_loss": min, "fit_seconds": min, "predict_seconds": min}
TEXTS = {"accuracy": "{:.2%}", "log_loss": "{:.4f}"}


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
