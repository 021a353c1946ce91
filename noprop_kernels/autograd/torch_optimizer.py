"""A torch.optim optimizer, read and stepped one parameter at a time.

Its groups and state stay the optimizer's own: kernels get the very moments, and every number is
read when it is needed.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..backends.calls import Rule
from ..check import shape_text
from ..optimizers import NAMES, OPTIMIZERS, Optimizer
from .layer_optimizer import rule_of

TORCH = {torch.optim.SGD: "SGD", torch.optim.Adam: "Adam", torch.optim.AdamW: "AdamW"}
# what the kernels do not have, and the value that leaves it out
LEFT_OUT = {"amsgrad": False, "maximize": False, "differentiable": False, "dampening": 0}


class TorchOptimizer:
    """The groups and the state of `optimizer`, by parameter.

    Raises:
        ValueError: it is of another class, a group has an option that the kernels do not have, or
            it holds a parameter twice.
    """

    def __init__(self, op: str, optimizer: object) -> None:
        if type(optimizer) not in TORCH:
            raise ValueError(
                f"{op}: optimizer must be {NAMES} of torch.optim, got {type(optimizer).__name__}"
            )
        self.op = op
        self.optimizer: Any = optimizer
        self._index: dict[Tensor, int] = {}  # the group of each parameter
        self._settings: list[Optimizer] = []  # of each group
        self._single: dict[Tensor, Any] = {}
        for i, group in enumerate(self.optimizer.param_groups):
            self.add(group["params"], i)
        self.read()

    def add(self, parameters: list[Tensor], index: int) -> None:
        self._index |= dict.fromkeys(parameters, index)

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._index

    def read(self) -> None:
        """Reads the numbers of every group.

        Raises:
            ValueError: the kernels do not have them.
        """
        kind, groups = TORCH[type(self.optimizer)], self.optimizer.param_groups
        self._settings = [settings_of(self.op, kind, group) for group in groups]

    def rule(self, parameter: Tensor) -> Rule:
        """The update rule as of the last `read`."""
        return known_rule(self._settings[self._index[parameter]], parameter.device)

    def step_count(self, parameter: Tensor) -> Tensor | None:
        """() float32, the steps so far, which SGD does not count."""
        return self.optimizer.state.get(parameter, {}).get("step")

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments by our names; at first they are made as torch.optim makes them.

        Raises:
            ValueError: the state has some of what torch.optim keeps, and not all.
        """
        index = self._index[parameter]
        settings, group = self._settings[index], self.optimizer.param_groups[index]
        if not settings.moments:
            return {}
        state = self.optimizer.state[parameter]
        if settings.kind != "SGD":  # whose moment may come later, as None until then
            if not state:
                beside = group.get("capturable") or group.get("fused")
                device = parameter.device if beside else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                for theirs in settings.torch_moments:
                    state[theirs] = torch.zeros_like(parameter, requires_grad=False)
            for theirs in ("step", *settings.torch_moments):
                if not isinstance(state.get(theirs), Tensor):
                    raise ValueError(
                        f"{self.op}: the optimizer's state must have a tensor {theirs!r} for a "
                        f"parameter of shape {shape_text(parameter.shape)}, got "
                        f"{type(state.get(theirs)).__name__}"
                    )
        found = {}
        for ours, theirs in zip(settings.moments, settings.torch_moments, strict=False):
            value = state.get(theirs)
            if value is None:
                value = state[theirs] = torch.zeros_like(parameter, requires_grad=False)
            elif not value.is_contiguous():
                value = state[theirs] = value.contiguous()
            found[ours] = value
        return found

    def step(self, parameter: Tensor) -> None:
        """torch.optim's own step of one parameter by its `.grad`, which is None afterwards."""
        single = self._single.get(parameter)
        if single is None:  # one for each, since a backward may run on several threads
            single = self._single[parameter] = type(self.optimizer)([parameter])
        group = self.optimizer.param_groups[self._index[parameter]]
        single.param_groups[0] = {**group, "params": [parameter]}
        single.state = self.optimizer.state
        single.step()
        parameter.grad = None


def settings_of(op: str, kind: str, group: Mapping[str, Any]) -> Optimizer:
    """A group's numbers as an optimizer of the kernels."""
    for name, value in LEFT_OUT.items():
        if group.get(name, value) != value:
            raise ValueError(
                f"{op}: {name} must be {value}, since the kernels lack it, got {group[name]!r}"
            )
    if kind == "Adam" and group.get("decoupled_weight_decay"):
        kind = "AdamW"
    names = [name for name in ("lr", "weight_decay", *hyper_names(kind)) if name in group]
    for name in names:
        value = group[name]
        if any(isinstance(n, Tensor) for n in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{op}: {name} must be numbers, got a tensor in {value!r}")
    return known_settings(kind, *((name, as_number(group[name])) for name in names))


def as_number(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=4)
def hyper_names(kind: str) -> tuple[str, ...]:
    return tuple(OPTIMIZERS[kind]().hyper())


@lru_cache(maxsize=64)
def known_settings(kind: str, *numbers: tuple[str, Any]) -> Optimizer:
    return OPTIMIZERS[kind](**dict(numbers))


@lru_cache(maxsize=64)
def known_rule(settings: Optimizer, device: torch.device) -> Rule:
    assert not isinstance(settings.weight_decay, tuple)  # a group has one
    return rule_of(settings, settings.lr, settings.weight_decay, device)
