"""Pictures of result files: `python -m bench figures FILE.jsonl ... --out FOLDER`.

Writes the pictures for which the files have lines: cpu.png, the speed of every contender beside the
best rival's; roofline.png, rate over arithmetic intensity, and shares of the peak; scaling.png,
time a step over T, B and H beside its floor; curves.png, what `bench curves` tells of CT and FM.
Needs matplotlib.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from ..problem.sizes import SCALES, scaled
from .curve_figure import draw_curves
from .lines import (
    Line,
    best_rival,
    floor_ms,
    groups,
    highest_peaks,
    is_ours,
    read,
    rescaled,
    timed,
    traffic,
)

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  # after its backend is chosen

STATE_MATHS = ("adamw", "sgd")
MARKERS = "osD^vP*X"
COLORS = ("blue", "orange", "green", "red", "purple", "brown", "pink", "olive", "cyan")  # no gray


def color(name: str, names: Sequence[str]) -> str:
    """Black is ours."""
    return "black" if is_ours(name) else f"tab:{COLORS[names.index(name) % len(COLORS)]}"


def at_most_threads(lines: Sequence[Line], kind: str | None) -> dict[str, list[Line]]:
    """Groups by shape: those of the largest number of threads, and there of the largest K."""
    found = groups(lines, kind)
    threads = max((group[1] for group in found), default=0)
    return {shape: group for (shape, count, _), group in found.items() if count == threads}


def contenders(shapes: dict[str, list[Line]]) -> list[str]:
    return list(dict.fromkeys(line["contender"] for group in shapes.values() for line in group))


def draw_speed(lines: Sequence[Line]) -> Any:
    """Bars: speed of each contender relative to the best rival, by shape."""
    shapes = at_most_threads([line for line in lines if line.get("maths") == "adamw"], None)
    if not shapes:
        return None
    names, first = contenders(shapes), next(iter(shapes.values()))[0]
    figure, axes = pyplot.subplots(figsize=(5 + 2 * len(shapes), 4), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        places, speeds = [], []
        for at, group in enumerate(shapes.values()):
            best = best_rival(group, "adamw")
            line = next((line for line in group if line["contender"] == name), None)
            if best and line:
                places.append(at + (i + 0.5) * width - 0.4)
                speeds.append(best["ms_per_step"] / line["ms_per_step"])
        axes.bar(places, speeds, width, label=name, color=color(name, names))
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xticks(range(len(shapes)), [f"{s}, K = {g[0]['K']}" for s, g in shapes.items()])
    axes.set_ylabel("speed, best rival = 1")
    axes.set_title(f"AdamW, {first['precision']}, {first['threads']} threads")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_roofline(lines: Sequence[Line]) -> Any:
    """Rate over arithmetic intensity under the roof of this machine, and shares of the peak.

    The intensity of a step is its products' operations over the bytes of weights and moments that
    it reads and writes once each at K = 1, whatever a contender really moves; so all contenders of
    one shape and optimizer are in one column. One roof is memory's, the other that of the cache
    into which the state of one of the shapes fits.
    """
    chosen = [line for line in lines if line.get("maths") in STATE_MATHS]
    shapes = at_most_threads(chosen, None)
    if not shapes:
        return None
    names, every = contenders(shapes), [line for group in shapes.values() for line in group]
    figure, (roof, bars) = pyplot.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    peak = max(line["peak_gflops"] for line in every)
    copies = {"copy": (max(line["copy_gb_s"] for line in every), "-")}
    if states := [line["state_gb_s"] for line in every if "state_gb_s" in line]:
        copies["copy of a state's size"] = max(states), "--"
    spots = [(line["flop_per_step"] / traffic(line), line) for line in every]
    reach = [min(x for x, _ in spots) / 4, max(x for x, _ in spots) * 4]
    for name, (rate, style) in copies.items():
        xs = sorted([*reach, peak / rate])
        label = f"{name}, {rate:.0f} GB/s"
        roof.plot(xs, [min(peak, rate * x) for x in xs], style, color="gray", label=label)
    roof.annotate(f"peak {peak:.0f} GF/s", (reach[1], peak), ha="right", va="bottom", fontsize=9)
    for at, (shape, group) in enumerate(shapes.items()):
        marker = MARKERS[at % len(MARKERS)]
        roof.plot([], [], marker, color="gray", label=shape)
        for line in group:
            rate = line["flop_per_step"] / (line["ms_per_step"] * 1e6)
            x = line["flop_per_step"] / traffic(line)
            roof.plot(x, rate, marker, color=color(line["contender"], names), markersize=5)
    roof.set_xscale("log")
    roof.set_yscale("log")
    roof.set_xlabel("operations per byte of weights and moments, read and written once a step")
    roof.set_ylabel("GF/s")
    roof.legend(fontsize="small", loc="lower right")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        found = [
            (at + (i + 0.5) * width - 0.4, line["share_of_peak"])
            for at, group in enumerate(shapes.values())
            for line in group
            if line["contender"] == name
        ]
        places, shares = zip(*found, strict=True)
        bars.bar(places, shares, width, label=name, color=color(name, names))
    bars.set_xticks(range(len(shapes)), shapes)
    bars.set_ylabel("share of the multiply-add peak")
    bars.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{every[0]['precision']}, {every[0]['threads']} threads")
    return figure


def draw_scaling(lines: Sequence[Line]) -> Any:
    """Milliseconds a step over T, B and H, each contender's and the floor's."""
    shapes = at_most_threads(lines, "scaling")
    if not shapes:
        return None
    names = contenders(shapes)
    figure, panels = pyplot.subplots(1, len(SCALES), figsize=(13, 4), layout="constrained")
    for axes, (axis, values) in zip(panels, SCALES.items(), strict=True):
        groups_here = [(v, shapes.get(scaled(axis, v).name, [])) for v in values]
        for name in names:
            found = [
                (value, line["ms_per_step"])
                for value, group in groups_here
                for line in group
                if line["contender"] == name
            ]
            if found:
                axes.plot(*zip(*found, strict=True), "o-", label=name, color=color(name, names))
        floors = [(value, floor_ms(group[0])) for value, group in groups_here if group]
        if floors:
            axes.plot(*zip(*floors, strict=True), "--", color="gray", label="floor")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(values, map(str, values))
        axes.set_xlabel(axis)
    panels[0].set_ylabel("ms a step")
    panels[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    first = next(iter(shapes.values()))[0]
    figure.suptitle(
        f"`small` with another T, B or H: AdamW, {first['precision']}, "
        f"{first['threads']} threads, K = {first['K']}"
    )
    return figure


FIGURES: dict[str, Callable[[Sequence[Line]], Any]] = {
    "cpu.png": draw_speed,
    "roofline.png": draw_roofline,
    "scaling.png": draw_scaling,
    "curves.png": draw_curves,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench figures", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON lines of the other commands")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--precision", default="float32", help="of the lines that are drawn")
    options = parser.parse_args(arguments)
    lines = [line for line in read(options.results) if line["precision"] == options.precision]
    whole = [line for line in lines if "peak_gflops" in line and "error" not in line]
    peaks = highest_peaks(whole)
    whole = [rescaled(line, peaks) for line in whole] + timed(lines, "curves")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        if figure := draw(whole):
            figure.savefig(options.out / name)
            pyplot.close(figure)
            print(options.out / name)
    return 0
