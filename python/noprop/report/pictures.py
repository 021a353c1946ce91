"""Pictures as data of an <img>: each function draws one figure, and what it shows is told in words.

Colours are those of viridis and of Okabe and Ito, which the colour-blind can tell apart.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from ..errors import extra
from .answers import Answers
from .paths import Paths

with extra("report"):
    import matplotlib
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

P = ParamSpec("P")

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    *("#0072b2", "#d55e00", "#009e73", "#a50f15", "#cc79a7", "#56b4e9"),
)
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#8c6d00")
WIDTH = 7.2  # inches; a page's column is 720 pixels wide
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.hashsalt": "noprop",  # equal pictures have equal bytes
    "text.parse_math": False,  # a class may be named "$"
}
MOST_LINES = 12  # with names of their own
MOST_WRITTEN = 20  # classes whose counts are written into the matrix
MOST_LETTERS = 14  # of a class' name in a picture


@dataclass(frozen=True)
class Picture:
    """An image for a page.

    Attributes:
        source: a data URI.
        alt: what it shows, in words.
    """

    source: str
    alt: str


def picture(draw: Callable[Concatenate[Figure, P], str]) -> Callable[P, Picture]:
    """Makes a function that draws into a Figure and returns the words one that returns both."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Picture:
        with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
            figure = Figure(layout="constrained")
            alt, data = draw(figure, *args, **kwargs), io.BytesIO()
            figure.savefig(data, format="svg", metadata={"Date": None})
        text = base64.b64encode(data.getvalue()).decode()
        return Picture(f"data:image/svg+xml;base64,{text}", alt)

    return drawn


def short(name: str) -> str:
    """A name without its middle where it is long: numbered names differ at their ends."""
    half = MOST_LETTERS // 2
    return name if len(name) <= MOST_LETTERS else f"{name[:half]}…{name[1 - half :]}"


def powers_of_ten(axes: Any) -> None:
    """A logarithmic y axis; matplotlib's own numbers on one need its parser of formulas."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def shades(count: int) -> list[Any]:
    """Colours from the first to the last block, none too light for a white page."""
    return [matplotlib.colormaps["viridis"](0.9 * i / max(count - 1, 1)) for i in range(count)]


@picture
def losses(
    figure: Figure, epochs: Sequence[int], by_name: dict[str, list[list[float | None]]]
) -> str:
    """Each kind of loss by epoch, a line a block.

    Args:
        epochs: their numbers.
        by_name: lists by epoch, of each block's.
    """
    figure.set_size_inches(WIDTH, 3.6)
    T = len(next(iter(by_name.values()))[0])
    grid = figure.subplots(1, len(by_name), squeeze=False)[0]
    for axes, (name, values) in zip(grid, by_name.items(), strict=True):
        for t, color in enumerate(shades(T)):
            line = [float("nan") if each[t] is None else each[t] for each in values]
            label = f"block {t + 1}" if T <= MOST_LINES or t in (0, T // 2, T - 1) else None
            axes.plot(epochs, line, color=color, label=label, marker="o", markersize=3)
        powers_of_ten(axes)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if T > 1:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center")
    return f"Lines of {' and '.join(by_name)} of {T} blocks over {len(epochs)} epochs."


@picture
def accuracy_by_epoch(figure: Figure, epochs: Sequence[int], name: str, shares: list[float]) -> str:
    figure.set_size_inches(WIDTH, 3)
    axes = figure.subplots()
    axes.plot(epochs, shares, color=BLUE, marker="o", markersize=3)
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return f"{name} from {shares[0]:.1%} after epoch {epochs[0]} to {shares[-1]:.1%} at last."


@picture
def accuracies(
    figure: Figure, x_label: str, xs: Sequence[float], by_name: dict[str, Any], *, log: bool = False
) -> str:
    """Lines of accuracies: by_name has values for some or all xs, None where there is none."""
    figure.set_size_inches(WIDTH, 3.4)
    axes = figure.subplots()
    for (name, shares), color, marker in zip(by_name.items(), COLORS, "osD^vP", strict=False):
        known = [(x, share) for x, share in zip(xs, shares, strict=True) if share is not None]
        axes.plot(*zip(*known, strict=True), color=color, marker=marker, markersize=5, label=name)
    if log:
        axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        axes.minorticks_off()
    elif len(xs) <= MOST_WRITTEN:
        axes.set_xticks(xs)
    axes.set_xlabel(x_label)
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="best")
    return f"Lines of test accuracy by {x_label}: {', '.join(by_name)}."


@picture
def confusion(figure: Figure, answers: Answers, names: Sequence[str]) -> str:
    """Shares of each true class by the answered one; the counts where there is room for them."""
    counts, M = answers.confusion, len(names)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure.set_size_inches(WIDTH, WIDTH * 0.83)
    axes = figure.subplots()
    axes.grid(False)
    norm = PowerNorm(0.5, 0, 1)  # rare mistakes show too
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=norm)
    some = range(M) if M <= MOST_WRITTEN else range(0, M, -(-M // MOST_WRITTEN))
    labels = [short(names[i]) for i in some]
    upright = max(map(len, labels)) > 3
    axes.set_xticks(some, labels, rotation=90 if upright else 0)
    axes.set_yticks(some, labels)
    axes.set_xlabel("answered class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    size = 10 if M <= 12 else 7.5
    for y, row in enumerate(counts.tolist() if M <= MOST_WRITTEN else []):
        for x, count in enumerate(row):
            color = "white" if shares[y, x] > 0.4 else "black"
            if count:
                axes.text(x, y, f"{count:,}", ha="center", va="center", color=color, fontsize=size)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("of the true class")
    return f"Confusion matrix of {M} classes; {answers.accuracy:.2%} of the rows on its diagonal."


@picture
def reliability(figure: Figure, answers: Answers) -> str:
    """Accuracy by confidence, over how many rows have it."""
    figure.set_size_inches(WIDTH, 5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], "--", color="gray", label="as right as sure")
    some = [each for each in answers.bins if each.rows]
    width = some[0].high - some[0].low
    middles = [(each.low + each.high) / 2 for each in some]
    shares = [each.accuracy for each in some]
    above.bar(middles, shares, width * 0.92, color=SKY, label="right answers of a bin")
    confidences = [each.confidence for each in some]
    above.plot(confidences, shares, "o", color=BLUE, label="at the bin's mean confidence")
    above.set_ylabel("accuracy")
    above.set_xlim(0, 1)
    above.set_ylim(0, 1.02)
    above.legend(loc="upper left")
    below.bar(middles, [each.rows for each in some], width * 0.92, color="gray")
    powers_of_ten(below)
    below.set_ylim(bottom=0.5)
    below.set_ylabel("rows")
    below.set_xlabel("confidence, the probability of the answered class")
    return (
        f"Reliability diagram: accuracy by confidence in {len(some)} bins that have rows; expected "
        f"calibration error {answers.calibration_error:.4f}."
    )


@picture
def plane(figure: Figure, paths: Paths, y: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """The ways on a plane: without noise, and a drawn one of each row."""
    figure.set_size_inches(WIDTH, 4.6)
    onto, columns = paths.plane(), figure.subplots(1, 2)
    places = paths.W_embed @ onto
    for axes, ways, title in (
        (columns[0], paths.quiet @ onto, "without noise, the answer"),
        (columns[1], paths.drawn[:, :, 0] @ onto, "drawn, from z_0 ~ N(0, I)"),
    ):
        axes.plot(*places.T, ".", color="#b0b0b0", markersize=5)
        for row in range(len(y)):
            color, way = COLORS[row % len(COLORS)], ways[:, row]
            own, answered = int(y[row]), int(labels[row])
            style, label = "-", short(names[own])
            if answered != own:
                style, label = "--", f"{label}, answered {short(names[answered])}"
            axes.plot(*way.T, style, color=color, linewidth=1.5, label=label)
            axes.plot(*way.T, ".", color=color, markersize=4)
            axes.plot(*way[-1], "s", color=color, markersize=6)
            axes.plot(*places[own], "*", color=color, markersize=13, mec="black", zorder=3)
        axes.set_title(title)
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.08)
    handles = columns[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    return (
        f"Ways of z_t of {len(y)} test rows over the plane of the embeddings (dots, stars of "
        "the rows' own classes), without noise and drawn; squares are the last z, dashed ways "
        "those of wrong answers."
    )


@picture
def distances(
    figure: Figure,
    paths: Paths,
    rows: Sequence[int],
    y: Tensor,
    labels: Tensor,
    names: Sequence[str],
    t_name: str,
) -> str:
    """Of each row |z_t - u_y| to every class over t."""
    height = -(-len(y) // 2)
    figure.set_size_inches(WIDTH, 2.2 * height + 0.6)
    every, drawn = paths.distances(), paths.drawn_distances()
    grid = figure.subplots(height, 2, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, row, number in zip(grid, range(len(y)), rows, strict=False):
        own, answered = int(y[row]), int(labels[row])
        axes.plot(paths.t, drawn[:, row, :, own], color=BLUE, linewidth=0.8, linestyle="--")
        others = [label for label in range(len(names)) if label not in (own, answered)]
        if others:
            axes.plot(paths.t, every[:, row, others], color="#c4c4c4", linewidth=0.8)
        axes.plot(paths.t, every[:, row, own], color=BLUE, linewidth=2.2)
        title = f"row {number:,}: {short(names[own])}"
        if answered != own:
            axes.plot(paths.t, every[:, row, answered], color=ORANGE, linewidth=2.2)
            title = f"{title},\nanswered {short(names[answered])}"
        axes.set_title(title, fontsize=10)
    for axes in grid[len(y) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], color=BLUE, linewidth=2.2, label="the true class"),
        Line2D([], [], color=BLUE, linewidth=0.8, linestyle="--", label="the same, drawn"),
        Line2D([], [], color=ORANGE, linewidth=2.2, label="a wrong answer"),
        Line2D([], [], color="#c4c4c4", label="other classes"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    figure.supxlabel(t_name, fontsize=11)
    figure.supylabel("distance of z_t to an embedding", fontsize=11)
    return f"Distance of z_t to the embedding of every class over t, of {len(y)} test rows."


@picture
def images(figure: Figure, x: Tensor, shape: tuple[int, int, int], titles: Sequence[str]) -> str:
    """Rows that are images, under their titles.

    Args:
        x: (rows, F) bytes or numbers.
        shape: (C, H, W) of a row; of C = 3 red, green and blue, else the first channel shows.
    """
    columns = 4
    rows = -(-len(x) // columns)
    figure.set_size_inches(WIDTH, 2.15 * rows)
    pixels = x.reshape(-1, *shape).movedim(1, -1).double()
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, image, title in zip(grid, pixels, titles, strict=False):
        low, high = (0.0, 255.0) if x.dtype == torch.uint8 else image.aminmax()
        image = ((image - low) / (high - low + 1e-12)).numpy()
        axes.imshow(image if shape[0] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9.5)
    for axes in grid:
        axes.set_axis_off()
    return f"{len(x)} test images: {'; '.join(titles)}.".replace("\n", " ")
