"""The tables of `bench run` and `bench infer`: ours against the rivals."""

from collections.abc import Iterable, Sequence

from ..problem.sizes import TARGETS
from .cells import Rows, aligned, markdown, mebibytes, share
from .lines import Line, best_rival, floor_share, groups, our_lines, timed


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
