"""The tables of the commands that time a call in parts, at a size, or beside something else."""

from collections.abc import Iterable

from ..problem.sizes import TARGETS
from .cells import Rows, mebibytes, milliseconds, ranged, share, spread
from .lines import Line, best_rival, floor_ms, groups, is_ours, our_lines, timed

BESIDE = (
    *("shape", "maths", "threads", "K", "called", "ours, ms (20 to 80 %)", "best rival, ms"),
    *("ratio", "share of peak", "instructions"),
)


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
    numbers = ("alone, ms", "beside it, ms", "slowdown (20 to 80 %)", "ideal")
    rows: Rows = [("shape", "contender", "K", *numbers)]
    for (shape, _, K), group in groups(lines, "neighbour").items():
        for line in group:
            times = (milliseconds(line[name]) for name in ("ms_per_step", "busy_ms_per_step"))
            slower = (ranged(line, "slowdown"), f"{line['ideal_slowdown']:.2f}")
            rows.append((shape, line["contender"], str(K), *times, *slower))
    return rows
