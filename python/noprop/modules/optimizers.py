"""One optimizer of torch.optim for each block, and their state as tensors of a checkpoint."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
NUMBERS = {"int": int, "float": float}  # what an optimizer may keep beside tensors


class BlockOptimizers:
    """Optimizers made by one function, each of its own parameters alone.

    Args:
        op: the caller, for errors.
        make: from a list of parameters to an optimizer of them, or of some of them.
        groups: the parameters of each optimizer, and the words that name it in errors.

    Raises:
        ValueError: `make` gives no optimizer, or one with other parameters.
    """

    def __init__(
        self, op: str, make: Make, groups: Sequence[tuple[str, list[nn.Parameter]]]
    ) -> None:
        self.make = make
        self.each = [_made(op, make, params, owner) for owner, params in groups]

    @property
    def lr(self) -> float:
        """The first optimizer's rate, on which a learning rate schedule of the trainer acts."""
        return float(self.each[0].param_groups[0]["lr"])

    @property
    def kind(self) -> str:
        return type(self.each[0]).__name__

    def step(self, i: int, lr: float | None) -> None:
        """A step of optimizer i. With `lr` its first group has this rate and the others keep their
        proportions to it; its own rates come back afterwards."""
        optimizer = self.each[i]
        groups = optimizer.param_groups
        own = [group["lr"] for group in groups]
        try:
            if lr is not None:
                for group, rate in zip(groups, own, strict=True):
                    group["lr"] = lr if rate == own[0] else lr * float(rate) / float(own[0])
            optimizer.step()
        finally:
            for group, rate in zip(groups, own, strict=True):
                group["lr"] = rate

    # state

    def tensors(self) -> dict[str, Tensor]:
        """All that the optimizers keep, by "optimizer.parameter.name"; numbers become tensors.

        Raises:
            ValueError: one keeps something else.
        """
        found = {}
        for i, optimizer in enumerate(self.each):
            for j, param in enumerate(_params(optimizer)):
                for name, value in optimizer.state.get(param, {}).items():
                    key = f"{i}.{j}.{name}"
                    kind = type(value).__name__
                    if isinstance(value, Tensor):
                        found[key] = value.detach()
                    elif kind in NUMBERS:
                        dtype = torch.int64 if kind == "int" else torch.float64
                        found[f"{key}:{kind}"] = torch.tensor(value, dtype=dtype, device="cpu")
                    elif value is not None:
                        raise ValueError(
                            f"state_dict: optimizer must keep tensors and numbers, got {name} of "
                            f"{type(optimizer).__name__}, {kind}"
                        )
        return found

    def states(self, op: str, tensors: dict[str, Tensor]) -> list[dict[int, dict[str, Any]]]:
        """What `tensors` has given, as each optimizer's state by the position of its parameter.

        Raises:
            ValueError: a name or a shape does not fit.
        """
        states: list[dict[int, dict[str, Any]]] = [{} for _ in self.each]
        params = [_params(optimizer) for optimizer in self.each]
        for key, value in tensors.items():
            i, j, name = (*key.split(".", 2), "", "")[:3]
            there = i.isdecimal() and j.isdecimal() and int(i) < len(params)
            if not there or int(j) >= len(params[int(i)]):
                raise ValueError(
                    f"{op}: state_dict must be of {len(params)} optimizers with the parameters "
                    f"that these have, got optimizers.{key}"
                )
            like = params[int(i)][int(j)]
            if value.ndim and value.numel() == like.numel() and value.shape != like.shape:
                raise ValueError(
                    f"{op}: optimizers.{key} must have shape {tuple(like.shape)}, got "
                    f"{tuple(value.shape)}"
                )
            name, _, kind = name.partition(":")
            kept = NUMBERS[kind](value.item()) if kind in NUMBERS else value.clone()
            states[int(i)].setdefault(int(j), {})[name] = kept
        return states

    def restore(self, states: list[dict[int, dict[str, Any]]]) -> None:
        """Takes over the result of `states`, on the parameters' devices."""
        for optimizer, state in zip(self.each, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})

    def follow(self) -> None:
        """Brings what is kept to the devices of the parameters."""
        for optimizer in self.each:
            optimizer.load_state_dict(optimizer.state_dict())


def _params(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _made(op: str, make: Make, params: list[nn.Parameter], owner: str) -> torch.optim.Optimizer:
    if not params:
        raise ValueError(f"{op}: {owner} must have parameters that require a gradient, got none")
    made = make(params)
    if not isinstance(made, torch.optim.Optimizer):
        got = type(made).__name__
        raise ValueError(f"{op}: optimizer must make a torch.optim.Optimizer, got {got}")
    if isinstance(made, torch.optim.LBFGS) or any("lr" not in each for each in made.param_groups):
        raise ValueError(
            f"{op}: optimizer must take its steps without a closure, and have a rate lr, got "
            f"{type(made).__name__}"
        )
    rates = [float(group["lr"]) for group in made.param_groups]
    if rates[0] == 0 and any(rates):
        raise ValueError(
            f"{op}: optimizer must have a first rate above 0, to which the others keep their "
            f"proportions, got {rates}"
        )
    own = {*map(id, params)}
    if any(id(param) not in own for param in _params(made)):
        raise ValueError(
            f"{op}: optimizer must make an optimizer of the parameters that it is given, got one "
            f"with others for {owner}"
        )
    return made
