"""Tables from result files: `python -m bench report FILE.jsonl ... [--readme FILE]`.

They are written between two markers of a page, so that its figures are never typed by hand. The
files of `bench run`, paper, continuous, samplers, infer, parts, scaling, neighbour, job, local,
grid, curves and memory each have their own tables.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .cells import markdown
from .curve_rows import curve_rows
from .lines import Line, groups, highest_peaks, machine_of, read, rescaled, timed
from .suite_rows import (
    continuous_rows,
    gpu_memory_rows,
    memory_rows,
    neighbour_rows,
    paper_rows,
    parts_rows,
    sampler_rows,
    scaling_rows,
)
from .tables import headline, rivals_table, step_table, target_rows
from .whole_rows import estimator_rows, grid_rows, job_rows, local_rows

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {"adamw": "AdamW", "sgd": "SGD", "inference": "Inference, x1 and x1024 rows"}
SECTIONS = (
    (
        "What float32 aims at. At the floor: products at the measured peak, then the update's "
        "traffic at the rate of a copy of the state's size:",
        target_rows,
    ),
    (
        "The paper's DT blocks with their convolutions, one step of ten blocks, 128 rows "
        "(`bench paper`). Ratio: the best rival's time over the line's. Shares of the peak count "
        "operations on the pixels that a result depends on; nominal: on all. Every rival but "
        "`eager_whole` crops its images to these:",
        paper_rows,
    ),
    (
        "A step of CT and of FM, one block or ten replicas of it (R1, R10), 128 rows, Adam "
        "(`bench continuous`):",
        continuous_rows,
    ),
    (
        "Answers of CT and of FM in 1,000 steps to 1, 128 and 1,024 rows (`bench samplers`). Over "
        "linear: an answer's time over that of one evaluation and 999 times what another adds:",
        sampler_rows,
    ),
    ("Memory in MiB:", memory_rows),
    ("Memory on the GPU in MiB:", gpu_memory_rows),
    (
        "The parts of a step, each against the torch operations that it replaces (`bench parts`). "
        "Control: ours against itself, the noise under a ratio:",
        parts_rows,
    ),
    ("How a step grows with T, B and H, the rest as in `small`:", scaling_rows),
    ("Beside a process that keeps one core busy:", neighbour_rows),
    ("The whole job:", job_rows),
    ("Accuracy on the test rows by what a block is trained for (`bench local`):", local_rows),
    ("Small data, means of seeds, ours (logistic regression's) (`bench grid`):", grid_rows),
    (
        "scikit-learn's classifiers by their defaults, means of seeds, the best with a star "
        "(`bench estimator`):",
        estimator_rows,
    ),
    (
        "CT and FM on the digits, means of seeds, and deviations over them (`bench curves`). "
        "Effective rows: (sum w)² / sum w² of the rows of a batch, by their weights or by the "
        "lengths of their gradients. Noise scale, a rough estimate: the batch at which the "
        "variance of the mean gradient is its squared length; off by strata: what stratified t "
        "take off this variance. Norm's deviation: of the gradient norm over the later half of the "
        "steps, by its mean. The ceiling is the accuracy with noise of a block without error. "
        "Unsteady: deviation of the accuracy with noise over the last five of ten points:",
        curve_rows,
    ),
)


def readme_section(lines: Sequence[Line]) -> str:
    """The text between the markers, for each machine."""
    parts = []
    for machine in dict.fromkeys(map(machine_of, lines)):
        own = [line for line in lines if machine_of(line) == machine]
        if any("peak_gflops" in line for line in own):
            parts += machine_section(own)
    return "\n\n".join(parts)


def machine_section(lines: Sequence[Line]) -> list[str]:
    """One machine's paragraphs and tables."""
    measured = [line for line in lines if "peak_gflops" in line and "error" not in line]
    last = max(measured, key=lambda line: line["date"])
    peaks = highest_peaks(measured)
    lines = [rescaled(line, peaks) if "error" not in line else line for line in lines]
    rates = sorted(peaks.items())
    if gpu := last["machine"].get("gpu"):
        peak = ", ".join(f"{rate / 1e3:.0f} TF/s in {name}" for (_, name), rate in rates)
        what = f"{gpu}; measured matrix rate {peak}"
    else:
        peak = ", ".join(f"{rate:.0f} GF/s on {count}" for (count, _), rate in rates)
        cpu, cores = last["machine"]["cpu"], last["machine"]["cores"]
        isa = last["versions"].get("isa")
        kernels = f", {isa} kernels" if isa else ""
        what = f"{cpu}, {cores} cores{kernels}; measured FMA peak {peak}"
    if folder := last.get("folder"):
        what = f"**{folder}**: {what}"
    parts = [
        f"{what}; torch {last['versions']['torch']}, {last['date'][:10]}, "
        f"commit `{last['commit'][:12]}`. Ratio: the best rival's time over ours."
    ]
    for precision in dict.fromkeys(line["precision"] for line in timed(lines)):
        own = [line for line in lines if line["precision"] == precision]
        for maths, title in TITLES.items():
            table, lost = headline(own, maths)
            if table:
                parts += [f"{title}, {precision}:", table]
            if lost:
                parts.append("Slower than the best rival: " + ", ".join(lost) + ".")
        parts += every_contender(own, memory=len(memory_rows(lines)) == 1)
    for title, rows_of in SECTIONS:
        header, *rows = rows_of(lines)
        if rows:
            parts += [title, markdown(header, rows)]
    return parts + failures(lines)


def failures(lines: Sequence[Line]) -> list[str]:
    """A sentence for each contender and error, with the shapes concerned."""
    failed: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if "error" in line:
            first = line["error"].strip().splitlines()[0][:200].strip()
            failed.setdefault((line["contender"], first), []).append(f"`{line['shape']}`")
    return [
        f"`{name}` was not timed at {', '.join(dict.fromkeys(shapes))}: {text}"
        for (name, text), shapes in failed.items()
    ]


def every_contender(lines: Sequence[Line], memory: bool) -> list[str]:
    """Training's, then inference's contenders; with the bytes of a step where `memory` asks."""
    parts = []
    for answers in (False, True):
        chosen = [line for line in lines if (line.get("maths") == "inference") is answers]
        if not timed(chosen):
            continue
        K = max(line["K"] for line in timed(chosen))
        threads = max(line["threads"] for line in timed(chosen))
        parts.append(rivals_table(chosen, K))
        if not answers and memory:
            shapes = [shape for shape, count, k in groups(chosen) if (count, k) == (threads, K)]
            shape = "small" if "small" in shapes else shapes[-1]
            parts.append(step_table(chosen, shape, threads, K))
    return parts


def write_readme(path: Path, section: str) -> None:
    """Replaces the text between the markers.

    Raises:
        ValueError: the file does not have each marker once, in order.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"report: {path} must have {BEGIN} and then {END}, each once")
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{section}\n\n{END}{rest.split(END)[1]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON lines of the other commands")
    parser.add_argument("--readme", type=Path, help="file with the markers; default: print")
    options = parser.parse_args(arguments)
    section = readme_section(read(options.results))
    if not section:
        parser.error("the result files hold no timings")
    if options.readme:
        write_readme(options.readme, section)
    else:
        print(section)
    return 0
