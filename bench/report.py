"""Tables and a chart from result files: `python -m bench.report FILE.jsonl ... [--readme FILE]`.

The tables go between two markers of the README, so that its figures are never typed by hand. Of
several runs of the same thing the latest counts.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .shapes import INFERENCE_SHAPES, SHAPES

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
OURS = ("ours", "ours_train_step", "ours_sgd")
ORDER = [*SHAPES, *INFERENCE_SHAPES]

Line = dict[str, Any]
Group = tuple[str, int, int]  # shape, threads, K


def read(paths: Iterable[Path]) -> list[Line]:
    """The latest line of each contender, shape, threads, K, kind and machine."""
    latest: dict[tuple, Line] = {}
    for path in paths:
        for text in path.read_text().splitlines():
            line = json.loads(text)
            names = ("contender", "maths", "shape", "threads", "K", "kind")
            key = (*(line.get(name) for name in names), line["machine"]["cpu"])
            if key not in latest or latest[key]["date"] <= line["date"]:
                latest[key] = line
    return list(latest.values())


def timed(lines: Iterable[Line]) -> list[Line]:
    """The lines of contenders that were timed side by side."""
    return [line for line in lines if "error" not in line and line.get("kind") != "memory"]


def groups(lines: Iterable[Line]) -> dict[Group, list[Line]]:
    """Timed lines by shape, threads and K, in the order of the shapes."""
    found: dict[Group, list[Line]] = {}
    for line in timed(lines):
        found.setdefault((line["shape"], line["threads"], line["K"]), []).append(line)
    return dict(sorted(found.items(), key=lambda item: (ORDER.index(item[0][0]), item[0][1:])))


def best_rival(group: Sequence[Line], maths: str) -> Line | None:
    """The fastest line that computes the same and is not ours."""
    rivals = [line for line in group if line["maths"] == maths and line["contender"] not in OURS]
    return min(rivals, key=lambda line: line["ms_per_step"], default=None)


def our_lines(group: Sequence[Line], maths: str) -> list[Line]:
    """Ours in each way of calling it."""
    return [line for line in group if line["maths"] == maths and line["contender"] in OURS]


def mebibytes(line: Line) -> str:
    step = line["memory_bytes"]["step"]
    return "" if step is None else f"{step / 2**20:.1f}"


def plain_table(lines: Sequence[Line]) -> str:
    """Fixed-width text of one run, fastest first; ratio: the best rival's time over the line's."""
    rows: list[tuple[str, ...]] = [
        ("", "contender", "ms/step", "20%", "80%", "peak", "ratio", "compile s", "step MiB")
    ]
    for (_, _, K), group in groups(lines).items():
        for line in sorted(group, key=lambda line: (line["maths"], line["ms_per_step"])):
            best = best_rival(group, line["maths"])
            seconds = line["compile_seconds"]
            rows.append(
                (
                    f"K={K}",
                    line["contender"],
                    *(f"{line[name]:.3f}" for name in ("ms_per_step", "ms_q20", "ms_q80")),
                    f"{line['share_of_peak']:.0%}",
                    f"{best['ms_per_step'] / line['ms_per_step']:.2f}" if best else "",
                    "" if seconds is None else f"{seconds:.0f}",
                    mebibytes(line),
                )
            )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Fixed-width columns, the first two to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def text(row: Sequence[str]) -> str:
        left = [row[i].ljust(widths[i]) for i in (0, 1)]
        return "  ".join(
            [*left, *(cell.rjust(w) for cell, w in zip(row[2:], widths[2:], strict=True))]
        )

    return "\n".join(text(row).rstrip() for row in rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def headline(lines: Sequence[Line], maths: str) -> tuple[str, list[str]]:
    """The table of ours against the best rival, "" without a pair, and where we lose."""
    rows, lost = [], []
    for (shape, threads, K), group in groups(lines).items():
        best = best_rival(group, maths)
        if best is None:
            continue
        for ours in our_lines(group, maths):
            ratio = best["ms_per_step"] / ours["ms_per_step"]
            if ratio < 1:
                name = f"`{ours['contender']}`"
                lost.append(f"`{shape}` ({name}, {threads} threads, K = {K}: {ratio:.2f})")
            rows.append(
                (
                    f"`{shape}`",
                    str(threads),
                    str(K),
                    f"`{ours['contender']}`",
                    f"{ours['ms_per_step']:.2f} ({ours['ms_q20']:.2f} to {ours['ms_q80']:.2f})",
                    f"{best['ms_per_step']:.2f} `{best['contender']}`",
                    f"**{ratio:.2f}**",
                    f"{ours['share_of_peak']:.0%}",
                )
            )
    header = (
        *("shape", "threads", "K", "called", "ours, ms a step (20 to 80 %)"),
        *("best rival, ms", "ratio", "share of peak"),
    )
    return markdown(header, rows) if rows else "", lost


def rivals_table(lines: Sequence[Line], K: int) -> str:
    """Milliseconds a step of every contender at the largest number of threads."""
    threads = max(line["threads"] for line in timed(lines))
    chosen = {
        shape: {line["contender"]: line for line in group}
        for (shape, count, k), group in groups(lines).items()
        if (count, k) == (threads, K)
    }
    names = list(dict.fromkeys(name for group in chosen.values() for name in group))
    failed = {(line["contender"], line["shape"]) for line in lines if "error" in line}
    names += [name for name in dict.fromkeys(n for n, _ in failed) if name not in names]

    def cell(name: str, shape: str) -> str:
        if line := chosen[shape].get(name):
            return f"{line['ms_per_step']:.2f}"
        return "failed" if (name, shape) in failed else ""

    rows = [(f"`{name}`", *(cell(name, shape) for shape in chosen)) for name in names]
    return markdown((f"ms a step, {threads} threads, K = {K}", *(f"`{s}`" for s in chosen)), rows)


def step_table(lines: Sequence[Line], shape: str, threads: int, K: int) -> str:
    """MiB in parts; "step": the most a step adds, of gradients, activations and workspace."""
    rows = []
    for line in groups(lines).get((shape, threads, K), []):
        parts = line["memory_bytes"]
        cells = (f"{parts[name] / 2**20:.1f}" for name in ("weights", "optimizer"))
        rows.append((f"`{line['contender']}`", *cells, mebibytes(line) or "not seen"))
    return markdown((f"MiB, `{shape}`", "weights", "optimizer", "step"), rows)


def memory_rows(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """Header and rows of bench.memory's lines: MiB in parts, and milliseconds a step."""
    parts = ("weights", "gradients", "optimizer", "activations", "workspace")
    rows: list[tuple[str, ...]] = [("shape", "contender", *parts, "RSS growth", "ms/step")]
    for line in lines:
        if line.get("kind") == "memory" and "error" not in line:
            sizes = [line["memory_bytes"][part] for part in (*parts, "rss_growth")]
            cells = (f"{size / 2**20:.1f}" for size in sizes)
            rows.append((line["shape"], line["contender"], *cells, f"{line['ms_per_step']:.2f}"))
    return rows


def highest_peaks(lines: Iterable[Line]) -> dict[int, float]:
    """The machine's multiply-add peak by number of threads: other work can only have lowered it."""
    peaks: dict[int, float] = {}
    for line in lines:
        peaks[line["threads"]] = max(line["peak_gflops"], peaks.get(line["threads"], 0.0))
    return peaks


def rescaled(line: Line, peaks: dict[int, float]) -> Line:
    """A timed line's share of the highest peak."""
    if "share_of_peak" not in line:
        return {}
    return {"share_of_peak": line["share_of_peak"] * line["peak_gflops"] / peaks[line["threads"]]}


def readme_section(lines: Sequence[Line]) -> str:
    """What stands between the markers, for each machine."""
    parts = []
    for cpu in dict.fromkeys(line["machine"]["cpu"] for line in lines):
        own = [line for line in lines if line["machine"]["cpu"] == cpu]
        if not timed(own):
            continue
        last = max(timed(own), key=lambda line: line["date"])
        peaks = highest_peaks(timed(own))
        own = [line | rescaled(line, peaks) for line in own]
        peak = ", ".join(f"{rate:.0f} GF/s on {count}" for count, rate in sorted(peaks.items()))
        parts.append(
            f"{cpu}, {last['machine']['cores']} cores; measured FMA peak {peak}; "
            f"{last['precision']}, torch {last['versions']['torch']}, {last['date'][:10]}, "
            f"commit `{last['commit'][:12]}`. Ratio: the best rival's time over ours."
        )
        titles = {"adamw": "AdamW", "sgd": "SGD", "inference": "Inference, x1 and x1024 rows"}
        for maths, title in titles.items():
            table, lost = headline(own, maths)
            if table:
                parts += [f"{title}:", table]
            if lost:
                parts.append("Slower than the best rival: " + ", ".join(lost) + ".")
        measured = memory_rows(own)
        for answers in (False, True):
            chosen = [line for line in own if (line["maths"] == "inference") is answers]
            if not timed(chosen):
                continue
            K = max(line["K"] for line in timed(chosen))
            threads = max(line["threads"] for line in timed(chosen))
            parts.append(rivals_table(chosen, K))
            if not answers and len(measured) == 1:
                shapes = [s for s in ORDER if (s, threads, K) in groups(chosen)]
                shape = "small" if "small" in shapes else shapes[-1]
                parts.append(step_table(chosen, shape, threads, K))
        if len(measured) > 1:
            parts += ["Memory in MiB:", markdown(measured[0], measured[1:])]
        failed = {line["contender"]: line["error"] for line in own if "error" in line}
        parts += [f"`{name}` was not timed: {text[:200]}" for name, text in failed.items()]
    return "\n\n".join(parts)


def write_readme(path: Path, section: str) -> None:
    """Replaces what stands between the markers.

    Raises:
        ValueError: the file does not have each marker once, in order.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"report: {path} must have {BEGIN} and then {END}, each once")
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{section}\n\n{END}{rest.split(END)[1]}")


def draw_chart(path: Path, lines: Sequence[Line]) -> None:
    """Bars: speed of each contender relative to the best rival, by shape, largest threads and K."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    own = [line for line in timed(lines) if line["maths"] == "adamw"]
    threads, K = (max(line[name] for line in own) for name in ("threads", "K"))
    chosen = {s: g for (s, count, k), g in groups(own).items() if (count, k) == (threads, K)}
    names = list(dict.fromkeys(line["contender"] for group in chosen.values() for line in group))
    figure, axes = pyplot.subplots(figsize=(5 + 2 * len(chosen), 4), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        places, speeds = [], []
        for at, group in enumerate(chosen.values()):
            best = best_rival(group, "adamw")
            line = next((line for line in group if line["contender"] == name), None)
            if best and line:
                places.append(at + (i + 0.5) * width - 0.4)
                speeds.append(best["ms_per_step"] / line["ms_per_step"])
        color = "black" if name in OURS else f"C{i % 10}"
        axes.bar(places, speeds, width, label=name, color=color)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xticks(range(len(chosen)), chosen)
    axes.set_ylabel("speed, best rival = 1")
    axes.set_title(f"AdamW, float32, {threads} threads, K = {K}")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON lines from bench.run")
    parser.add_argument("--readme", type=Path, help="file with the markers; default: print")
    parser.add_argument("--chart", type=Path, help="picture to write (.png, .svg)")
    options = parser.parse_args(arguments)
    lines = read(options.results)
    if not timed(lines):
        parser.error("the result files hold no timings")
    if options.readme:
        write_readme(options.readme, readme_section(lines))
    else:
        print(readme_section(lines))
    if options.chart:
        draw_chart(options.chart, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
