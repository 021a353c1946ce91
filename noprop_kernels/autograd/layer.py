"""One dense layer as a backend's calls: y = activation(x @ weight.T + bias), gradients and update.

It is a plan with the only input "z", over one slice. Leading dimensions of x are rows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..backends.calls import BackwardCall, ForwardCall, Rule, Slices, Tensors, UpdateCall
from ..check import check_tensor, shape_text
from ..plan import Dense, Plan

PARTS = ("weight", "bias")


@lru_cache(maxsize=256)
def plan_of(in_features: int, out_features: int, activation: str | None) -> Plan:
    return Plan({"z": (in_features,)}, {"y": Dense("z", out_features, activation=activation)})


@cache
def only_slice() -> Tensor:
    """(1,), the position of the only slice; cached and shared: do not modify."""
    return torch.zeros(1, dtype=torch.int64, device="cpu")


def check_layer(op: str, x: object, weight: object, bias: object, *, name: str = "x") -> Tensor:
    """x (*, in) for weight (out, in) and bias (out,) or None, on the weight's device."""
    w = check_tensor(op, "weight", weight, shape=(None, None))
    if bias is not None:
        check_tensor(op, "bias", bias, shape=(w.shape[0],), device=w.device)
    return check_rows(op, name, x, w.shape[1], w.device)


def check_rows(op: str, name: str, x: object, width: int, device: torch.device) -> Tensor:
    """x (*, width)."""
    if isinstance(x, Tensor) and x.ndim == 0:
        raise ValueError(f"{op}: {name} must have shape (*, {width}), got {shape_text(())}")
    rows = (None,) * (x.ndim - 1) if isinstance(x, Tensor) else ()
    return check_tensor(op, name, x, shape=(*rows, width), device=device)


def properties_of(tensor: Tensor | None) -> tuple | None:
    """What the checks and the views of a parameter depend on."""
    if tensor is None:
        return None
    memory = tensor.data_ptr(), tensor.shape, tensor.is_contiguous(), tensor.device
    return memory, tensor.dtype, tensor.is_leaf, type(tensor)


@dataclass
class Layer:
    """A layer's tensors and its backend; a forward stores `saved` for backward calls.

    Args:
        weight, bias: (out, in), and (out,) or None, contiguous.
        moments: those of "weight_m", "weight_v", "bias_m", "bias_v" that the optimizer keeps.
        updates: (1,) int64, or None where nothing is updated.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str | None
    precision: str
    backend: ModuleType
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    updates: Tensor | None = None
    made: Slices | None = None  # of an earlier call on the same tensors
    saved: Any = field(default=None, init=False)

    def slices(self, frozen: tuple[str, ...] = ()) -> Slices:
        """The layer as a stack of one slice; frozen parameters are passed as clones."""
        if self.made is not None and not frozen:
            return self.made

        def stacked(name: str, value: Tensor | None) -> Tensor:
            if value is None:  # a layer without bias has one of zeros for the call
                return self.weight.new_zeros(1, self.weight.shape[0])
            value = value.detach()
            return (value.clone() if name.split("_")[0] in frozen else value).unsqueeze(0)

        def group(suffix: str) -> Tensors:
            if f"weight{suffix}" not in self.moments:
                return {}
            names = (f"weight{suffix}", f"bias{suffix}")
            return {f"y.{name[:-2]}": stacked(name, self.moments.get(name)) for name in names}

        out_features, in_features = self.weight.shape
        counter = only_slice() if self.updates is None else self.updates
        made = Slices(
            plan=plan_of(in_features, out_features, self.activation),
            params={
                "y.weight": stacked("weight", self.weight),
                "y.bias": stacked("bias", self.bias),
            },
            m=group("_m"),
            v=group("_v"),
            stats={},
            seeds=counter,  # no noise is drawn: seeds and draws are not read
            draws=counter,
            updates=counter,
            index=only_slice(),
            precision=self.precision,
        )
        self.made = None if frozen else made
        return made

    def forward(self, x: Tensor, *, save: bool) -> Tensor:
        """y (*, out) of x (*, in)."""
        y = x.new_empty(*x.shape[:-1], self.weight.shape[0])
        if y.numel() > 0:
            self._forward(x, y.detach().view(1, -1, y.shape[-1]), save)  # a backend may keep it
        return y

    def save(self, x: Tensor) -> None:
        """What a backward of a layer without activation needs of x, without y."""
        if x.numel() > 0:
            self._forward(x, None, save=True)

    def _forward(self, x: Tensor, y: Tensor | None, save: bool) -> None:
        call = ForwardCall(
            slices=self.slices(),
            inputs={"z": x.detach().contiguous().view(1, -1, x.shape[-1])},
            logits=y,
            training=False,
            save=save,
        )
        with torch.no_grad():
            self.backend.forward(call)
        self.saved = call.saved

    def backward(
        self,
        d_y: Tensor,
        *,
        input_grad: bool,
        grads: Mapping[str, Tensor] | None = None,
        rule: Rule | None = None,
        frozen: tuple[str, ...] = (),
    ) -> tuple[Tensor | None, Tensor]:
        """d_x (*, in) if requested, and `applied` (1,) bool.

        Gradients are written into `grads`, by part; with a rule the layer is updated instead,
        except frozen parts, where d_y is finite. No rows are a gradient of 0, and so an update.
        """
        self._check_memory()
        in_features = self.weight.shape[1]
        d_x = d_y.new_empty(*d_y.shape[:-1], in_features) if input_grad else None
        applied = torch.zeros(1, dtype=torch.bool, device=d_y.device)
        if d_y.numel() == 0:
            for value in (grads or {}).values():
                value.zero_()
            if rule is not None:
                self._update_from_zero(rule, frozen, applied.fill_(True))
            return d_x, applied
        call = BackwardCall(
            slices=self.slices(frozen),
            saved=self.saved,
            d_logits=d_y.detach().contiguous().view(1, -1, d_y.shape[-1]),
            grads=None
            if not grads
            else {f"y.{part}": value[None] for part, value in grads.items()},
            d_inputs={} if d_x is None else {"z": d_x.view(1, -1, in_features)},
            rule=rule,
            applied=applied if rule is not None else None,
        )
        self._write(
            lambda: self.backend.backward(call), () if rule is None else self._moving(frozen)
        )
        return d_x, applied

    def _update_from_zero(self, rule: Rule, frozen: tuple[str, ...], apply: Tensor) -> None:
        slices = self.slices(frozen)
        grads = {name: torch.zeros_like(value) for name, value in slices.params.items()}
        call = UpdateCall(slices=slices, grads=grads, apply=apply, rule=rule)
        self._write(lambda: self.backend.update(call), self._moving(frozen))

    @torch.no_grad()
    def _write(self, run: Callable[[], None], written: Iterable[Tensor]) -> None:
        """Runs a call, and tells torch which tensors it wrote."""
        try:
            run()
        except (ValueError, MemoryError):  # raised before anything is written
            written = ()
            raise
        finally:
            increment_version(written)

    def _check_memory(self) -> None:
        """Checks that the tensors still have the addresses that a forward used."""
        if self.made is None:
            return
        groups = (("", self.made.params), ("_m", self.made.m), ("_v", self.made.v))
        named = {"weight": self.weight, "bias": self.bias, **self.moments}
        for suffix, taken in groups:
            for part in PARTS if taken else ():
                now, then = named.get(part + suffix), taken[f"y.{part}"]
                if now is None:  # a layer without bias
                    continue
                if now.shape != then.shape[1:] or now.data_ptr() != then.data_ptr():
                    raise ValueError(
                        f"backward: {part}{suffix} must stay where it was in the forward, got "
                        f"other memory, of shape {shape_text(now.shape)}"
                    )

    def _moving(self, frozen: tuple[str, ...]) -> list[Tensor]:
        named = {"weight": self.weight, "bias": self.bias, **self.moments}
        moving = [value for name, value in named.items() if name.split("_")[0] not in frozen]
        return [value for value in (*moving, self.updates) if value is not None]
