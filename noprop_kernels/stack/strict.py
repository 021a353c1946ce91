"""Keeps the invariants of a stack, whoever sets, loads or moves a part of it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import dispatch
from ..check import check_counter, check_positive, check_stored, check_tensor
from ..goal import Goal
from ..optimizers import check_optimizer
from ..plan import Plan
from .layout import Layout, dtype_of

# fixed by the constructor; another value needs another object
FIXED = {
    *("plan", "goal", "M", "D", "held", "replicas", "layout"),
    *("kind", "sigma", "shared", "detach_target"),
}
SETTABLE = {"optimizer", "precision", "backend", "blocks_per_launch"}


class StrictModule(nn.Module):
    """A module whose plan, sizes and tensors stay those of its constructor."""

    plan: Plan
    goal: Goal
    precision: str
    draws: Tensor
    shared: Any = None  # the nk.Shared whose embeddings and schedule it reads
    layout: Layout  # of this library's own functions
    _buffers: dict[str, Any]  # read directly, since nn.Module's attribute search is slow

    @property
    def device(self) -> torch.device:
        draws = self._buffers.get("draws")
        if not isinstance(draws, Tensor):
            got = type(draws).__name__
            raise ValueError(f"{type(self).__name__}: draws must be a tensor, got {got}")
        return draws.device

    def __len__(self) -> int:
        """N, the slices held."""
        return self.layout.N

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses attributes that would not fit the parameters, and checks those that may change.

        Raises:
            ValueError: the attribute is fixed, or its value does not fit.
        """
        op = type(self).__name__
        if name in FIXED and (name in self.__dict__ or name == "shared"):
            raise ValueError(f"{op}: {name} must stay what it was made with, make another {op}")
        if name in SETTABLE:
            self._check_option(op, name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in FIXED or name in SETTABLE:
            raise ValueError(f"{type(self).__name__}: {name} must stay, got del")
        super().__delattr__(name)

    def _check_option(self, op: str, name: str, value: Any) -> None:
        if name == "blocks_per_launch":
            if value is not None:
                check_positive(op, name, value)
        elif name == "precision":
            dispatch.check_options(op, value, None)
        elif name == "backend":
            dispatch.check_options(op, "float32", value)
        elif value is not None:
            check_optimizer(op, value, " of noprop_kernels or None")
            decays, kept = value.weight_decay, self.layout.moments
            if isinstance(decays, tuple) and len(decays) != len(self):
                raise ValueError(
                    f"{op}: optimizer must have one weight_decay or {len(self)}, got {len(decays)}"
                )
            if value.moments != kept:
                raise ValueError(
                    f"{op}: optimizer must keep the moments {kept} that the object was made with, "
                    f"got {type(value).__name__} with {value.moments}"
                )

    # the invariants of the state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if (dtype := fn(self.draws.new_empty(0, dtype=torch.float32)).dtype) != torch.float32:
            raise ValueError(
                f"{type(self).__name__}: parameters must stay torch.float32, got {dtype}"
            )
        return super()._apply(fn, recurse)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's, but refuses a state of other slices or shapes before anything is written.

        Raises:
            ValueError: keys (with strict), shapes, dtypes, seeds or t are not this object's.
        """
        if strict and (own := self.state_dict()).keys() != state_dict.keys():
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: state_dict must have the keys of this "
                f"object, got without {sorted(own.keys() - state_dict.keys())}, "
                f"with {sorted(state_dict.keys() - own.keys())}"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        op = f"{type(self).__name__}.load_state_dict"
        assign = local_metadata.get("assign_to_params_buffers")
        for name, own in self.state_dict().items():
            if prefix + name not in state_dict:
                continue  # torch reports it, unless strict is false
            given = state_dict[prefix + name]
            shape = self.layout.shapes.get(name, tuple(own.shape))
            device = self.device if assign else None  # all tensors of an object are on one device
            check_tensor(op, name, given, shape=shape, dtype=(dtype_of(name),), device=device)
            if assign:  # they become the object's own
                check_stored(op, name, given, shape, dtype_of(name), self.device)
            if name in ("draws", "updates") and given.device.type != "meta":
                check_counter(op, name, given, 0)
            if name in ("seeds", "t") and not torch.equal(own, given.to(own.device)):
                raise ValueError(
                    f"{op}: {name} must be {own.tolist()}, got {given.tolist()}; make the object "
                    "with those of the state_dict"
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
