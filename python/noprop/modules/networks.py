"""The networks of ModuleBlocks: checked, and called so that each gives logits of its own rows."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from noprop_kernels import embed_time


def check_networks(op: str, networks: Sequence[object], count: int) -> list[nn.Module]:
    """`networks`, which must be so many modules that share no tensor.

    Raises:
        ValueError: they are not, or one is not initialised, not on the CPU or not float32.
    """
    for network in networks:
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"{op}: networks must be nn.Modules, got {type(network).__name__} among them"
            )
    if len(networks) != count:
        raise ValueError(f"{op}: networks must be {count}, T of each seed, got {len(networks)}")
    modules = [network for network in networks if isinstance(network, nn.Module)]
    owners: dict[object, tuple[int, str]] = {}
    for i, module in enumerate(modules):
        for name, value in chain(module.named_parameters(), module.named_buffers()):
            check_stored(op, f"{name} of network {i + 1}", value)
            keys = (id(value), value.untyped_storage().data_ptr() or id(value))
            for key in keys:
                other, shared = owners.setdefault(key, (i, name))
                if other != i:
                    raise ValueError(
                        f"{op}: networks must share no tensor, so that each is trained by its own "
                        f"loss alone, got {shared} of network {other + 1} and {name} of network "
                        f"{i + 1} in one memory; give each network a copy (copy.deepcopy)"
                    )
    return modules


def check_stored(op: str, name: str, value: Tensor) -> None:
    """
    Raises:
        ValueError: a tensor of a network is not initialised, not on the CPU or not float32.
    """
    if is_lazy(value):
        raise ValueError(f"{op}: {name} must be initialised, got a lazy one; call the module once")
    if value.device.type != "cpu":
        raise ValueError(
            f"{op}: {name} must be on the CPU, where an object is built and then moved as a whole, "
            f"got {value.device}"
        )
    if value.is_floating_point() and value.dtype != torch.float32:
        raise ValueError(
            f'{op}: {name} must be torch.float32, got {value.dtype}; precision="bfloat16" computes '
            "in bfloat16"
        )


def trained(*modules: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [param for module in modules for param in module.parameters() if param.requires_grad]


@contextmanager
def in_eval(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode; every part then has its own mode again."""
    parts = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in parts:
            part.training = training


def asked_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """The dtype of autocast in which networks run: the caller's own, else that of `precision`."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.bfloat16 if precision == "bfloat16" else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Runs a network in `dtype`; None: as it is. Weights are cast anew in each call, since an
    optimizer moves them while the caller's autocast, which would keep its casts, goes on."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def exact(device: torch.device) -> AbstractContextManager[object]:
    """No autocast: noise, losses and chains are float32."""
    return torch.autocast(device.type, enabled=False)


def time_input(t: Tensor, width: int | None) -> Tensor:
    """t (B,) float64 as a network takes it: (B,), or its embedding (B, width), float32."""
    return t.float() if width is None else embed_time(t, width)


def check_logits(op: str, logits: object, owner: str, shape: tuple[int, int]) -> Tensor:
    """A network's result as float32.

    Raises:
        ValueError: it is none of this shape.
    """
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{op}: {owner} must return a tensor of logits, got {type(logits).__name__}"
        )
    if logits.shape != shape or not logits.is_floating_point():
        raise ValueError(
            f"{op}: {owner} must return logits {shape} for {shape[0]} rows and {shape[1]} classes, "
            f"got {tuple(logits.shape)} {logits.dtype}"
        )
    return logits.float()


def check_features(op: str, features: object, rows: int) -> Tensor:
    """An encoder's result.

    Raises:
        ValueError: it is no tensor of so many rows.
    """
    if not isinstance(features, Tensor) or not features.ndim or len(features) != rows:
        got = type(features).__name__
        if isinstance(features, Tensor):
            got = str(tuple(features.shape))
        raise ValueError(f"{op}: encoder must return a tensor of {rows} rows, got {got}")
    return features
