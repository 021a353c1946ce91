"""Detects wrappers that manage a layer's parameters or their gradients.

A layer that updates its weights inside backward has no `.grad` for data parallelism to average or
to shard, and no moments for a second layer that updates the same weights.
"""

import sys
import weakref
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakTensorKeyDictionary

INSTEAD = "optimizer=None makes a layer with .grad"

_owners = WeakTensorKeyDictionary()  # parameter -> the layer that updates it
_claims = 0  # changes of _owners so far


def claims() -> int:
    """A number that stays while no parameter gets another owner."""
    return _claims


def claim(op: str, layer: nn.Module) -> None:
    """Makes the layer the one that updates its parameters.

    Raises:
        RuntimeError: another layer updates one of them.
    """
    global _claims
    for name, value in layer._parameters.items():
        known = None if value is None else _owners.get(value)
        owner = None if known is None else known()
        if owner is layer or value is None:
            continue
        if owner is not None and owner.updates_itself(value):
            raise RuntimeError(
                f"{op}: {name} must belong to one layer, since each updates it by moments of its "
                f"own, and is that of {owner} too; {INSTEAD}"
            )
        _owners[value] = weakref.ref(layer)
        _claims += 1


def refuse_data_parallel(op: str, layer: nn.Module, instead: str) -> None:
    """Raises, before anything is written, inside what averages or shards parameters.

    Raises:
        RuntimeError: it runs inside DistributedDataParallel, or FSDP holds its parameters.
    """
    if DistributedDataParallel._get_active_ddp_module() is not None:
        raise RuntimeError(
            f"{op}: must not run inside DistributedDataParallel, which averages .grad over the "
            f"ranks: each rank would train weights of its own; {instead}"
        )
    if is_sharded(layer):
        raise RuntimeError(
            f"{op}: must not run inside fully_shard, which keeps no update of the whole "
            f"weights; {instead}"
        )


def is_sharded(layer: nn.Module) -> bool:
    """Whether fully_shard holds the layer's parameters, which look like ordinary ones in
    forward."""
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    from torch.distributed._composable_state import _module_state_mapping

    if not _module_state_mapping:
        return False
    states: list[Any] = [known() for known in [*_module_state_mapping.values()]]
    none: Any = ()
    groups = chain.from_iterable(getattr(state, "_fsdp_param_groups", none) for state in states)
    infos = (param._module_info for group in groups for param in group.fsdp_params)
    return any(layer is info.module or layer in info.shared_modules for info in infos)


def is_plain(tensor: Tensor) -> bool:
    """Whether a parameter's values are at its address; a subclass' may not be."""
    return type(tensor) in (Tensor, nn.Parameter)
