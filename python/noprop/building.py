"""The untrained model of settings and data."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import noprop_kernels as nk

from . import augmentation, choices, presets, sampling, variants
from .data import Dataset, Published
from .datasets.split import hold_out_classes
from .model import Model
from .normalisation import statistics
from .parts import make_parts
from .prototypes import prototype_rows, prototypes
from .settings import Settings
from .units import Units


@dataclass(frozen=True)
class Split:
    """The training rows, and the validation rows on which choices may be based."""

    x: Tensor
    y: Tensor
    x_val: Tensor | None
    y_val: Tensor | None

    @classmethod
    def of(cls, data: Dataset, val_fraction: float) -> "Split":
        if val_fraction == 0:
            return cls(data.x, data.y, None, None)
        kept, held = hold_out_classes(data.y, val_fraction, data.name)
        return cls(data.x[kept], data.y[kept], data.x[held], data.y[held])


def plan_of(settings: Settings, data: Dataset | Published) -> nk.Plan:
    """The plan of a block of these settings.

    Raises:
        ValueError: a setting does not fit.
    """
    return presets.plan_of(
        settings.variant,
        settings.preset,
        settings.embedding,
        data.shape,
        data.classes,
        settings.hidden,
        settings.embed_dim,
    )


def head_trouble(variant: str, embedding: str, schedule: str | None, head: str) -> str | None:
    """Why a run of these choices has no such head, or None."""
    needed = choices.needs_head(embedding, schedule)
    about = variants.VARIANTS[variant]
    if about.without_head is not None and not needed and head != "none":
        return f"{about.without_head}: leave it none"
    if needed and head == "none":
        return "what is learned of embeddings and gamma learns from its loss: leave it softmax"
    if head == "radial" and not about.softmax:
        return "the anchor of an fm with learned embeddings is of logits: leave it softmax"
    return None


def units_of(settings: Settings) -> Units:
    """All units of a run of these settings."""
    return Units(tuple(range(1, (settings.T or 1) + 1)), settings.head != "none")


def build(
    settings: Settings,
    data: Dataset | Published,
    split: Split | None,
    backend: str | None,
    units: Units | None = None,
) -> Model:
    """An untrained model, normalised by the training rows' statistics, where there are any.

    Args:
        settings, data, split: of the run.
        backend: a backend to force.
        units: to make; None: all.

    Raises:
        ValueError: a setting does not fit.
        MemoryError: there is no memory for it.
    """
    chosen = (settings.variant, settings.embedding, settings.schedule, settings.head)
    if reason := head_trouble(*chosen):
        raise ValueError(f"head {settings.head}: {reason}")
    augmentation.check("train", settings.augment, data.inputs)
    plan = plan_of(settings, data)
    goal = variants.VARIANTS[settings.variant].of_settings(asdict(settings))
    answer, paper = sampling.samplers_of("train", goal, settings.sampler, settings.steps)
    units = units_of(settings) if units is None else units
    count = len(settings.each_seed) * max(1, len(units.blocks))
    normalize, rows, start = None, None, None
    if split is not None:
        normalize = statistics(split.x, data.inputs.channels)
        if settings.embedding == "prototype":
            rows = prototype_rows(split.x, split.y, data.classes, normalize)
            start = prototypes(split.x, rows, normalize)
    size = 3 * 4 * count * plan.num_parameters()  # bytes of weights and moments
    try:
        # fails at once, before the first layers are filled
        torch.empty(min(size, 1 << 62), dtype=torch.uint8, device="cpu")
        made = make_parts(settings, plan, goal, data.classes, start, backend, units)
    except RuntimeError as error:  # torch's error when memory is short
        raise MemoryError(
            f"no memory for {count} blocks of {plan.num_parameters():,} parameters"
        ) from error
    return Model(
        made.blocks,
        made.head,
        normalize=normalize,
        classes=data.class_names,
        inputs=data.inputs,
        sampler=answer,
        paper_sampler=paper,
        prototypes=None if rows is None else rows.tolist(),
        alone=not units.blocks,
    )
