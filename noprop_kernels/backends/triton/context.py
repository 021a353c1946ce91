"""The context of a call's launches: its device, its buffers and its records."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy
from torch import Tensor

from ..calls import Gather, Rule
from ..gpu.buffers import Buffer, Kind
from ..gpu.context import Context
from ..gpu.memory import differs, stored
from ..gpu.optimizer import hyper_of
from ..gpu.stages import Stage, Table
from . import launch_options

Address = tuple  # a tensor and its strides, for per_row() and slice_of() of the kernels


@dataclass
class Device:
    """Options of launches on the tensors' device.

    Args:
        interpreted: Triton's interpreter runs them, on the CPU.
        pdl: programmatic dependent launch: a launch may begin before the previous one ends.
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
        chosen, name = launch_options.current(), kernel.__name__
        options: dict[str, Any] = {
            "num_warps": chosen.warps.get(name, warps),
            "num_stages": chosen.stages.get(name, stages),
        }
        pdl = self.pdl and chosen.pdl
        if pdl:
            options["launch_pdl"] = True
        # a GPU does not warn of NaN, so NumPy under the interpreter must not either
        quiet = numpy.errstate(all="ignore") if self.interpreted else nullcontext()
        with quiet:
            kernel[grid](*args, **meta, PDL=pdl, **options)


@dataclass
class LaunchContext(Context):
    """One call on a table: its buffers and its records.

    Args:
        at: every buffer of the table, the call's tensors among them.
        places: each slice's position in a gathered input, (n,) int64.
    """

    device: Device
    table: Table
    at: dict[Buffer, Tensor]
    places: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor | Gather] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return self.index.shape[0]

    def launch(self, kernel: Any, stage: Stage, *args: Any, **meta: Any) -> None:
        self.device.launch(kernel, stage.grid, *args, **meta)

    def source(self, name: str) -> Address:
        """A result or an input as a product's source."""
        tensor, places = self.at[Kind.RESULT(name)], self.places.get(name)
        shared = name in self.inputs and places is None and not differs(tensor, 0)
        return tensor, int(not shared), places

    def parameter(self, name: str) -> Address:
        slices = self.slices
        return (
            slices.params[name],
            slices.m.get(name),
            slices.v.get(name),
            self.at.get(Kind.PARAMETER_GRADIENT(name)),
        )


def per_row(value: Tensor) -> Address:
    """(K, n, B), (K, n) or (n,), expanded, as per_row() of the kernels takes it."""
    slices = int(value.stride(min(1, value.ndim - 1)) != 0)  # the same for one slice as for several
    steps = int(value.ndim > 1 and differs(value, 0))
    rows = int(value.ndim == 3 and differs(value, 2))
    return stored(value).contiguous(), steps, slices, rows


def rates_of(rule: Rule | None) -> tuple[Address | None, Address | None]:
    if rule is None:
        return None, None
    lr, decay = rule.lr, rule.weight_decay
    return per_row(lr), per_row(decay)


def logs_of(rule: Rule | None) -> dict[str, Any]:
    hyper = hyper_of(rule)
    return {"LOG_BETA_1": hyper.log_beta_1, "LOG_BETA_2": hyper.log_beta_2}


def numbers_of(rule: Rule | None) -> tuple[float, ...]:
    """What step() of the kernels takes as `hyper`."""
    return hyper_of(rule)[:5]
