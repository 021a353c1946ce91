"""Tensors by dotted name in a tree of modules."""

from functools import cache
from operator import attrgetter
from typing import Any

from torch import Tensor, nn


class Node(nn.Module):
    """A node of the module tree, which holds tensors and computes nothing."""


def place(root: nn.Module, name: str, value: Tensor) -> None:
    """Registers a parameter, or a plain tensor as a buffer, under its dotted name."""
    *path, key = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            try:
                module.add_module(part, Node())
            except KeyError:
                raise ValueError(
                    f"{type(root).__name__}: plan must not name a layer {part!r}, "
                    "which is an attribute of the module"
                ) from None
        module = module.get_submodule(part)
    if isinstance(value, nn.Parameter):
        module.register_parameter(key, value)
    else:
        module.register_buffer(key, value)


@cache
def split(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """The module's path and the key of each name."""
    return [(path, key) for path, _, key in (name.rpartition(".") for name in names)]


def find(root: nn.Module, names: tuple[str, ...]) -> list[Tensor]:
    """The current tensors by dotted name.

    They are read from nn.Module's own dictionaries, since its attribute search takes three times as
    long.
    """
    held: dict[str, dict] = {}
    try:
        for path, _ in split(names):
            if path not in held:
                module: Any = root
                for part in path.split("."):
                    module = module._modules[part]
                held[path] = {**module._parameters, **module._buffers}
        return [held[path][key] for path, key in split(names)]
    except KeyError:  # a plain attribute, such as torch.nn.utils.prune's, or an error
        return [attrgetter(name)(root) for name in names]


@cache
def all_names(
    params: tuple[str, ...], moments: tuple[str, ...], stats: tuple[str, ...]
) -> tuple[str, ...]:
    """Parameters, their moments, and statistics."""
    return (*params, *(f"{name}_{moment}" for moment in moments for name in params), *stats)
