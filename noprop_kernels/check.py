"""Checks of arguments: every public function names what an argument must be and what it is."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Size = int | None  # None: any size


def shape_text(shape: Sequence[Size | str]) -> str:
    inside = ", ".join("any" if size is None else str(size) for size in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


def check_tensor(
    op: str,
    name: str,
    value: object,
    *,
    shape: Sequence[Size],
    dtype: Sequence[torch.dtype] = (torch.float32,),
    device: torch.device | None = None,
) -> Tensor:
    """`value`, if it is a tensor of this shape (None: any size), of these dtypes, on this device.

    Raises:
        ValueError: it is not; the text names the argument, what it must be and what it is.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    got = [*value.shape]
    if len(got) != len(shape) or got != [
        size if want is None else want for want, size in zip(shape, got, strict=True)
    ]:
        raise ValueError(
            f"{op}: {name} must have shape {shape_text(shape)}, got {shape_text(value.shape)}"
        )
    if value.dtype not in dtype:
        allowed = " or ".join(str(d) for d in dtype)
        raise ValueError(f"{op}: {name} must be {allowed}, got {value.dtype}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {value.device}")
    return value


def check_finite(op: str, inputs: Mapping[str, Tensor]) -> None:
    """Looks at inputs' contents, which on a GPU would wait; "z" may be anything."""
    for name, value in inputs.items():
        value = value[:1] if value.stride(0) == 0 else value  # slices share it
        if name != "z" and value.numel() and not all(map(math.isfinite, value.aminmax())):
            raise ValueError(f"{op}: {name} must be finite, got NaN or infinity")


def check_positive(op: str, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{op}: {name} must be an integer of at least 1, got {value!r}")
    return value


def check_count(op: str, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{op}: {name} must be an integer of at least 0, got {value!r}")
    return value
