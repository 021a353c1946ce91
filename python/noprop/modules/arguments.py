"""The checks of ModuleBlocks' arguments."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import noprop_kernels as nk
from noprop_kernels.check import check_positive, check_tensor
from noprop_kernels.goal import Goal, check_goal

from .randomness import made
from .signature import Shape

OP = "ModuleBlocks"
PRECISIONS = ("float32", "bfloat16")

Networks = Sequence[nn.Module] | Callable[[int], nn.Module]


def check_fixed_goal(goal: object) -> Goal:
    """
    Raises:
        ValueError: it is no goal, or its schedule is learned.
    """
    check_goal(OP, goal)
    assert isinstance(goal, Goal)  # by check_goal
    if isinstance(getattr(goal, "schedule", None), nk.GammaNetwork):
        raise ValueError(f"{OP}: goal must have a fixed schedule, got a GammaNetwork")
    return goal


def check_encoder(encoder: object, share_encoder: object) -> None:
    """
    Raises:
        ValueError: it is no module, or one that is not there is to be shared.
    """
    if encoder is not None and not isinstance(encoder, nn.Module):
        raise ValueError(f"{OP}: encoder must be an nn.Module, got {type(encoder).__name__}")
    if not isinstance(share_encoder, bool) or (share_encoder and encoder is None):
        raise ValueError(
            f"{OP}: share_encoder must be true or false, and false without an encoder, got "
            f"{share_encoder!r}"
        )


def check_precision(precision: object) -> str:
    """
    Raises:
        ValueError: it is none of PRECISIONS.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"{OP}: precision must be one of {PRECISIONS}, got {precision!r}")
    return precision


def check_time_width(goal: Goal, width: object) -> int | None:
    """
    Raises:
        ValueError: it is not even, or the goal draws no t.
    """
    if width is None:
        return None
    width = check_positive(OP, "time_width", width)
    if width % 2 or not goal.timed:
        raise ValueError(f"{OP}: time_width must be even, and None under a DT, got {width}")
    return width


def check_shape(shape: object) -> Shape | None:
    """
    Raises:
        ValueError: it is no shape.
    """
    if shape is None:
        return None
    sizes = [*shape] if isinstance(shape, Sequence) and not isinstance(shape, str) else []
    if not sizes:
        raise ValueError(f"{OP}: x_shape must be a tuple of sizes, got {shape!r}")
    return tuple(check_positive(OP, "x_shape", size) for size in sizes)


def own_embedding(embedding: Tensor | None, M: int) -> Tensor | None:
    """A copy of the embeddings (M, D).

    Raises:
        ValueError: they have another shape, or are not on the CPU.
    """
    if embedding is None:
        return None
    cpu = torch.device("cpu")
    check_tensor(OP, "embedding", embedding, shape=(M, None), device=cpu)
    return embedding.detach().clone(memory_format=torch.contiguous_format)


def listed(networks: Networks, seeds: Tensor, T: int) -> list[nn.Module]:
    """The networks as given, or as a function of t makes them for each of `seeds` (R,).

    Raises:
        ValueError: they are neither a list nor such a function.
    """
    one = isinstance(networks, nn.Module) and not isinstance(networks, nn.ModuleList)
    if not one and callable(networks) and not isinstance(networks, nn.ModuleList):
        return made(networks, seeds, T, seeds.device)
    if one or not isinstance(networks, Sequence | nn.ModuleList):
        got = type(networks).__name__
        raise ValueError(f"{OP}: networks must be a list or a function of t, got {got}")
    return [*networks]
