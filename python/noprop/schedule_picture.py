"""A picture of a learned schedule: gamma, SNR and weight over t after several epochs."""

import math
from pathlib import Path
from typing import Any

import torch

from .errors import InputError, extra
from .variants import ct_of

SHOWN = 5  # epochs, evenly spaced, the first and the last among them


def chosen(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most SHOWN of the epochs that have a schedule."""
    known = [line for line in lines if isinstance(line.get("schedule"), dict)]
    if len(known) <= SHOWN:
        return known
    return [known[round(i * (len(known) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def linear(settings: dict[str, Any], points: int) -> dict[str, list[float]]:
    """The straight line between the ends at which the schedule began, as a record of metrics."""
    goal = ct_of(settings | {"schedule": "linear"})
    t = torch.linspace(0, 1, points, dtype=torch.float64, device="cpu")
    return {"gamma": goal.gamma(t).tolist(), "weight": goal.levels(t).weight.tolist()}


def draw(path: Path, settings: dict[str, Any], lines: list[dict[str, Any]]) -> list[int]:
    """Writes the picture, of the kind that the path's ending says.

    Args:
        path: .svg, .png or .pdf.
        settings: of the run.
        lines: of metrics.jsonl.

    Returns:
        The epochs that are drawn.

    Raises:
        InputError: the run has learned no schedule, or pictures have no such ending.
        ImportError: matplotlib is not installed.
    """
    epochs = chosen(lines)
    if settings.get("schedule") != "learned" or not epochs:
        raise InputError("there is no learned schedule to draw: the run has none, or no epoch yet")
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"{path} must end with .svg, .png or .pdf")
    with extra("report"):
        from matplotlib.figure import Figure
    points = len(epochs[0]["schedule"]["gamma"])
    curves: list[tuple[str, Any, dict[str, Any]]]
    curves = [("linear", "black", linear(settings, points))]
    for i, line in enumerate(epochs):
        shade = 0.85 - 0.75 * (i + 1) / len(epochs)
        curves.append((f"epoch {line['epoch']}", (shade, shade, 1.0), line["schedule"]))
    t = torch.linspace(0, 1, points, dtype=torch.float64, device="cpu")
    figure = Figure(figsize=(12, 4), layout="constrained")
    of_gamma, of_snr, of_weight = figure.subplots(1, 3)
    for name, color, values in curves:
        style: dict[str, Any] = {"label": name, "color": color}
        style["linestyle"] = "--" if name == "linear" else "-"
        of_gamma.plot(t, values["gamma"], **style)
        of_snr.plot(t, [math.exp(-gamma) for gamma in values["gamma"]], **style)
        of_weight.plot(t, values["weight"], **style)
    for axes, title in (
        (of_gamma, "gamma(t) = -log SNR(t)"),
        (of_snr, "SNR(t)"),
        (of_weight, f"weight(t), {settings['weight']}"),
    ):
        axes.set_title(title)
        axes.set_xlabel("t, 0 noise, 1 label")
    of_snr.set_yscale("log")
    of_weight.set_yscale("log")
    of_gamma.legend(fontsize="small")
    figure.savefig(path)
    return [line["epoch"] for line in epochs]
