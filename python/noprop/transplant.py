"""Untrained units for a model, and units of one model put into another."""

from collections.abc import Iterable

import torch

import noprop_kernels as nk

from .model import Model
from .replicas import embedding_of
from .units import Units


def untrained(model: Model, head: nk.OutputHead | None, units: Units, seed: int) -> Model:
    """A model with untrained units, and else all that another has, on the CPU.

    Args:
        model: the other, of one replica and fixed embeddings.
        head: one like that to make, where the units have a head.
        units: to make.
        seed: of their weights and noise.
    """
    blocks = model.blocks
    assert isinstance(blocks, nk.DenoisingBlocks)  # as every run's are
    made = nk.DenoisingBlocks(
        blocks.plan,
        blocks.goal,
        embedding=embedding_of(blocks),
        optimizer=blocks.optimizer,
        seed=seed,
        held=units.blocks or (1,),
        precision=blocks.precision,
        backend=blocks.backend,
        blocks_per_launch=blocks.blocks_per_launch,
    )
    reads = None
    if units.head:
        assert head is not None  # by the caller
        reads = nk.OutputHead(
            head.D,
            head.M,
            goal=head.goal,
            embedding=embedding_of(head),
            kind=head.kind,
            sigma=head.sigma,
            optimizer=head.optimizer,
            seed=seed,
            precision=head.precision,
            backend=head.backend,
        )
    return Model(
        made,
        reads,
        model.encoder,
        normalize=model.normalize,
        classes=model.classes_,
        inputs=model.inputs,
        seeds=model.seeds,
        alone=not units.blocks,
    )


def put(model: Model, units: Units, source: Model) -> None:
    """Copies units with their moments, counters and seeds from another model, which has them."""
    with torch.no_grad():
        for to, value in _tensors(model, source, units):
            to.copy_(value)


def same_bits(model: Model, units: Units, other: Model) -> bool:
    """Whether units are the same in two models, with their moments, counters and seeds."""
    pairs = _tensors(model, other, units)
    return all(torch.equal(_bytes(one), _bytes(two)) for one, two in pairs)


def _tensors(
    model: Model, other: Model, units: Units
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Each tensor of the units in both models, as views."""
    for t in units.blocks:
        at, its = model.held.index(t), other.held.index(t)
        values = other.blocks.state_dict()
        for name, value in model.blocks.state_dict().items():
            if name != "W_embed":  # which is fixed, and of all blocks
                yield value[at], values[name][its]
    if units.head:
        assert model.head is not None and other.head is not None  # by the caller
        values = other.head.state_dict()
        yield from ((it, values[name]) for name, it in model.head.state_dict().items())


def _bytes(value: torch.Tensor) -> torch.Tensor:
    """So that a NaN equals itself."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8)
