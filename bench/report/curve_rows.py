"""The tables of `bench curves`'s lines."""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist, mean, stdev

from .cells import Rows
from .lines import Line, timed

CLASSES = 10  # of the digits
LATE = 5  # points of the second half, over which an accuracy's unsteadiness is taken


def last(line: Line, name: str) -> str:
    """The last accuracy, mean and deviation over seeds."""
    values = line["accuracy"].get(name)
    return f"{mean(values[-1]):.2%} ± {100 * stdev(values[-1]):.2f}" if values else ""


def unsteady(points: Sequence[Sequence[float]]) -> float:
    """Deviation of a replica's accuracy over the later points, the mean over replicas."""
    late = points[-LATE:]
    return mean(stdev(values) for values in zip(*late, strict=True)) if len(late) > 1 else 0.0


def ceiling(line: Line) -> str:
    """How often the embedding nearest to z_1 ~ q(z_1 | y) is u_y: what noise leaves of CT."""
    if not line["gamma"]:
        return ""
    return f"{nearest(math.exp(-line['gamma'][1] / 2), CLASSES):.2%}"


def nearest(distance: float, classes: int) -> float:
    """How often a normal number of the mean `distance` is above classes - 1 of the mean 0.

    The integral of phi(e) Phi(e + distance)^(classes - 1).
    """
    normal, step = NormalDist(), 0.01
    at = [step * i for i in range(-800, 801)]
    return step * sum(normal.pdf(e) * normal.cdf(e + distance) ** (classes - 1) for e in at)


def scale(value: float) -> str:
    """A noise scale; what the probes cannot tell from no mean gradient at all is not a number."""
    return f"{value:,.0f}" if value > 0 else "no mean seen"


def curve_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of all cases."""
    rows: Rows = [
        (
            *("case", "effective rows of weights, closed form (drawn)"),
            *("of gradients, early, late", "weight in t < .5, t > .9"),
            *("squared gradients there, early", "noise scale, early", "off by strata"),
            *("norm's deviation", "error at t < .1", "with noise", "its ceiling"),
            *("its last estimate", "without noise", "unsteady"),
        )
    ]
    for line in timed(lines, "curves"):
        early, late = line["gradients"]["early"], line["gradients"]["late"]
        closed, weight, squares = line["effective_rows"], line["share_of_weight"], early["share"]
        rows.append(
            (
                line["shape"],
                f"{'none' if closed is None else f'{closed:.1f}'} ({line['drawn_rows']:.1f})",
                f"{line['rows'] * early['rows']:.0f}, {line['rows'] * late['rows']:.0f}",
                f"{sum(weight[:5]):.1%}, {weight[-1]:.1%}",
                f"{sum(squares[:5]):.1%}, {squares[-1]:.1%}",
                scale(early["noise_scale"]),
                f"{early['stratified_off']:.1%}",
                f"{line['norm_spread']:.2f}",
                f"{line['error_by_tenth'][0]:.3f}",
                last(line, "noise"),
                ceiling(line),
                last(line, "estimate"),
                last(line, "without"),
                f"{100 * unsteady(line['accuracy']['noise']):.2f}",
            )
        )
    return rows
