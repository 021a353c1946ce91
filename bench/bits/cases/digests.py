"""The SHA-256 of every tensor in a result."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def named(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a result, records and dicts opened."""
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from named(f"{name}.{key}", inner)
    elif isinstance(value, tuple | list):
        for i, inner in enumerate(value):
            yield from named(f"{name}.{i}", inner)
    elif is_dataclass(value):
        for field in fields(value):
            yield from named(f"{name}.{field.name}", getattr(value, field.name))


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor: its dtype, shape and bytes."""
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + data).hexdigest()
