"""Checks of arguments: every public function names what an argument must be and what it is."""

import math
from collections.abc import Callable, Sequence
from operator import index

import torch
from torch import Tensor

Size = int | None  # None: any size

MOST = 2**31 - 1  # a width's maximum: kernels and tables keep it in 32 bits
MOST_COUNT = 2**32 - 1  # the maximum of a word of noise's counter: a row, a draw
PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
LARGEST = float(torch.finfo(torch.float32).max)  # of a number that kernels read as float32
SMALLEST = float(torch.finfo(torch.float32).tiny)


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
    """Returns `value` if it is a tensor of this shape (None: any size), dtypes and device.

    Raises:
        ValueError: it is not; the text names the argument, the requirement and the value.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    check_dense(op, name, value)
    got = value.shape
    fits = len(got) == len(shape)
    for want, size in zip(shape, got, strict=False):
        fits = fits and (want is None or want == size)
    if not fits:
        raise ValueError(
            f"{op}: {name} must have shape {shape_text(shape)}, got {shape_text(value.shape)}"
        )
    if value.dtype not in dtype:
        allowed = " or ".join(str(d) for d in dtype)
        raise ValueError(f"{op}: {name} must be {allowed}, got {value.dtype}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {value.device}")
    check_memory(op, name, value)
    return value


def check_dense(op: str, name: str, value: Tensor) -> None:
    if value.layout is not torch.strided or value.is_nested:
        got = "a nested tensor" if value.is_nested else str(value.layout)
        raise ValueError(f"{op}: {name} must be dense, got {got}; .to_dense() makes most so")


def check_memory(op: str, name: str, value: object) -> None:
    """Checks that a tensor's storage covers every entry: it may have been released or resized
    without the tensor, and PyTorch's own operations would read beyond it.
    """
    if not isinstance(value, Tensor) or type(value) not in PLAIN:
        return
    if torch.compiler.is_compiling() or not value.is_cpu:
        return
    if value.layout != torch.strided or value.numel() == 0:
        return
    try:
        size = value.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # of vmap and the like, which kernels refuse
        return
    last = value.storage_offset()
    if value.is_contiguous():
        last += value.numel() - 1
    else:
        last += sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    if size < (last + 1) * value.element_size():
        raise ValueError(
            f"{op}: {name} must have memory for its {value.numel()} entries, got a storage of "
            f"{size} bytes"
        )


def is_flag(value: object) -> bool:
    """Whether a value is a bool of Python, numpy or torch, which Python would take as a number."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def check_integer(op: str, name: str, value: object, least: int, most: int) -> int:
    """An integer of any type, also numpy's, in least..most."""
    check_memory(op, name, value)
    try:
        number = least - 1 if is_flag(value) else index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # torch's of a tensor with several entries
        number = least - 1
    if number < least:
        raise ValueError(f"{op}: {name} must be an integer of at least {least}, got {value!r}")
    if number > most:
        raise ValueError(f"{op}: {name} must be an integer of at most {most}, got {value!r}")
    return number


def check_positive(op: str, name: str, value: object, most: int = MOST) -> int:
    return check_integer(op, name, value, 1, most)


def check_count(op: str, name: str, value: object, most: int = MOST_COUNT) -> int:
    return check_integer(op, name, value, 0, most)


def check_number(
    op: str, name: str, value: object, must: str, fits: Callable[[float], bool]
) -> float:
    """A number of any type, as a float that `fits`; an integer beyond floats does not."""
    check_memory(op, name, value)
    number = math.nan
    if not (is_flag(value) or isinstance(value, str | bytes)):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
    if math.isnan(number) or not fits(number):
        raise ValueError(f"{op}: {name} must {must}, got {value!r}")
    return number


def check_stored(
    op: str,
    name: str,
    value: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """A tensor in the form that kernels address."""
    if value.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be a strided tensor, got {value.layout}")
    if [value.is_contiguous(), value.dtype, value.shape, value.device] != [
        *(True, dtype, shape, device)
    ]:
        raise ValueError(
            f"{op}: {name} must be a contiguous {dtype} tensor of shape {shape_text(shape)} on "
            f"{device}, got {shape_text(value.shape)} {value.dtype} with strides {value.stride()} "
            f"on {value.device}"
        )
    check_memory(op, name, value)


def check_counter(op: str, name: str, value: Tensor, steps: int) -> None:
    """Checks that counters can advance by this many steps."""
    counts = value.tolist()
    if min(counts) < 0 or max(counts) + steps > MOST_COUNT + 1:
        raise ValueError(
            f"{op}: {name} must be in 0..{MOST_COUNT} for each of {steps} steps, got "
            f"{min(counts)} to {max(counts)}"
        )
