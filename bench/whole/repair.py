"""Times the repair of one block beside the run: `python -m bench repair [--preset mlp] [--quick]`.

A run of all blocks is trained by the trainer's own loop; then one block is trained again from its
seed, as `noprop repair` does, and must end in the same bits. They take turns, `--rounds` times, in
one process; the ratio is the median over the rounds of the block's training seconds over the run's.
One of T equal blocks has 1 / T of the work.

`synthetic` has MNIST's sizes, bytes and classes, for a machine without its files.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from noprop import data as datasets
from noprop import presets
from noprop.building import Split, build
from noprop.datasets.dataset import Dataset
from noprop.defaults import default_weight_decay
from noprop.errors import InputError
from noprop.repairing import retrain
from noprop.runs import Run
from noprop.settings import Settings
from noprop.shares import Share
from noprop.training import fit
from noprop.units import Units

from ..machine import host
from ..problem.twin import Mismatch
from ..report.cells import aligned
from ..report.lines import Line
from ..suites import command

ROWS, TEST_ROWS, SIDE, CLASSES = 60_000, 10_000, 28, 10  # of MNIST
QUICK_ROWS = 1280


def synthetic(rows: int = ROWS) -> Dataset:
    """Images of bytes, whose brightest row of pixels tells the class."""
    draws = torch.Generator(device="cpu").manual_seed(0)

    def part(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (count, SIDE, SIDE)
        x = torch.randint(128, shape, generator=draws, dtype=torch.uint8, device="cpu")
        y = torch.randint(CLASSES, (count,), generator=draws, dtype=torch.int64, device="cpu")
        x[torch.arange(count, device="cpu"), 2 * y + 4] += 64
        return x, y

    (x, y), (x_test, y_test) = part(rows), part(min(rows, TEST_ROWS))
    inputs = datasets.PUBLISHED["mnist"].inputs
    rows_of = (x.flatten(1), y, x_test.flatten(1), y_test)
    return Dataset("synthetic", *rows_of, CLASSES, inputs)


def settings_of(name: str, preset: str, T: int, epochs: int, seed: int, rows: int) -> Settings:
    """Those of `noprop train --preset`, with these epochs."""
    chosen = {"weight_decay": default_weight_decay(rows)} | presets.settings(preset, "mnist")
    chosen |= {"T": T, "epochs": epochs}
    return Settings(data=name, preset=preset, seed=seed, **chosen)


def measure(
    content: Dataset, settings: Settings, threads: int, block: int, rounds: int
) -> list[Line]:
    """One line, of all rounds.

    Raises:
        Mismatch: the block has other bits after its repair.
    """
    torch.set_num_threads(threads)
    split, units = Split.of(content, 0.0), Units.of([block])
    whole, repair = [], []
    for number in range(rounds):
        model = build(settings, content, split, None)
        share = Share(model.units, settings.each_seed, settings.epochs)
        run = Run(Path(), settings, model, [share], content.fingerprint())
        fit(model, *(split.x, split.y), **run.fit_options(share))
        whole.append(share.progress.seconds)
        exchanges = retrain(run, units, split)
        assert exchanges is not None  # as nothing stops it
        if not exchanges[0].same:
            raise Mismatch(f"block {block} has other bits after its repair")
        repair.append(exchanges[0].seconds)
        print(
            f"  round {number + 1}: run {whole[-1]:.2f} s, block {block} {repair[-1]:.2f} s",
            flush=True,
        )
    ratios = [b / a for a, b in zip(whole, repair, strict=True)]
    line = host.circumstances(f"{settings.data}-{settings.preset}", threads) | {
        "kind": "repair",
        "maths": settings.optimizer,
        "K": None,
        "contender": "ours",
        "settings": vars(settings),
        "block": block,
        "whole_seconds": whole,
        "repair_seconds": repair,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }
    return [line]


def table(lines: Sequence[Line]) -> list[list[str]]:
    rows = [["data and preset", "threads", "T", "epochs", "run, s", "a block, s", "ratio"]]
    for line in lines:
        s = line["settings"]
        seconds = (statistics.median(line[name]) for name in ("whole_seconds", "repair_seconds"))
        figures = [*(f"{value:.2f}" for value in seconds), f"{line['ratio']:.3f}"]
        rows.append([line["shape"], *map(str, (line["threads"], s["T"], s["epochs"])), *figures])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench repair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few synthetic rows, one round")
    parser.add_argument("--data", help="mnist (default), synthetic, or another name of noprop's")
    parser.add_argument("--data-dir", type=Path, help="default NOPROP_DATA, else a cache folder")
    parser.add_argument("--preset", choices=("mlp", "paper"), default="mlp")
    parser.add_argument("--T", type=int, default=10)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3, help="of the run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    options = parser.parse_args(arguments)
    command.check_least(parser, options, epochs=1, rounds=1, threads=1, block=1, T=1)
    if options.block > options.T:
        parser.error(f"--block must be at most {options.T}, got {options.block}")
    name = options.data or ("synthetic" if options.quick else "mnist")
    if options.quick:
        options.rounds = 1
    try:
        if name == "synthetic":
            content = synthetic(QUICK_ROWS if options.quick else ROWS)
        else:
            content = datasets.load(name, options.data_dir)
    except InputError as error:
        parser.error(str(error))
    numbers = (options.T, options.epochs, options.seed, len(content.x))
    settings = settings_of(name, options.preset, *numbers)
    print(f"{name}, preset {options.preset}, {options.threads} threads", flush=True)
    lines = measure(content, settings, options.threads, options.block, options.rounds)
    print(aligned(table(lines)))
    command.append(options.out, lines)
    return 0
