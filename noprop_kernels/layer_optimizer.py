"""The optimizer inside a layer's backward: numbers that may be changed between steps, and its state
in torch.optim's form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from .calls import Rule
from .check import check_tensor
from .optimizers import SGD, AdamW, Optimizer


class LayerOptimizer:
    """SGD, Adam or AdamW of one layer; lr and weight_decay may be set between steps.

    Attributes:
        lr, weight_decay: floats.
        settings: all numbers, as the SGD, Adam or AdamW that they now make.
    """

    def __init__(self, op: str, settings: Optimizer) -> None:
        if not isinstance(settings, Optimizer):
            raise ValueError(
                f"{op}: optimizer must be SGD, Adam or AdamW of noprop_kernels or None, "
                f"got {type(settings).__name__}"
            )
        if isinstance(settings.weight_decay, tuple):
            raise ValueError(
                f"{op}: optimizer must have one weight_decay, got {settings.weight_decay}"
            )
        self.settings = settings
        self._made: tuple[Any, Rule] | None = None

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
        key = (self.settings, device)
        if self._made is None or self._made[0] != key:
            self._made = key, rule_of(self.settings, self.lr, self.weight_decay, device)
        return self._made[1]

    def __repr__(self) -> str:
        return repr(self.settings)

    # torch.optim's form

    def state_dict(
        self, moments: Mapping[str, Tensor], updates: Tensor, parts: Sequence[str]
    ) -> dict[str, Any]:
        """What torch.optim's state_dict would be, for the parameters `parts` in order."""
        step = updates.to(torch.float32)[0]
        state = {
            i: {
                "step": step.clone(),
                **{theirs: moments[f"{part}_{ours}"] for ours, theirs in self._names().items()},
            }
            for i, part in enumerate(parts)
        }
        return {"state": state, "param_groups": [self._group() | {"params": [*range(len(parts))]}]}

    def load(
        self, op: str, given: Mapping[str, Any], moments: Mapping[str, Tensor], updates: Tensor,
        parts: Sequence[str],
    ) -> None:  # fmt: skip
        """Takes moments, updates and numbers from a state_dict of this form, torch.optim's too.

        Raises:
            ValueError: it is of another optimizer or other parameters; nothing has changed.
        """
        groups = given.get("param_groups", ())
        if len(groups) != 1 or len(groups[0]["params"]) != len(parts):
            raise ValueError(
                f"{op}: state_dict must have one group with {list(parts)}, got {groups}"
            )
        group = groups[0]
        own, numbers = self._group(), asdict(self.settings)
        for name, value in own.items():
            fixed = name not in numbers
            if name not in group and not fixed or fixed and group.get(name, value) != value:
                raise ValueError(
                    f"{op}: state_dict must be one of {type(self.settings).__name__}, "
                    f"got a group with {name}={group.get(name)!r}"
                )
        for name in ("amsgrad", "maximize"):
            if group.get(name):
                raise ValueError(f"{op}: state_dict must be without {name}, got {name}=True")
        settings = replace(
            self.settings,
            **{
                name: float(group[name]) if name in ("lr", "weight_decay") else group[name]
                for name in numbers
            },
        )
        if settings.moments != self.moments:
            raise ValueError(f"{op}: state_dict must have the moments of {self}, got {settings}")
        steps, found = set(), {}
        for part, key in zip(parts, group["params"], strict=True):
            entry = given["state"].get(key, {})
            steps.add(int(entry.get("step", 0)))
            for ours, theirs in self._names().items():
                name = f"{part}_{ours}"
                value = entry.get(theirs)
                if value is not None:
                    check_tensor(op, theirs, value, shape=moments[name].shape)
                found[name] = value
        if len(steps) != 1:
            raise ValueError(f"{op}: state_dict must have one step for all, got {sorted(steps)}")
        self.settings = settings
        with torch.no_grad():
            updates.fill_(steps.pop())
            for name, value in found.items():
                moments[name].zero_() if value is None else moments[name].copy_(value)

    def _names(self) -> dict[str, str]:
        """torch.optim's names of our moments."""
        theirs = (
            ("momentum_buffer",) if isinstance(self.settings, SGD) else ("exp_avg", "exp_avg_sq")
        )
        return dict(zip(self.moments, theirs, strict=False))

    def _group(self) -> dict[str, Any]:
        """The numbers, and what tells torch.optim's optimizers from ours and from each other."""
        kind = isinstance(self.settings, AdamW)
        only = (
            {"dampening": 0} if isinstance(self.settings, SGD) else {"decoupled_weight_decay": kind}
        )
        return asdict(self.settings) | only


def rule_of(settings: Optimizer, lr: float, weight_decay: float, device: torch.device) -> Rule:
    return Rule(
        settings,
        torch.full((1, 1), lr, dtype=torch.float64, device=device),
        torch.full((1,), weight_decay, dtype=torch.float64, device=device),
    )
