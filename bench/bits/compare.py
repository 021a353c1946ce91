"""Compares two commits' lines of digests: what differs, and what only one side has."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


@dataclass
class Comparison:
    """One run's cases of both commits.

    Attributes:
        equal: cases whose tensors all have the same bits.
        refused: cases that both commits refuse, such as a precision that a backend lacks.
        differing: tensors that differ, by case.
        problems: all other differences, a line each.
    """

    equal: int = 0
    refused: int = 0
    differing: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.equal > 0 and not self.differing and not self.problems


def read(path: Path) -> dict[str, Line]:
    """The lines of one commit by case."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    counts = Counter(line["case"] for line in lines)
    if twice := [case for case, count in counts.items() if count > 1]:
        raise ValueError(f"bits: cases must have names of their own, got twice: {twice}")
    return {line["case"]: line for line in lines}


def compare(before: Mapping[str, Line], after: Mapping[str, Line]) -> Comparison:
    """Every case of either commit."""
    found = Comparison()
    found.problems += one_side("case", before, after)
    for case in before:
        if case in after:
            compare_case(found, case, before[case], after[case])
    return found


def compare_case(found: Comparison, case: str, before: Line, after: Line) -> None:
    """Adds the outcome of one case; a case that did not run on both is never equal."""
    failures = [
        f"{case}: fails in {side}: {line['failed']}"
        for side, line in (("BEFORE", before), ("AFTER", after))
        if "failed" in line
    ]
    if failures:
        found.problems += failures
    elif "refused" in before and "refused" in after:
        found.refused += 1
    elif "refused" in before or "refused" in after:
        side, line = ("BEFORE", before) if "refused" in before else ("AFTER", after)
        found.problems.append(f"{case}: refused in {side} alone: {line['refused']}")
    else:
        old, new = before["digests"], after["digests"]
        apart = one_side(f"{case}: tensor", old, new)
        differing = [name for name in old if name in new and old[name] != new[name]]
        found.problems += apart
        if differing:
            found.differing[case] = differing
        found.equal += not apart and not differing


def one_side(what: str, before: Iterable[str], after: Iterable[str]) -> list[str]:
    """The names that only one commit has."""
    old, new = list(before), list(after)
    return [
        *(f"{what} {name} in BEFORE alone" for name in old if name not in new),
        *(f"{what} {name} in AFTER alone" for name in new if name not in old),
    ]


def largest_difference(before: Any, after: Any) -> str:
    """The difference of two tensors, in words."""
    if before.shape != after.shape or before.dtype != after.dtype:
        forms = (f"{value.dtype} {tuple(value.shape)}" for value in (before, after))
        return " became ".join(forms)
    if before.numel() == 0:
        return "both empty"
    old, new = before.double(), after.double()
    apart = (old - new).abs().masked_fill(old == new, 0)  # infinities too
    apart = apart[~(old.isnan() & new.isnan())]
    unlike = int((old.isnan() != new.isnan()).sum())
    if unlike:
        return f"{unlike} entries are NaN in one alone"
    largest = float(apart.max()) if apart.numel() else 0.0
    changed = int((apart > 0).sum())
    size = float(old.abs().nan_to_num().max())
    return f"largest difference {largest:.3e} of {size:.3e}, {changed} of {old.numel()} entries"
