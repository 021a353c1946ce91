"""The extension `_C`: loaded once, told of PyTorch, called, and its errors raised by name."""

import functools
import os
import time
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...optimizers import Optimizer
from ...plan import Plan
from ..calls import Rule
from ..contents import bad_index, bad_input, bad_label
from ..turns import refused
from . import openmp

try:
    C: Any = import_module("noprop_kernels._C")
    missing = None
except ImportError as error:
    C = None
    missing = str(error)
else:
    # PyTorch describes a tensor to C directly; without that, it is read attribute by attribute
    TORCH = {
        "tensor": Tensor,
        "parameter": torch.nn.Parameter,
        "storage": torch.UntypedStorage,
        "exchange": getattr(Tensor, "__dlpack_c_exchange_api__", None),
        "followers": (
            torch._C._len_torch_function_stack,
            torch._C._len_torch_dispatch_stack,
            torch._C._are_functorch_transforms_active,
        ),
        "increment_version": torch.autograd.graph.increment_version,
    }
    C.use_torch(**TORCH)
    C.use_openmp(*openmp.functions())
    # a forked child has none of the threads that its copy of the runtime would wait for
    os.register_at_fork(after_in_child=functools.partial(C.use_openmp, 0, 0, 0))

_STOPPED, _NO_MEMORY, _BAD_LABEL, _BAD_INDEX, _BAD_INPUT, _BUSY, _FORKED = range(1, 8)


@functools.lru_cache(maxsize=1)
def processors(second: int) -> int:
    """Cached for a second: affinity and quota may change, and reading them takes 20 us."""
    return C.processors()


def threads() -> int:
    """The threads of a call: those granted to the process, at most torch.get_num_threads()."""
    return min(processors(int(time.monotonic())), torch.get_num_threads())


def run(function: Any, *arguments: Any) -> tuple[int, int, int]:
    """Calls the extension with torch function modes and subclasses disabled: it reads the
    tensors."""
    with torch._C.DisableTorchFunction():
        return function(*arguments, threads())


@functools.lru_cache(maxsize=64)
def native_plan(plan: Plan, precision: str) -> Any:
    return C.Plan(plan, precision)


@functools.lru_cache(maxsize=64)
def native_optimizer(optimizer: Optimizer) -> Any:
    moments = optimizer.moments
    has = {"has_m": "m" in moments, "has_v": "v" in moments}
    return C.Optimizer(optimizer.kind, **has, **optimizer.hyper())


def rule_of(rule: Rule | None) -> Any:
    return None if rule is None else native_optimizer(rule.optimizer)


def check(op: str, result: tuple[int, int, int], inputs: list[str], M: int) -> None:
    status, where, value = result
    if status == _NO_MEMORY:
        raise MemoryError(f"{op}: no memory for the workspace; nothing was changed")
    if status == _BAD_LABEL:
        raise bad_label(op, M, value, where)
    if status == _BAD_INDEX:
        raise bad_index(op, value, where)
    if status == _BAD_INPUT:
        raise bad_input(op, inputs[value])
    if status == _BUSY and where:
        raise RuntimeError(f"{op}: signal handlers must not interrupt each other {where} times")
    if status == _BUSY:
        raise refused(op)
    if status == _FORKED:
        raise RuntimeError(
            f"{op}: a signal handler forked the process in the middle of the call; in this child "
            "it has ended, and what it was to write may hold a part of a step"
        )


def check_isa(isa: str) -> None:
    if isa != C.isa_used():
        raise RuntimeError(
            f"backward: the forward ran with {isa} and left its layout; now {C.isa_used()} is used"
        )
