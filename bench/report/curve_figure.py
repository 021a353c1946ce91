"""The picture of `bench curves`'s lines."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from .lines import Line, timed

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  # after its backend is chosen

DRAWN = {  # those of the cases that a picture can keep apart
    "CT, snr": "black",
    "CT, snr, cosine rate": "tab:gray",
    "CT, snr, batches of 576": "tab:cyan",
    "CT, snr, gamma 5 to -13.3": "tab:red",
    "CT, snr, gamma 4 to -1": "tab:orange",
    "CT, min-snr 5": "tab:green",
    "CT, min-snr 1": "tab:olive",
    "CT, uniform": "tab:blue",
    "CT, uniform, cosine rate": "tab:purple",
    "FM": "tab:brown",
}


def draw_curves(lines: Sequence[Line]) -> Any:
    """By step: loss, gradient norm and accuracies; by t: weights, squared gradients, errors."""
    found = {line["shape"]: line for line in timed(lines, "curves")}
    chosen = {name: found[name] for name in DRAWN if name in found}
    if not chosen:
        return None
    figure, panels = pyplot.subplots(2, 4, figsize=(17, 7.5), layout="constrained")
    (loss, norm, noise, clean), (weight, square, error, rows) = panels
    for name, line in chosen.items():
        color = DRAWN[name]
        for axes, part in ((loss, "loss"), (norm, "norm")):
            values = line[part]["mean"]
            at = [(i + 0.5) * line["steps"] / len(values) for i in range(len(values))]
            relative(axes, at, values, line[part]["deviation"], color)
        for axes, part in ((noise, "noise"), (clean, "without")):
            band(axes, line["at"], line["accuracy"][part], color)
        early = line["gradients"]["early"]["share"]
        for axes, values in (
            (weight, line["share_of_weight"]),
            (square, early),
            (error, line["error_by_tenth"]),
        ):
            axes.plot([(i + 0.5) / len(values) for i in range(len(values))], values, color=color)
    for axes in (loss, norm, weight, square, error):
        axes.set_yscale("log")
    for axes in (weight, square):
        axes.set_ylim(1e-5, 1.3)
    for axes, low in ((noise, 0.8), (clean, 0.9)):
        axes.set_ylim(low, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    bars(rows, chosen)
    for axes, title, below in (
        (loss, "loss, the first = 1; band: seeds", "step"),
        (norm, "gradient norm, the first = 1; band: seeds", "step"),
        (noise, "accuracy with noise, from 80 % on; band: seeds", "step"),
        (clean, "accuracy without noise, from 90 % on; band: seeds", "step"),
        (weight, "share of the weight", "t, in tenths"),
        (square, "share of the squared gradients, early", "t, in tenths"),
        (error, "squared error on the test rows", "t, in tenths"),
        (rows, "effective rows of a batch", ""),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(below)
    handles = [Line2D([], [], color=DRAWN[name], label=name) for name in chosen]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9)
    return figure


def relative(
    axes: Any, at: Sequence[float], values: Sequence[float], spread: Sequence[float], color: str
) -> None:
    """A curve over its first value, with its spread."""
    first = values[0]
    axes.plot(at, [value / first for value in values], color=color, linewidth=0.9)
    pairs = list(zip(values, spread, strict=True))
    low, high = (
        [
            max(v + sign * s, v / 3) / first  # a log axis
            for v, s in pairs
        ]
        for sign in (-1, 1)
    )
    axes.fill_between(at, low, high, color=to_rgba(color, 0.12), linewidth=0)


def band(axes: Any, at: Sequence[int], points: Sequence[Sequence[float]], color: str) -> None:
    """The mean over seeds at each point, and its least and its most."""
    parts: tuple[Callable[[Sequence[float]], float], ...] = (min, max)
    low, high = ([part(values) for values in points] for part in parts)
    axes.plot(at, [sum(values) / len(values) for values in points], color=color)
    axes.fill_between(at, low, high, color=to_rgba(color, 0.12), linewidth=0)


def bars(axes: Any, chosen: dict[str, Line]) -> None:
    """Effective rows of each case: of the weights, and of the gradients early and late."""
    names = [*chosen]
    places = range(len(names))
    for offset, alpha, of, text in (
        (-0.27, 1.0, lambda line: line["drawn_rows"], "weights"),
        (0.0, 0.6, lambda line: line["rows"] * line["gradients"]["early"]["rows"], "early"),
        (0.27, 0.3, lambda line: line["rows"] * line["gradients"]["late"]["rows"], "late"),
    ):
        values = [of(line) for line in chosen.values()]
        colors = [to_rgba(DRAWN[name], alpha) for name in names]
        axes.barh([place + offset for place in places], values, 0.25, color=colors)
        axes.annotate(
            text,
            (values[0], offset),
            fontsize=7,
            va="center",
            xytext=(2, 0),
            textcoords="offset points",
        )
    axes.set_yticks([])
    axes.invert_yaxis()
