"""One dense layer as a backend's calls: y = activation(x @ weight.T + bias), gradients and update.

It is a plan with the only input "z", over one slice. Leading dimensions of x are rows. The CPU
kernels take its tensors as they are; other backends take records of stacked ones.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..backends.calls import BackwardCall, ForwardCall, Rule, Slices, Tensors, UpdateCall
from ..check import check_tensor, shape_text
from ..plan import Dense, Plan

PARTS = ("weight", "bias")
NAMES = (*PARTS, "weight_m", "weight_v", "bias_m", "bias_v")  # as a backend takes them
NO_MOMENTS = (None,) * 4
SHAPE = attrgetter("shape")


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
        op, name: of the call and of x, for errors.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str | None
    precision: str
    backend: ModuleType
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    updates: Tensor | None = None
    made: Slices | None = None  # of an earlier call on the same tensors
    op: str = "forward"
    name: str = "x"
    saved: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        out_features, in_features = self.weight.shape
        self.plan = plan_of(in_features, out_features, self.activation)
        # whether the backend takes the tensors as they are
        self.takes_tensors = hasattr(self.backend, "forward_layer")
        moments = (self.moments.get(name) for name in NAMES[2:]) if self.moments else NO_MOMENTS
        self.tensors = (self.weight, self.bias, *moments)  # by NAMES
        named = zip(NAMES, self.tensors, strict=True)
        self.present = {name: value for name, value in named if value is not None}
        self._memory: Any = None  # of the tensors in the forward that saved

    def again(self, saved: Any) -> "Layer":
        """The same layer after another forward, for which its tensors were where they are known to
        be."""
        made = object.__new__(Layer)
        made.__dict__.update(self.__dict__)
        made.saved = saved
        return made

    def forward(self, x: Tensor, *, save: bool) -> Tensor:
        """y (*, out) of x (*, in)."""
        y = x.new_empty(*x.shape[:-1], self.weight.shape[0])
        if y.numel() > 0:
            self._forward(x, y, save)
        return y

    def save(self, x: Tensor) -> None:
        """What a backward of a layer without activation needs of x, without y."""
        if x.numel() > 0:
            self._forward(x, None, save=True)

    def _forward(self, x: Tensor, y: Tensor | None, save: bool) -> None:
        if save:
            self._memory = memory_of(self.present.values())
        if self.takes_tensors:
            x = x if x.is_contiguous() else x.contiguous()
            self.saved = self.backend.forward_layer(
                *(self.plan, self.precision, self.op, self.name, x, self.weight, self.bias, y, save)
            )
            return
        call = ForwardCall(
            slices=self.slices(),
            inputs={"z": x.detach().contiguous().view(1, -1, x.shape[-1])},
            logits=None if y is None else y.detach().view(1, -1, y.shape[-1]),  # it may be kept
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
        applied: Tensor | None = None,
    ) -> Tensor | None:
        """d_x (*, in) if requested.

        Gradients are written into `grads`, by part; with a rule the layer is updated instead,
        except frozen parts, where d_y is finite, of which `applied` (1,) bool tells. No rows are a
        gradient of 0, and so an update.
        """
        if self._memory and memory_of(self.present.values()) != self._memory:
            self._refuse_memory()
        d_x = d_y.new_empty(*d_y.shape[:-1], self.weight.shape[1]) if input_grad else None
        if d_y.numel() == 0:
            for value in (grads or {}).values():
                value.zero_()
            if rule is not None:
                apply = torch.ones(1, dtype=torch.bool, device=d_y.device)
                self._update_from_zero(rule, frozen, apply)
                if applied is not None:
                    applied.copy_(apply)
            return d_x
        d_y = d_y if d_y.is_contiguous() else d_y.contiguous()
        run = self._by_tensors if self.takes_tensors else self._by_record
        try:
            run(d_y, d_x, grads, rule, frozen, applied)
        except (ValueError, MemoryError):  # raised before anything is written
            raise
        except BaseException:
            self._tell_writes(rule, frozen)
            raise
        self._tell_writes(rule, frozen)
        return d_x

    def _by_tensors(
        self,
        d_y: Tensor,
        d_x: Tensor | None,
        grads: Mapping[str, Tensor] | None,
        rule: Rule | None,
        frozen: tuple[str, ...],
        applied: Tensor | None,
    ) -> None:
        tensors = self.tensors
        if frozen:
            tensors = tuple(
                value.detach().clone() if value is not None and is_of(name, frozen) else value
                for name, value in zip(NAMES, tensors, strict=True)
            )
        self.backend.backward_layer(
            *(self.plan, self.precision, self.saved, *tensors[:2], d_y),
            d_x=d_x,
            grads=(grads["weight"], grads["bias"]) if grads else None,
            rule=rule,
            moments=tensors[2:],
            updates=self.updates,
            applied=applied,
        )

    @torch.no_grad()
    def _by_record(
        self,
        d_y: Tensor,
        d_x: Tensor | None,
        grads: Mapping[str, Tensor] | None,
        rule: Rule | None,
        frozen: tuple[str, ...],
        applied: Tensor | None,
    ) -> None:
        if rule is not None and applied is None:
            applied = torch.empty(1, dtype=torch.bool, device=d_y.device)
        stacked = {f"y.{part}": value[None] for part, value in (grads or {}).items()}
        call = BackwardCall(
            slices=self.slices(frozen),
            saved=self.saved,
            d_logits=d_y.detach().view(1, -1, d_y.shape[-1]),
            grads=stacked or None,
            d_inputs={} if d_x is None else {"z": d_x.view(1, -1, d_x.shape[-1])},
            rule=rule,
            applied=applied if rule is not None else None,
        )
        self.backend.backward(call)

    def slices(self, frozen: tuple[str, ...] = ()) -> Slices:
        """The layer as a stack of one slice; frozen parameters are passed as clones."""
        if self.made is not None and not frozen:
            return self.made

        def stacked(name: str, value: Tensor | None) -> Tensor:
            if value is None:  # a layer without bias has one of zeros for the call
                return self.weight.new_zeros(1, self.weight.shape[0])
            value = value.detach()
            return (value.clone() if is_of(name, frozen) else value).unsqueeze(0)

        def group(suffix: str) -> Tensors:
            if f"weight{suffix}" not in self.moments:
                return {}
            names = (f"weight{suffix}", f"bias{suffix}")
            return {f"y.{name[:-2]}": stacked(name, self.moments.get(name)) for name in names}

        counter = only_slice() if self.updates is None else self.updates
        made = Slices(
            plan=self.plan,
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

    @torch.no_grad()
    def _update_from_zero(self, rule: Rule, frozen: tuple[str, ...], apply: Tensor) -> None:
        slices = self.slices(frozen)
        grads = {name: torch.zeros_like(value) for name, value in slices.params.items()}
        self.backend.update(UpdateCall(slices=slices, grads=grads, apply=apply, rule=rule))
        self._tell_writes(rule, frozen)

    def _tell_writes(self, rule: Rule | None, frozen: tuple[str, ...]) -> None:
        """Tells torch which tensors a backward wrote."""
        if rule is None:
            return
        written = [*self.present.values()]
        if frozen:
            written = [value for name, value in self.present.items() if not is_of(name, frozen)]
        increment_version(written if self.updates is None else [*written, self.updates])

    def _refuse_memory(self) -> None:
        """
        Raises:
            ValueError: a tensor is no longer where the forward read it.
        """
        for i, (name, value) in enumerate(self.present.items()):
            if any(
                now[0] != then[i]
                for now, then in zip(memory_of([value]), self._memory, strict=True)
            ):
                raise ValueError(
                    f"backward: {name} must stay where it was in the forward, got other memory, of "
                    f"shape {shape_text(value.shape)}"
                )


def is_of(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a parameter or moment belongs to one of the parts."""
    return bool(parts) and name.split("_")[0] in parts


def memory_of(tensors: Collection[Tensor]) -> tuple[list[int], list[torch.Size]]:
    """Where they lie, and their shapes."""
    return [*map(Tensor.data_ptr, tensors)], [*map(SHAPE, tensors)]
