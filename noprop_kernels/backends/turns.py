"""Calls in the middle of each other, where kernels are launched or computed by Python code: what a
signal handler, a destructor, a hook or a dispatch mode may call there, and what another thread may.

Two calls conflict where one writes parameters or running statistics that the other uses. Then a
call inside the other is refused, and one of another thread waits until the other has ended. The CPU
kernels have the same rule in C++ (csrc/cpu/threads/host.h).
"""

import itertools
import os
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch

from .calls import Slices, TrainCall

POLL_SECONDS = 1e-3


class Running(NamedTuple):
    thread: int
    slices: Slices
    writes: bool


# By ticket, in their order. No lock: a handler that runs while its thread holds one would wait for
# itself, and operations of a dict and a counter are atomic.
_running: dict[int, Running] = {}
_tickets = itertools.count()


def takes_turn(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps a function of a backend; a call without slices conflicts with none."""

    @wraps(function)
    def taken(call: Any) -> None:
        if not hasattr(call, "slices"):
            return function(call)
        ticket = next(_tickets)
        try:
            _running[ticket] = Running(threading.get_ident(), call.slices, writes(call))
            if len(_running) > 1:
                wait(getattr(call, "op", function.__name__), ticket)
            function(call)
        finally:
            _running.pop(ticket, None)

    return taken


def writes(call: Any) -> bool:
    """Whether a call changes parameters or running statistics."""
    if isinstance(call, TrainCall) and call.out.grads is not None:
        return False
    return getattr(call, "rule", None) is not None or getattr(call, "training", False)


def wait(op: str, ticket: int) -> None:
    """Waits for the calls that conflict with this one and began before it.

    A call that another thread may be waiting for does not wait: one inside a call of its own
    thread, or in a backward pass, which may run in a thread of autograd's.

    Raises:
        RuntimeError: it is inside a call that it conflicts with, or may not wait.
    """
    mine = _running[ticket]
    before = {key: other for key, other in [*_running.items()] if key < ticket}
    inside = any(other.thread == mine.thread for other in before.values())
    for key, other in before.items():
        if not conflict(mine, other):
            continue
        if inside or torch._C._current_graph_task_id() != -1:
            raise refused(op)
        while key in _running:
            time.sleep(POLL_SECONDS)


def conflict(one: Running, other: Running) -> bool:
    return (one.writes or other.writes) and not storages(one.slices).isdisjoint(
        storages(other.slices)
    )


def storages(slices: Slices) -> set[int]:
    """The addresses of what a call computes with."""
    state = (*slices.params.values(), *slices.stats.values())
    return {value.untyped_storage().data_ptr() for value in state}


def refused(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}: a call in the middle of another, by a signal handler or a hook, must not use "
        "parameters that the interrupted call writes, nor write what it reads; nothing was changed"
    )


def _after_fork() -> None:
    """A forked child has none of the other threads, whose calls would never end there."""
    me = threading.get_ident()
    for ticket in [key for key, call in _running.items() if call.thread != me]:
        del _running[ticket]


os.register_at_fork(after_in_child=_after_fork)
