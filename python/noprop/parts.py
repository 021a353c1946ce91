"""The parts of a run's model: blocks, output head, and what both share and learn."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.goal import Goal

from . import variants
from .choices import needs_head
from .defaults import LEAST_WEIGHT_DECAY
from .settings import Settings
from .units import Units


@dataclass(frozen=True)
class Parts:
    """Blocks and what belongs to them; None of what a run has not."""

    blocks: nk.DenoisingBlocks
    head: nk.OutputHead | None
    shared: nk.Shared | None
    goal: Goal


def make_parts(
    settings: Settings,
    plan: nk.Plan,
    goal: Goal,
    classes: int,
    start: Tensor | None,
    backend: str | None,
    units: Units,
) -> Parts:
    """The untrained parts.

    Args:
        settings: of the run.
        plan: of a block.
        goal: of the run.
        classes: M.
        start: (M, D) float32, the prototypes; None: they are not known, as in a dry run.
        backend: a backend to force.
        units: to make; the blocks of a head alone have one that is no part of a model.

    Raises:
        ValueError: a setting does not fit.
    """
    optimizer = variants.optimizer_of(settings.optimizer, settings.lr, settings.weight_decay)
    seeds = settings.each_seed
    shared = None
    if needs_head(settings.embedding, settings.schedule):
        embedding = learned_embedding(settings, plan, classes, start)
        # the strong decay of few rows is a prior on networks; of embeddings it would be a pull
        # to one point, and of gamma's ends one to no schedule at all
        decay = min(settings.weight_decay, LEAST_WEIGHT_DECAY)
        mild = replace(optimizer, weight_decay=decay)
        shared = nk.Shared(goal, embedding, optimizer=mild, seed=seeds)
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "seed": seeds,
        "precision": settings.precision,
        "backend": backend,
        "shared": shared,
    }
    blocks = nk.DenoisingBlocks(plan, goal, held=units.blocks or (1,), **options)
    head = None
    if units.head:
        kind = {"kind": "radial", "sigma": settings.head_sigma}
        of_kind = kind if settings.head == "radial" else {}
        head = nk.OutputHead(blocks.D, classes, goal=goal, **of_kind, **options)
    return Parts(blocks, head, shared, goal)


def learned_embedding(
    settings: Settings, plan: nk.Plan, classes: int, start: Tensor | None
) -> nk.LearnedEmbedding | None:
    """Of these settings; None where embeddings are one-hot.

    Raises:
        ValueError: a setting does not fit.
    """
    if settings.embedding == "one-hot":
        return None
    init: str | Tensor | None = settings.embed_init
    if settings.embedding == "prototype":
        init = "normal" if start is None else start
    assert init is not None and settings.embed_scale is not None  # choices.defaults has them
    return nk.LearnedEmbedding(
        classes,
        plan.widths["z"],
        init=init,
        scale=settings.embed_scale,
        detach_target=bool(settings.detach_target),
    )
