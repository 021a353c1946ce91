"""The optimizer inside a layer's backward: its hyperparameters, which may change between steps, and
its state in torch.optim's form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..backends.calls import Rule
from ..check import check_tensor
from ..optimizers import Optimizer, check_optimizer


class LayerOptimizer:
    """The optimizer of one layer, of which lr and weight_decay may be set between steps.

    Attributes:
        lr, weight_decay: floats.
        settings: the optimizer with the current hyperparameters.
    """

    def __init__(self, op: str, settings: Optimizer) -> None:
        check_optimizer(op, settings, " of noprop_kernels or None")
        if isinstance(settings.weight_decay, tuple):
            raise ValueError(
                f"{op}: optimizer must have one weight_decay, got {settings.weight_decay}"
            )
        self.settings = settings
        self._made: tuple[Optimizer, torch.device, Rule] | None = None

    @property
    def lr(self) -> float:
        return self.settings.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.settings = replace(self.settings, lr=float(value))

    @property
    def weight_decay(self) -> float:
        decay = self.settings.weight_decay
        assert not isinstance(decay, tuple)  # by the constructor
        return decay

    @weight_decay.setter
    def weight_decay(self, value: float) -> None:
        self.settings = replace(self.settings, weight_decay=float(value))

    @property
    def moments(self) -> tuple[str, ...]:
        return self.settings.moments

    def rule(self, device: torch.device) -> Rule:
        made = self._made
        if made is None or made[0] is not self.settings or made[1] != device:
            rule = rule_of(self.settings, self.lr, self.weight_decay, device)
            self._made = made = self.settings, device, rule
        return made[2]

    def __repr__(self) -> str:
        return repr(self.settings)

    # torch.optim's form

    def state_dict(
        self, moments: Mapping[str, Tensor], updates: Tensor, parts: Sequence[str]
    ) -> dict[str, Any]:
        """torch.optim's state_dict for the parameters `parts` in order."""
        step = updates[0].to(torch.float32)
        state = {
            i: {"step": step.clone()}
            | {theirs: moments[f"{part}_{ours}"] for ours, theirs in self._names().items()}
            for i, part in enumerate(parts)
        }
        group = asdict(self.settings) | self._constants() | {"params": [*range(len(parts))]}
        return {"state": state, "param_groups": [group]}

    def load(
        self,
        op: str,
        given: Mapping[str, Any],
        moments: Mapping[str, Tensor],
        updates: Tensor,
        parts: Sequence[str],
    ) -> None:
        """Loads hyperparameters, moments and updates from such a state_dict, also torch.optim's
        own.

        Raises:
            ValueError: it belongs to another optimizer or other parameters; nothing has changed.
        """
        groups = given.get("param_groups", ())
        if len(groups) != 1 or len(groups[0]["params"]) != len(parts):
            held = [len(group["params"]) for group in groups]
            raise ValueError(
                f"{op}: state_dict must have one group, of {list(parts)}, got groups of {held}"
            )
        settings = self._of_group(op, groups[0])
        steps, found = set(), {}
        for part, key in zip(parts, groups[0]["params"], strict=True):
            entry = given.get("state", {}).get(key, {})
            steps.add(int(entry.get("step", 0)))
            for ours, theirs in self._names().items():
                name, value = f"{part}_{ours}", entry.get(theirs)
                if value is not None:  # torch.optim has none before the first step
                    check_tensor(op, f"{part}'s {theirs}", value, shape=moments[name].shape)
                found[name] = value
        if len(steps) != 1:
            raise ValueError(f"{op}: state_dict must have one step for all, got {sorted(steps)}")
        self.settings = settings
        with torch.no_grad():
            updates.fill_(steps.pop())
            for name, value in found.items():
                moments[name].zero_() if value is None else moments[name].copy_(value)

    def _of_group(self, op: str, group: Mapping[str, Any]) -> Optimizer:
        numbers, constants = asdict(self.settings), self._constants()
        other = {name for name in numbers if name not in group}
        other |= {name for name, value in constants.items() if group.get(name, value) != value}
        if not other:
            given = {name: group[name] for name in numbers}
            given |= {name: float(given[name]) for name in ("lr", "weight_decay")}
            settings = replace(self.settings, **given)
            if settings.moments == self.moments:
                return settings
            other = {"momentum"}
        raise ValueError(
            f"{op}: state_dict must be of {self}, got a group with "
            + ", ".join(f"{name}={group.get(name)!r}" for name in sorted(other))
        )

    def _names(self) -> dict[str, str]:
        """torch.optim's names of our moments."""
        return dict(zip(self.moments, self.settings.torch_moments, strict=False))

    def _constants(self) -> dict[str, Any]:
        """Options of torch.optim's optimizers that ours lack, and those that distinguish them."""
        others = {"dampening": 0, "amsgrad": False, "maximize": False}
        return {**others, **self.settings.torch_options}


@lru_cache(maxsize=64)
def rule_of(settings: Optimizer, lr: float, weight_decay: float, device: torch.device) -> Rule:
    """Its tensors are cached and shared: do not modify."""
    return Rule(
        settings,
        torch.full((1, 1), lr, dtype=torch.float64, device=device),
        torch.full((1,), weight_decay, dtype=torch.float64, device=device),
    )
