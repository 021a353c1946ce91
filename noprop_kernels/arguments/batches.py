"""Checks arguments with data, and converts them to the forms of calls.py."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends.calls import Gather
from ..check import check_dense, check_memory, check_tensor, shape_text
from ..plan import Plan, Shape

DATA = (torch.float32, torch.bfloat16, torch.uint8)
INT64 = (torch.int64,)

Inputs = Tensor | Mapping[str, Tensor]
Normalize = tuple[float | Sequence[float] | Tensor, float | Sequence[float] | Tensor]


def by_name(op: str, argument: str, value: object, names: Sequence[str]) -> dict[str, Tensor]:
    """The caller's inputs by name; a single tensor is the only one."""
    if isinstance(value, Mapping):
        if set(value) != set(names):
            raise ValueError(
                f"{op}: {argument} must be tensors by the names {[*names]}, got {list(value)}"
            )
        return {name: value[name] for name in names}
    if len(names) != 1:
        raise ValueError(
            f"{op}: {argument} must be a dict with {[*names]}, got {type(value).__name__}"
        )
    return {names[0]: value}  # type: ignore[dict-item]  # check_tensor checks it next


def label(argument: str, name: str) -> str:
    """The name of one of several inputs in errors."""
    return argument if name == argument.lower() else f"{argument}[{name!r}]"


def flat(op: str, argument: str, value: object, shape: Shape) -> object:
    """Images (..., C, H, W), or (..., H, W) of one channel, as rows (..., C H W), by channel.

    Raises:
        ValueError: they are neither such images nor rows, or the channels are last.
    """
    if not isinstance(value, Tensor):
        return value
    check_dense(op, argument, value)
    if len(shape) == 1:
        return value
    check_memory(op, argument, value)
    channels, *size = shape
    if value.ndim > 3 and value.shape[-3:] == shape:
        return value.flatten(-3)
    if value.ndim > 2 and channels == 1 and value.shape[-2:] == (*size,):
        return value.flatten(-2)
    if value.ndim > 3 and value.shape[-3:] == (*size, channels):
        raise ValueError(
            f"{op}: {argument} must have its channels first, (..., {shape_text(shape)[1:]}, got "
            f"{shape_text(value.shape)}; .movedim(-1, -3) puts them there"
        )
    if value.ndim < 2 or value.shape[-1] != math.prod(shape):
        raise ValueError(
            f"{op}: {argument} must be images (..., B, {shape_text(shape)[1:]} or rows "
            f"(..., B, {math.prod(shape)}), got {shape_text(value.shape)}"
        )
    return value


def rows_of(
    op: str, argument: str, value: object, shape: Shape, slices: int, device: torch.device
) -> Tensor:
    """`value`, rows of this shape, (B, ...) or (slices, B, ...) float32, as (slices, B, F)."""
    value, width = flat(op, argument, value, shape), math.prod(shape)
    if isinstance(value, Tensor) and value.ndim not in (2, 3):
        raise ValueError(
            f"{op}: {argument} must have shape (B, {width}) or ({slices}, B, {width}), "
            f"got {shape_text(value.shape)}"
        )
    shared = not (isinstance(value, Tensor) and value.ndim == 3)
    sizes = (None, width) if shared else (slices, None, width)
    tensor = check_tensor(op, argument, value, shape=sizes, device=device)
    return tensor.expand(slices, *tensor.shape) if shared else tensor


def same_rows(op: str, tensors: Mapping[str, Tensor], axis: int, argument: str) -> int:
    """The common number of rows of all inputs."""
    sizes = {name: tensor.shape[axis] for name, tensor in tensors.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"{op}: {argument} must have the same rows in every input, got {sizes}")
    return next(iter(sizes.values()))


def check_inputs(
    op: str, x: object, plan: Plan, names: Sequence[str], slices: int, device: torch.device
) -> dict[str, Tensor]:
    """The inputs of these names as (slices, B, F) float32; a shared one is expanded."""
    inputs = {
        name: rows_of(op, label("x", name), value, plan.shapes[name], slices, device)
        for name, value in by_name(op, "x", x, names).items()
    }
    same_rows(op, inputs, 1, "x")
    return inputs


def packed(x: Tensor) -> Tensor:
    """(slices, B, F) with contiguous rows; an expanded first dimension stays expanded."""
    if x.stride(0) == 0:
        ready = x.stride()[1:] == (x.shape[2], 1)
        return x if ready else x[:1].contiguous().expand(x.shape)
    return x.contiguous()


def refuse_graph(op: str, *given: Any) -> None:
    """Refuses inputs that require grad: no gradient would reach the module that made them."""
    for value in given:
        for tensor in value.values() if isinstance(value, Mapping) else (value,):
            if getattr(tensor, "requires_grad", False) and torch.is_grad_enabled():
                raise ValueError(
                    f"{op}: inputs must not require a gradient, since none goes back to them; give "
                    "x.detach(), or train_step x.detach() with input_grad=True and call "
                    "x.backward(step.d_x), or use loss()"
                )


def check_labels(op: str, y: object, B: int | None, device: torch.device) -> Tensor:
    """`y`, (B,) int64; its contents are the backend's to check."""
    return check_tensor(op, "y", y, shape=(B,), dtype=INT64, device=device)


def check_indices(op: str, indices: object, R: int, device: torch.device) -> Tensor:
    """(K, B), shared, or (K, R, B), as (K, R or 1, B)."""
    if isinstance(indices, Tensor) and indices.ndim == 3:
        shape = (None, R, None)
    else:
        shape = (None, None)
    tensor = check_tensor(op, "indices", indices, shape=shape, dtype=INT64, device=device)
    return (tensor if tensor.ndim == 3 else tensor[:, None]).contiguous()


def gather_inputs(
    op: str,
    X: object,
    Y: object,
    indices: object,
    normalize: Normalize | Mapping[str, Normalize] | None,
    plan: Plan,
    names: Sequence[str],
    replica: Tensor,
    R: int,
    device: torch.device,
) -> tuple[dict[str, Tensor | Gather], Tensor | Gather, int, int]:
    """The inputs and labels of K steps, and (K, B), for `train_steps`' arguments."""
    gathered = indices is not None
    lead = (None,) if gathered else (None, None)  # rows of a data set, or (K, B) of them
    data = {
        name: check_tensor(
            op,
            label("X", name),
            flat(op, label("X", name), value, plan.shapes[name]),
            shape=(*lead, plan.widths[name]),
            dtype=DATA,
            device=device,
        )
        for name, value in by_name(op, "X", X, names).items()
    }
    labels = check_tensor(op, "Y", Y, shape=lead, dtype=INT64, device=device)
    for axis in range(len(lead)):
        same_rows(op, {**data, "Y": labels}, axis, "X and Y")
    per_input = normalize if isinstance(normalize, Mapping) else dict.fromkeys(data, normalize)
    if unknown := set(per_input) - set(data):
        raise ValueError(f"{op}: normalize must name inputs {list(data)}, got {sorted(unknown)}")
    affine = {name: mean_and_scale(op, per_input.get(name), value) for name, value in data.items()}

    if gathered:
        indices = check_indices(op, indices, R, device)
    elif all(
        mean is None and data[name].dtype == torch.float32 for name, (mean, _) in affine.items()
    ):
        K, B = labels.shape
        n = len(replica)
        inputs: dict[str, Tensor | Gather] = {
            name: value.contiguous()[:, None].expand(K, n, B, -1) for name, value in data.items()
        }
        return inputs, labels.contiguous()[:, None].expand(K, n, B), K, B
    else:  # other dtypes are converted while they are gathered
        K, B = labels.shape
        indices = torch.arange(K * B, dtype=torch.int64, device=device).view(K, 1, B)
        data = {name: value.flatten(0, 1) for name, value in data.items()}
        labels = labels.flatten()
    K, per_replica, B = indices.shape
    replica = replica if per_replica > 1 else torch.zeros_like(replica)
    replica = replica.to(device, non_blocking=True)
    return (
        {
            name: Gather(value.contiguous(), indices, replica, *affine[name])
            for name, value in data.items()
        },
        Gather(labels.contiguous(), indices, replica),
        K,
        B,
    )


def mean_and_scale(
    op: str, normalize: Normalize | None, data: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """(F,) float32 such that the feature is (data - mean) * scale, formed in float64.

    uint8 counts as 0..255 of [0, 1], as in torchvision's ToTensor: `normalize` is in those units,
    the returned numbers in units of bytes. A std whose inverse is beyond float32 marks a constant
    feature, whose scale is 0.
    """
    F = data.shape[-1]
    unit = 255.0 if data.dtype == torch.uint8 else 1.0
    if normalize is None:
        if unit == 1.0:
            return None, None
        mean = torch.zeros(F, dtype=torch.float64, device="cpu")
        std = torch.ones_like(mean)
    else:
        if not isinstance(normalize, tuple | list) or len(normalize) != 2:
            raise ValueError(f"{op}: normalize must be (mean, std), got {normalize!r}")
        mean, std = (per_feature(op, value, F) for value in normalize)
    if not bool((std > 0).all()):
        raise ValueError(f"{op}: normalize must have a std above 0, got {std.min().item()}")
    scale = (1 / (unit * std)).float()
    scale = torch.where(scale.isfinite(), scale, 0.0)
    mean, scale = (v.to(data.device, non_blocking=True) for v in ((unit * mean).float(), scale))
    return mean, scale


def per_feature(op: str, value: float | Sequence[float] | Tensor, F: int) -> Tensor:
    """A number, one per channel (F / channels features in a row) or per feature: (F,) float64."""
    check_memory(op, "normalize", value)
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu").flatten()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{op}: normalize must have numbers that float64 can hold, got {value!r}"
        ) from error
    if numbers.numel() == 0 or F % numbers.numel():
        raise ValueError(
            f"{op}: normalize must have one number, one per channel or one per feature of {F}, "
            f"got {numbers.numel()}"
        )
    return numbers.repeat_interleave(F // numbers.numel())
