"""Result lines as tables: fixed-width text for a terminal, markdown for a page."""

from collections.abc import Iterable, Sequence

from ..problem.sizes import TARGETS
from .lines import Line, best_rival, floor_ms, floor_share, groups, is_ours, our_lines, timed

Rows = list[tuple[str, ...]]

PART_SECONDS = ("head_seconds", "display_seconds")
REACHED = (("target_epochs", "{}"), ("target_seconds", "{:.2f}"))


def aligned(rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Fixed-width columns, the first `left` of them to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def text(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(cells)
        )

    return "\n".join(text(row).rstrip() for row in rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def mebibytes(line: Line) -> str:
    step = line["memory_bytes"]["step"]
    return "" if step is None else f"{step / 2**20:.1f}"


def milliseconds(value: float) -> str:
    """A number with at least three significant digits."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def spread(line: Line) -> str:
    return (
        f"{milliseconds(line['ms_per_step'])} "
        f"({milliseconds(line['ms_q20'])} to {milliseconds(line['ms_q80'])})"
    )


def ranged(line: Line, name: str) -> str:
    """A number of the line, with its range where the line has one; "" without the number."""
    ends = [f"{line[end]:.2f}" for end in (f"{name}_q20", f"{name}_q80") if end in line]
    text = f"{line[name]:.2f}" if name in line else ""
    return f"{text} ({' to '.join(ends)})" if ends else text


def share(line: Line, name: str) -> str:
    return "" if line.get(name) is None else f"{line[name]:.0%}"


def plain_table(lines: Sequence[Line]) -> str:
    """One run, fastest first; ratio: the best rival's time over the line's."""
    rows: Rows = [
        (
            *("", "maths", "contender", "ms/step", "20%", "80%"),
            *("peak", "copy", "ratio", "compile s", "step MiB"),
        )
    ]
    for kind in dict.fromkeys(line.get("kind") for line in lines):
        for (_, _, K), group in groups(lines, kind).items():
            for line in sorted(group, key=lambda line: (line["maths"], line["ms_per_step"])):
                best = best_rival(group, line["maths"])
                seconds = line["compile_seconds"]
                times = (line[name] for name in ("ms_per_step", "ms_q20", "ms_q80"))
                rows.append(
                    (
                        *(f"K={K}", line["maths"], line["contender"]),
                        *(f"{time:.3f}" if time >= 1 else f"{time:.4f}" for time in times),
                        *(share(line, "share_of_peak"), share(line, "share_of_copy")),
                        f"{best['ms_per_step'] / line['ms_per_step']:.2f}" if best else "",
                        "" if seconds is None else f"{seconds:.0f}",
                        mebibytes(line),
                    )
                )
    return aligned(rows, left=3)


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


def target_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows: `ours` on a CPU in float32, all threads, beside its goals."""
    rows: Rows = [("shape", "K", "ratio", "aim", "share of peak", "aim", "at the floor")]
    own = [line for line in lines if line.get("precision") == "float32" and "state_gb_s" in line]
    found = groups(line for line in own if not line["machine"].get("gpu"))
    for shape, (ratio, share_of_peak) in TARGETS.items():
        keys = [(threads, K) for name, threads, K in found if name == shape and K >= 50]
        group = found[shape, *max(keys)] if keys else []
        best = best_rival(group, "adamw")
        for ours in our_lines(group, "adamw") if best else []:
            measured = f"{best['ms_per_step'] / ours['ms_per_step']:.2f}"
            shares = (ours["share_of_peak"], share_of_peak, floor_share(ours))
            cells = (measured, f"{ratio:.2f}", *(f"{each:.0%}" for each in shares))
            rows.append((f"`{shape}`", str(ours["K"]), *cells))
    return rows


def rivals_table(lines: Sequence[Line], K: int) -> str:
    """Milliseconds a step of every contender at the largest number of threads."""
    threads = max(line["threads"] for line in timed(lines))
    chosen = {
        shape: {line["contender"]: line for line in group}
        for (shape, count, k), group in groups(lines).items()
        if (count, k) == (threads, K)
    }
    names = list(dict.fromkeys(name for group in chosen.values() for name in group))
    failed = {
        (line["contender"], line["shape"])
        for line in lines
        if "error" in line and not line.get("kind") and line["shape"] in chosen
    }
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


def memory_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench memory`'s lines: MiB in parts, and milliseconds a step.

    "a thread": the part of the workspace that each thread has.
    """
    parts = ("weights", "gradients", "optimizer", "activations", "workspace")
    rows: Rows = [("shape", "contender", *parts, "a thread", "RSS growth", "ms/step")]
    for line in timed(lines, "memory"):
        sizes = [line["memory_bytes"].get(part) for part in (*parts, "thread", "rss_growth")]
        cells = ("" if size is None else f"{size / 2**20:.1f}" for size in sizes)
        rows.append((line["shape"], line["contender"], *cells, f"{line['ms_per_step']:.2f}"))
    return rows


def gpu_memory_rows(lines: Iterable[Line], kind: str = "gpu_memory") -> Rows:
    """Header and rows of `bench gpu_memory`'s lines: MiB in parts, and milliseconds a step."""
    parts = ("weights", "gradients", "optimizer", "activations", "workspace", "peak")
    rows: Rows = [("shape", "contender", "precision", *parts, "ms/step")]
    for line in timed(lines, kind):
        sizes = [line["memory_bytes"][part] for part in parts]
        cells = ("" if size is None else f"{size / 2**20:.1f}" for size in sizes)
        named = (line["shape"], line["contender"], line["precision"])
        rows.append((*named, *cells, milliseconds(line["ms_per_step"])))
    return rows


def parts_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench parts`' lines: ours in each way of calling it, the best rival.

    A ratio with its range is the median of the rounds' own; older lines have that of the medians.
    The control is the ratio of ours to itself; the floor that of `bench parts`.
    """
    rows: Rows = [
        (
            *("shape", "threads", "part", "called", "ours, ms (20 to 80 %)", "best rival, ms"),
            *("ratio", "control", "floor, ms", "share of peak", "share of copy", "instructions"),
        )
    ]
    for (shape, threads, _), group in groups(lines, "parts").items():
        for part in dict.fromkeys(line["maths"] for line in group):
            if not (best := best_rival(group, part)):
                continue
            for ours in our_lines(group, part):
                ratio = {"ratio": best["ms_per_step"] / ours["ms_per_step"]}
                rows.append(
                    (
                        *(shape, str(threads), part, ours["contender"], spread(ours)),
                        f"{milliseconds(best['ms_per_step'])} {best['contender']}",
                        *(ranged(ratio | ours, "ratio"), ranged(ours, "control"), floor_of(ours)),
                        *(share(ours, "share_of_peak"), share(ours, "share_of_copy")),
                        ours["versions"].get("isa", ""),
                    )
                )
    return rows


def floor_of(line: Line) -> str:
    """The least time of a call, where it was measured."""
    return milliseconds(line["floor_ms"]) if line.get("floor_ms") else ""


def paper_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench paper`'s lines, fastest first; ours with what it aims at.

    A share of peak counts the operations on live pixels, the nominal one those on all.
    """
    rows: Rows = [
        (
            *("shape", "contender", "threads", "ms a step (20 to 80 %)", "ratio", "aim"),
            *("share of peak", "aim", "nominal", "step MiB", "instructions"),
        )
    ]
    for (shape, threads, _), group in groups(lines, "paper").items():
        best = best_rival(group, "adamw")
        for line in sorted(group, key=lambda line: line["ms_per_step"]):
            ratio = f"{best['ms_per_step'] / line['ms_per_step']:.2f}" if best else ""
            aim, aimed_share = TARGETS.get(shape, (0, 0)) if is_ours(line["contender"]) else (0, 0)
            nominal = line["nominal_flop_per_step"] / line["flop_per_step"]
            rows.append(
                (
                    *(shape, line["contender"], str(threads), spread(line)),
                    *(ratio, f"{aim:.2f}" if aim else ""),
                    *(share(line, "share_of_peak"), f"{aimed_share:.0%}" if aim else ""),
                    f"{line['share_of_peak'] * nominal:.0%}",
                    *(mebibytes(line), line["versions"].get("isa", "")),
                )
            )
    return rows


BESIDE = (
    *("shape", "maths", "threads", "K", "called", "ours, ms (20 to 80 %)", "best rival, ms"),
    *("ratio", "share of peak", "instructions"),
)


def beside_best(lines: Iterable[Line], kind: str) -> list[tuple[Line, tuple[str, ...]]]:
    """Ours in each way of calling it, with its cells under BESIDE."""
    found = []
    for (shape, threads, K), group in groups(lines, kind).items():
        for maths in dict.fromkeys(line["maths"] for line in group):
            if not (best := best_rival(group, maths)):
                continue
            for ours in our_lines(group, maths):
                cells = (
                    *(shape, maths, str(threads), str(K), ours["contender"], spread(ours)),
                    f"{milliseconds(best['ms_per_step'])} {best['contender']}",
                    f"{best['ms_per_step'] / ours['ms_per_step']:.2f}",
                    *(share(ours, "share_of_peak"), ours["versions"].get("isa", "")),
                )
                found.append((ours, cells))
    return found


def continuous_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench continuous`' lines: ours, and the best rival."""
    return [BESIDE, *(cells for _, cells in beside_best(lines, "continuous"))]


def coupling_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows: what the coupling of a step adds to block and head apart."""
    rows: Rows = [("shape", "threads", "coupled, ms", "apart, ms", "added")]
    for (shape, threads, _), group in groups(lines, "continuous").items():
        times = {maths: our_lines(group, maths) for maths in ("coupled", "apart")}
        for both, alone in zip(*times.values(), strict=False):
            added = both["ms_per_step"] / alone["ms_per_step"] - 1
            rows.append((shape, str(threads), spread(both), spread(alone), f"{added:.0%}"))
    return rows


def sampler_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench samplers`' lines: ours, the best rival, and an evaluation's time.

    "over linear": an answer's time over one evaluation's and as many times what another adds.
    """
    rows: Rows = [(*BESIDE, "evaluations", "the first, ms", "over linear")]
    for ours, cells in beside_best(lines, "samplers"):
        first = milliseconds(ours["first_ms"])
        rows.append((*cells, str(ours["evaluations"]), first, f"{ours['over_linear']:.2f}"))
    return rows


def scaling_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench scaling`'s lines: milliseconds a step beside the floor."""
    found = groups(lines, "scaling")
    names = list(dict.fromkeys(line["contender"] for group in found.values() for line in group))
    rows: Rows = [("shape", "K", *(f"{name}, ms" for name in names), "floor, ms", "ours / floor")]
    for (shape, _, K), group in found.items():
        times = {line["contender"]: line["ms_per_step"] for line in group}
        floor = floor_ms(group[0])
        cells = (milliseconds(times[name]) if name in times else "" for name in names)
        over = f"{times['ours'] / floor:.2f}" if "ours" in times else ""
        rows.append((shape, str(K), *cells, milliseconds(floor), over))
    return rows


def neighbour_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench neighbour`'s lines."""
    rows: Rows = [
        (
            *("shape", "contender", "K", "alone, ms", "beside it, ms"),
            *("slowdown (20 to 80 %)", "ideal"),
        )
    ]
    for (shape, _, K), group in groups(lines, "neighbour").items():
        for line in group:
            rows.append(
                (
                    *(shape, line["contender"], str(K), milliseconds(line["ms_per_step"])),
                    milliseconds(line["busy_ms_per_step"]),
                    ranged(line, "slowdown"),
                    f"{line['ideal_slowdown']:.2f}",
                )
            )
    return rows


def job_rows(lines: Iterable[Line]) -> Rows:
    """Header and rows of `bench job`'s lines: a run's seconds, with their parts."""
    rows: Rows = [
        (
            *(
                "data",
                "contender",
                "epochs",
                "s/epoch",
                "over the kernels",
                "head, s",
                "display, s",
            ),
            *("compile s", "evaluation s", "accuracy", "goal", "epochs to it", "seconds to it"),
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
            rows.append(
                (line["shape"], line["contender"] + text, *(f"{value:.2%}" for value in values))
            )
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
