"""Compares units of models bit by bit, and damages one."""

from pathlib import Path

import torch

import noprop
from noprop.runs import Run


def assert_units_of(whole: noprop.Model, part: noprop.Model) -> None:
    """Each unit of `part` has the bits of the same unit of `whole`, moments and counters too."""
    a, b = whole.tensors(), part.tensors()
    for t in part.held:
        mine, its = of_block(b, t, [*part.held]), of_block(a, t, [*whole.held])
        assert mine.keys() == its.keys() and len(mine) > 8
        for name in mine:
            assert torch.equal(mine[name], its[name]), (t, name)
    heads = [name for name in b if name.startswith("head.")]
    assert bool(heads) == part.units.head
    for name in heads:
        assert torch.equal(a[name], b[name]), name


def of_block(tensors: dict[str, torch.Tensor], t: int, held: list[int]) -> dict[str, torch.Tensor]:
    at = held.index(t)
    blocks = {name: value for name, value in tensors.items() if name.startswith("blocks.")}
    return {name: value[at] for name, value in blocks.items()}


def damage(folder: Path, t: int, scale: float = 1.0) -> None:
    """Adds noise to the weights of block t of a saved run."""
    run = Run.load(folder)
    draws = torch.Generator(device="cpu").manual_seed(t)
    with torch.no_grad():
        for value in run.model.blocks.parameters():
            at = value[run.model.held.index(t)]
            at += scale * torch.randn(at.shape, generator=draws, dtype=at.dtype, device="cpu")
    run.save()
