"""Presets: the plan of a block, and the settings that the paper trained it with.

"mlp" is a small network for rows of any kind. "paper" has the convolutions of arXiv:2503.24322v2,
fig. 5, for images, and the settings of its table 4.
"""

from math import prod
from typing import Any

from noprop_kernels import plans
from noprop_kernels.plan import Plan, Shape

from .variants import VARIANTS

LEAST_PIXELS = 14  # of a side; what fewer leave for the third convolution is no window

# table 4
PAPER = {"batch_size": 128, "lr": 1e-3, "lr_schedule": "constant", "weight_decay": 1e-3}
PAPER_OF = {
    "dt": {"head": "paper", "T": 10, "eta": 0.1},
    "ct": {"head": "paper", "eta": 1.0, "optimizer": "adam"},
    "fm": {"head": "none", "optimizer": "adam"},
}
PAPER_EPOCHS = {
    "dt": {"mnist": 100, "fashion-mnist": 100, "cifar10": 150, "cifar100": 150},
    **dict.fromkeys(
        ("ct", "fm"), {"mnist": 100, "fashion-mnist": 100, "cifar10": 500, "cifar100": 1000}
    ),
}


def settings(preset: str, data: str, variant: str = "dt") -> dict[str, Any]:
    """The settings that a preset has by itself for these data, by name; the others are none of its.

    The paper has no table for Fashion-MNIST, which gets MNIST's numbers, nor for the user's own
    data, whose epochs follow from the rows as ever.
    """
    if preset != "paper":
        return {}
    epochs = PAPER_EPOCHS[variant]
    return PAPER | PAPER_OF[variant] | ({"epochs": epochs[data]} if data in epochs else {})


def plan_of(
    variant: str,
    preset: str,
    embedding: str,
    shape: Shape,
    classes: int,
    hidden: int,
    embed_dim: int | None = None,
) -> Plan:
    """The plan of a block.

    Args:
        variant: "dt", "ct" or "fm"; the latter two have the same plan.
        preset: "mlp" or "paper".
        embedding: "one-hot", "learned" or "prototype" (of a whole row or image).
        shape: (F,), or (C, H, W) of images.
        classes: M.
        hidden: width of the hidden layers of "mlp".
        embed_dim: D, of learned embeddings alone.

    Raises:
        ValueError: the preset has no such plan, or is not for rows of this shape.
    """
    widths = {"one-hot": classes, "learned": embed_dim, "prototype": prod(shape)}
    D = widths[embedding]
    assert D is not None  # choices.defaults has one of learned embeddings
    if preset == "mlp":
        return plans.mlp(prod(shape), D, classes, hidden=hidden, time=VARIANTS[variant].sampled)
    if len(shape) != 3 or min(shape[1:]) < LEAST_PIXELS:
        got = " x ".join(map(str, shape[1:])) if len(shape) == 3 else f"rows of {shape[0]} numbers"
        raise ValueError(
            f"preset paper is for images of at least {LEAST_PIXELS} x {LEAST_PIXELS} pixels, got "
            f"{got}: use --preset mlp"
        )
    make = plans.paper_ct if VARIANTS[variant].sampled else plans.paper_dt
    return make(shape, D, classes, z_image=embedding == "prototype")
