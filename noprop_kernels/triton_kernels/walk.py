"""What the stages of a call are launched with: the device, the buffers and the call's records."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

from ..calls import Gather, Mix, Noise, Rule, Slices
from ..optimizers import SGD, Adam, AdamW
from . import tuning
from .stages import Stage, Table, floats

Address = tuple  # a tensor and how it is read: number() and slice_of() of the kernels


@dataclass
class Device:
    """How kernels are launched where the tensors are.

    Args:
        interpreted: Triton's interpreter runs them, on the CPU.
        pdl: a launch may begin while the one before it ends.
    """

    interpreted: bool
    pdl: bool

    def precision(self, name: str) -> str:
        return "bfloat16_as_float32" if self.interpreted and name == "bfloat16" else name

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *args: Any,
        warps: int = 4,
        stages: int = 2,
        **meta,
    ) -> None:
        chosen, name = tuning.current(), kernel.__name__
        options: dict[str, Any] = {
            "num_warps": chosen.warps.get(name, warps),
            "num_stages": chosen.stages.get(name, stages),
        }
        pdl = self.pdl and chosen.pdl
        if pdl:
            options["launch_pdl"] = True
        # a GPU does not warn of NaN, so NumPy under the interpreter shall not
        quiet = numpy.errstate(all="ignore") if self.interpreted else nullcontext()
        with quiet:
            kernel[grid](*args, **meta, PDL=pdl, **options)


@dataclass
class Walk:
    """One call on a table: where its buffers are, and the records that it came with.

    Args:
        at: every buffer, and the tensors of the call by the table's names.
        places: where each slice's rows of a gathered input are, (n,) int64.
        index: (n,) int64, where the tensors are.
    """

    device: Device
    table: Table
    slices: Slices
    index: Tensor
    B: int
    at: dict[str, Tensor]
    places: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor | Gather] = field(default_factory=dict)
    noise: Noise | None = None
    mix: Mix | None = None
    y: Tensor | Gather | None = None
    rule: Rule | None = None
    training: bool = True
    errors: Tensor | None = None  # (1,) int32; None: contents need no look

    @property
    def n(self) -> int:
        return self.index.shape[0]

    def launch(self, kernel: Any, stage: Stage, *args: Any, **meta: Any) -> None:
        self.device.launch(kernel, stage.grid, *args, **meta)

    def source(self, name: str) -> Address:
        """A result or input as a product's source."""
        tensor, places = self.at[name], self.places.get(name)
        shared = name in self.inputs and places is None and not differs(tensor, 0)
        return tensor, int(not shared), places

    def parameter(self, name: str) -> Address:
        slices = self.slices
        return (
            slices.params[name],
            slices.m.get(name),
            slices.v.get(name),
            self.at.get(f"grad:{name}"),
        )


def stored(value: Tensor) -> Tensor:
    """The entries that an expanded tensor has in memory."""
    return value[tuple(slice(0, 1 if stride == 0 else None) for stride in value.stride())]


def differs(value: Tensor, dim: int) -> bool:
    return value.shape[dim] > 1 and value.stride(dim) != 0


def number(value: Tensor) -> Address:
    """(K, n, B), (K, n) or (n,), expanded, as number() of the kernels takes it."""
    slices = int(value.stride(min(1, value.ndim - 1)) != 0)  # for one slice as for more
    steps = int(value.ndim > 1 and differs(value, 0))
    rows = int(value.ndim == 3 and differs(value, 2))
    return stored(value).contiguous(), steps, slices, rows


def compact(value: Tensor) -> Tensor:
    """An expanded tensor whose entries lie together, so that no launch has to copy them."""
    kept = stored(value)
    return value if kept.is_contiguous() else kept.contiguous().expand(value.shape)


@dataclass
class Room:
    """Memory for workspaces of which one is used at a time; made anew where it is too small."""

    whole: Tensor | None = None

    def take(self, size: int, device: torch.device) -> Tensor:
        if self.whole is None or self.whole.numel() < size:
            self.whole = torch.empty(size, dtype=torch.float32, device=device)
        return self.whole


def allocate(table: Table, device: torch.device, room: Room | None = None) -> dict[str, Tensor]:
    """The buffers of a table's workspace, views of one tensor."""
    whole = (Room() if room is None else room).take(table.floats, device)
    views = {}
    for name, shape in table.shapes.items():
        start = table.offsets[name]
        views[name] = whole[start : start + floats(shape)].view(shape[1]).view(shape[0])
    return views


def rule_name(rule: Rule | None) -> str:
    if rule is None:
        return "none"
    optimizer = rule.optimizer
    if isinstance(optimizer, SGD):
        momentum = "nesterov" if optimizer.nesterov else "momentum"
        return momentum if optimizer.momentum else "sgd"
    assert isinstance(optimizer, Adam)  # the caller refuses what is none of ours
    return "adamw" if isinstance(optimizer, AdamW) else "adam"


def hyper(rule: Rule | None) -> tuple[float, ...]:
    """The optimizer's own numbers, formed in float64."""
    optimizer = rule.optimizer if rule is not None else None
    if isinstance(optimizer, SGD):
        return (optimizer.momentum,)
    if isinstance(optimizer, Adam):
        beta_1, beta_2 = optimizer.betas
        return 1 - beta_1, beta_2, 1 - beta_2, optimizer.eps
    return (0.0,)


def log_betas(rule: Rule | None) -> dict[str, Any]:
    """ln beta; of a beta of 0 what gives exp(ln beta) = 0."""
    optimizer = rule.optimizer if rule is not None else None
    betas = optimizer.betas if isinstance(optimizer, Adam) else (0.0, 0.0)
    logs = [math.log(beta) if beta > 0 else -1e4 for beta in betas]
    return {"LOG_BETA_1": logs[0], "LOG_BETA_2": logs[1]}


def classes(mix: Mix) -> int:
    return mix.D if mix.W_embed is None else len(mix.W_embed)


def rates_of(rule: Rule | None) -> tuple[Address | None, Address | None]:
    if rule is None:
        return None, None
    lr, decay = rule.lr, rule.weight_decay
    return number(lr), number(decay)
