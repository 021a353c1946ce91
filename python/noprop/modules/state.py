"""The state of ModuleBlocks as tensors: its modules', its counters' and its optimizers'."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noprop_kernels.check import check_counter, check_tensor

if TYPE_CHECKING:
    from .stack import NetworkStack

OPTIMIZERS = "optimizers."  # what the names of their tensors begin with


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of modules and counters, and those of the optimizers, without OPTIMIZERS."""
    kept = {
        name.removeprefix(OPTIMIZERS): value
        for name, value in state.items()
        if name.startswith(OPTIMIZERS)
    }
    return {k: v for k, v in state.items() if not k.startswith(OPTIMIZERS)}, kept


def check_given(op: str, blocks: "NetworkStack", given: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: names, shapes, types, counters or seeds are not those of the object.
    """
    own, _ = split(blocks.state_dict())
    if own.keys() != given.keys():
        raise ValueError(
            f"{op}: state_dict must have the keys of this object, got without "
            f"{sorted(own.keys() - given.keys())}, with {sorted(given.keys() - own.keys())}"
        )
    for name, value in own.items():
        check_tensor(op, name, given[name], shape=value.shape, dtype=(value.dtype,))
    for name in ("draws", "updates"):
        check_counter(op, name, given[name], 0)
    seeds: Tensor = given["seeds"].to(blocks.device)
    if not torch.equal(blocks.seeds, seeds):
        raise ValueError(
            f"{op}: seeds must be {blocks.seeds.tolist()}, got {seeds.tolist()}; make the object "
            "with those of the state_dict"
        )
