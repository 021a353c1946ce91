"""Several seeds: the list of them, and the figures of a model of each.

Figures are numbers, or lists and records of them, alike for every seed; None where there are none.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]
MOST = 1000


def parse(text: str) -> tuple[int, ...]:
    """The seeds of "0-2" or "0,3,7", in this order.

    Raises:
        ValueError: these are not at least two different whole numbers from 0 on.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last] if dash else [first]
        if not all(end.isascii() and end.isdigit() for end in ends):
            raise ValueError(f"{text!r} must be like 0-2 or 0,3,7, got {part.strip()!r} in it")
        seeds += range(int(first), int(ends[-1]) + 1)[: MOST + 1]
    check(seeds)
    return tuple(seeds)


def check(seeds: Sequence[int]) -> None:
    """
    Raises:
        ValueError: these are not several different seeds.
    """
    if not 2 <= len(seeds) <= MOST or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds must be 2 to {MOST:,} different ones (one is --seed), got "
            f"{', '.join(map(str, seeds[:10]))}{' and more' if len(seeds) > 10 else ''}"
        )
    if not all(0 <= seed < 1 << 63 for seed in seeds):
        raise ValueError(f"seeds must be in 0..2^63 - 1, got {min(seeds)}..{max(seeds)}")


def over(figures: Sequence[Any], function: Callable[[list[float]], float]) -> Any:
    """A function of the seeds' numbers, for each number of a figure; None are left out."""
    some = figures[0]
    if isinstance(some, dict):
        return {name: over([each[name] for each in figures], function) for name in some}
    if isinstance(some, list):
        return [over(each, function) for each in zip(*figures, strict=True)]
    known = [each for each in figures if each is not None]
    return function(known) if known else None


def mean(figures: Sequence[Any]) -> Any:
    return over(figures, statistics.fmean)


def deviation(figures: Sequence[Any]) -> Any:
    """The standard deviation over the seeds, of n - 1."""
    return over(figures, statistics.stdev)


def summary(seeds: Sequence[int], records: Sequence[Json]) -> Json:
    """The results of all seeds as one.

    Args:
        seeds: of the records.
        records: of a model of each seed, as of one run; accuracies have "accuracy" in their names.

    Returns:
        The means of accuracies, and the rest of the first record; `std_over_seeds`, their
        deviations over the seeds; `paper_accuracy_std`, over the draws alone, by the mean of the
        seeds' variances; and `by_seed`, the records themselves.
    """
    names = [name for name in records[0] if "accuracy" in name and not name.endswith("_std")]
    figures = [{name: record[name] for name in names} for record in records]
    draws = [record["paper_accuracy_std"] for record in records]
    return {
        **records[0],
        **mean(figures),
        "paper_accuracy_std": over(draws, lambda each: math.hypot(*each) / len(each) ** 0.5),
        "std_over_seeds": deviation(figures),
        "by_seed": [{"seed": seed} | record for seed, record in zip(seeds, records, strict=True)],
    }


def of_one(result: Json, replica: int) -> Json:
    """The result of one seed out of a `summary` and what was added to it."""
    rest = {name: it for name, it in result.items() if name not in ("std_over_seeds", "by_seed")}
    return rest | result["by_seed"][replica]
