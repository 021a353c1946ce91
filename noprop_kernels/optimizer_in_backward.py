"""nk.OptimizerInBackward: the optimizer of any model, run inside backward."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn
from weakref import WeakKeyDictionary, WeakMethod

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakTensorKeyDictionary

from .autograd.torch_optimizer import TorchOptimizer
from .autograd.updated_linear import INSTEAD, LayerUpdate, UpdatedLinear, Updates, fits
from .autograd.wrapped import refuse_data_parallel
from .backends.warn import warn_once
from .linear import Linear

OP = "OptimizerInBackward"

_taken = WeakTensorKeyDictionary()  # the parameters that one steps inside backward
# the updates of each model, which hooks of its parameters reach by a weak reference, since torch
# keeps hooks where Python's collector sees no circle
_models: WeakKeyDictionary[nn.Module, Updates] = WeakKeyDictionary()


class OptimizerInBackward(torch.optim.Optimizer):
    """An optimizer that updates each parameter in the backward that forms its gradient.

    `optimizer = nk.OptimizerInBackward(model, torch.optim.AdamW(model.parameters()))` leaves a
    training loop as it is. The weight and bias of every nn.Linear are updated in the kernel of
    their gradient, which is never written to memory; every other parameter is stepped by
    torch.optim as soon as its gradient is whole, which is then freed. So each backward is one
    update, at the weights of the forward. Groups are read at each backward; groups and state are
    those of the given optimizer, and so is `state_dict`, both ways.

    `step(closure)` runs the closure. `step` applies what is left in `.grad`, and zero_grad frees
    it: both do nothing but after `accumulate`.

    By torch.optim alone, as soon as their whole gradient is there: a weight that several modules
    own, such as a tied head's (a notice tells), subclasses of nn.Linear, other dtypes than float32,
    and a Linear's parameters where other code than the layer uses them.

    Raised before anything is written: the same Linear twice in one graph, or its weight there by
    other code (`accumulate` and `step` allow both), create_graph=True, DistributedDataParallel and
    FSDP, a weight changed between forward and backward, an option that is set and that the kernels
    do not have. What it cannot see is in the table of the page on the library; a gradient scaler
    raises at the first `step`.

    Args:
        model: the layers; its parameters and names stay as they are.
        optimizer: torch.optim.AdamW, Adam or SGD over its parameters, or some of them.

    Attributes:
        layers: the Linears that are updated in the kernel of their gradient.
        param_groups, state, defaults: those of `optimizer`.

    Raises:
        ValueError: the optimizer's class, or an option of it, is none that the kernels have; or a
            parameter has another optimizer in backward.
        RuntimeError: the model is inside DistributedDataParallel or FSDP.
    """

    _step_supports_amp_scaling = True  # so that a scaler hands over to `step`, which tells of it

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"{OP}: model must be a torch.nn.Module, got {type(model).__name__}")
        self._steps = TorchOptimizer(OP, optimizer)
        self._updates = Updates(OP, self._steps)
        self._hooks: list[Any] = []
        self._model = model
        owned = [value for group in optimizer.param_groups for value in group["params"]]
        refuse_model(model, owned)
        taken = list(linears(model, self._steps))
        super().__init__(optimizer.param_groups, optimizer.defaults)  # the same groups
        self._share()
        self._hooks.append(model.register_forward_pre_hook(refuse_wrapper))
        _models[model] = self._updates
        for name, layer in taken:
            update = LayerUpdate(self._updates, name, layer)
            self._updates.layers.append(update)
            layer.__dict__["_update"] = update
            layer.__class__ = UpdatedLinear
        self.layers = [layer for _, layer in taken]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """The closure's loss; applies what is left in `.grad`, as after `accumulate`.

        Raises:
            RuntimeError: a gradient scaler calls it.
        """
        if self.__dict__.pop("found_inf", None) is not None:  # a scaler's mark
            self.__dict__.pop("grad_scale", None)
            raise RuntimeError(
                f"{OP}: must not run under a gradient scaler, whose factor the backward could not "
                "see: one update by scaled gradients has happened, so load the weights again; "
                "bfloat16 needs no scaler"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pending = [
            value
            for group in self.param_groups
            for value in group["params"]
            if value.grad is not None
        ]
        if pending:
            self._steps.read()
            for value in pending:
                self._steps.step(value)
        return loss

    def accumulate(self) -> AbstractContextManager[None]:
        """A context in which backward adds to `.grad`, as torch's own, and updates nothing.

        A backward outside it adds its gradients and updates; `step` updates the parameters that
        had no gradient in that one. With `step` alone after it, norms can be clipped.
        """
        return self._updates.accumulate()

    def restore(self) -> None:
        """Gives the model back as it was: backward leaves `.grad` again.

        The given optimizer goes on with the same groups and state.
        """
        for hook in self._hooks:
            hook.remove()
        for layer in self.layers:
            layer.__dict__.pop("_update", None)
            layer.__class__ = nn.Linear
        for group in self.param_groups:
            for value in group["params"]:
                _taken.pop(value, None)
        self._hooks, self.layers, self._updates.layers = [], [], []
        _models.pop(self._model, None)

    # the rest of torch.optim.Optimizer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as torch.optim does; torch steps its parameters, each by its own gradient.

        Args:
            param_group: "params" and the numbers that are not the optimizer's defaults.

        Raises:
            ValueError: the kernels lack an option, or a parameter has a group already.
        """
        super().add_param_group(param_group)
        added = self.param_groups[-1]["params"]
        self._steps.add(added, len(self.param_groups) - 1)
        for value in added:
            _taken[value] = True
            if value.requires_grad:
                step = partial(step_alone, WeakMethod(self._updates.step_alone))
                self._hooks.append(value.register_post_accumulate_grad_hook(step))

    def _share(self) -> None:
        optimizer = self._steps.optimizer
        self.state, optimizer.param_groups = optimizer.state, self.param_groups

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of load_state_dict; the given optimizer mends those of earlier versions of torch."""
        optimizer = self._steps.optimizer
        optimizer.__setstate__(state)
        super().__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{OP}: must not be copied or pickled, it is its model's; use state_dict()")


def refuse_model(model: nn.Module, owned: list[Tensor]) -> None:
    """Raises for models whose parameters it must not step.

    Raises:
        ValueError: another optimizer in backward steps one of them.
        RuntimeError: they are averaged or sharded.
    """
    parameters = {id(value) for value in owned}
    for name, module in model.named_modules():
        refuse_data_parallel(OP, module, "restore() gives a model back")
        if isinstance(module, (DistributedDataParallel, *sharding_wrapper())):
            raise RuntimeError(
                f"{OP}: model must not be inside {type(module).__name__}, which averages or shards "
                "gradients that are never there"
            )
        own = [value for value in module._parameters.values() if id(value) in parameters]
        if isinstance(module, Linear) and module.optimizer is not None and own:
            raise ValueError(
                f"{OP}: optimizer must not have the parameters of {name!r}, an nk.Linear that "
                "updates them itself; optimizer=None leaves them"
            )
    if any(value in _taken for value in owned):
        raise ValueError(
            f"{OP}: optimizer must not have parameters of another {OP}; restore() frees them"
        )


def sharding_wrapper() -> tuple[type, ...]:
    """FullyShardedDataParallel, where the process has imported it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return () if fsdp is None else (fsdp.FullyShardedDataParallel,)


def linears(model: nn.Module, steps: TorchOptimizer) -> Iterator[tuple[str, nn.Linear]]:
    """The layers whose parameters the kernels update, by name."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for value in module._parameters.values():
            owners[id(value)] = owners.get(id(value), 0) + 1
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        own = {part: value for part, value in module._parameters.items() if value is not None}
        if not all(value in steps and fits(value) for value in own.values()):
            continue
        tied = [part for part, value in own.items() if owners[id(value)] > 1]
        if tied:
            warn_once(
                f"{OP}: {name}.{tied[0]} belongs to several modules; torch.optim steps it once "
                "its whole gradient is there"
            )
        else:
            yield name, module


def step_alone(weak: WeakMethod, parameter: Tensor) -> None:
    if (step := weak()) is not None:
        step(parameter)


def refuse_wrapper(module: nn.Module, _: Any) -> None:
    """Before each forward of a model, not of its copies."""
    if module in _models and not torch.compiler.is_compiling():
        refuse_data_parallel(OP, module, INSTEAD)
