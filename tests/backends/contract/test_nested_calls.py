"""Calls in the middle of each other: by a signal handler, a dispatch mode, another thread, in a
forked child."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import noprop_kernels as nk
from noprop_kernels.backends import turns
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import AdamW
from support.blocks import assert_same as assert_same_state
from support.blocks import batch, data, indices, make, snapshot
from support.calls import PLANS, clone_call, make_train_call
from support.chains import make_predict_call
from support.compare import assert_same
from support.kernels import CUDA, EVERY, REFERENCE, TRITON, name_of, on
from support.parts import make_forward, make_update

MOST = 200  # signals before a call of four steps must have begun
IN_PYTHON = (REFERENCE, TRITON, CUDA)  # a call of the CPU kernels runs no Python code but handlers
PLAN = PLANS["added_input"](5, 3, 3)  # with a norm
CALLS: dict[str, Callable[[], Any]] = {
    "train": lambda: make_train_call(PLAN, 3, 2, 4, 1, optimizer=AdamW(), D=3),
    "forward": lambda: make_forward(PLAN, 2, 4, training=True, save=False),
    "update": lambda: make_update(PLAN, AdamW(), [True, False]),
    "predict": lambda: make_predict_call(PLAN, 1, 2, 4, 1),
}


def refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RuntimeError as error:
        return "in the middle of another" in str(error) and "nothing was changed" in str(error)
    return False


class Interrupts(TorchDispatchMode):
    """Raises a signal at each of PyTorch's operations until `stop()`.

    A timer's signal could come inside a kernel of Triton's interpreter, which cannot begin another
    one there, or never inside a call that is short.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        super().__init__()
        self.stop = stop

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.stop():
            signal.raise_signal(signal.SIGALRM)
        return func(*args, **(kwargs or {}))


@contextmanager
def interrupting(kernels: ModuleType, stop: Callable[[], bool]) -> Iterator[None]:
    """Signals that come in the middle of a call; those of the CPU kernels' long ones by a timer."""
    if name_of(kernels) != "cpu":
        with Interrupts(stop):
            yield
        return
    # processor time, which a busy machine does not spend before the call begins
    signal.setitimer(signal.ITIMER_PROF, 0.02, 0.02)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@on(*EVERY)
def test_a_handler_may_use_another_object_and_not_this_one(kernels: ModuleType) -> None:
    X, Y = data()
    x, y = batch(4)
    rows = indices(60_000 if name_of(kernels) == "cpu" else 4, 4)  # long beside the timer
    with nk.use_backend(name_of(kernels)):
        blocks, twin, other = make("norm"), make("norm"), make("norm", seed=3)
        want, seen, came = other.predict(x).logits, 0, 0

        def handler(*_: object) -> None:
            nonlocal seen, came
            came += 1
            # once; before the kernels' call has begun, nothing is refused
            if not seen and refused(lambda: blocks.predict(x)):
                seen = 1
                assert refused(lambda: blocks.train_step(x, y))
                assert torch.equal(other.predict(x).logits, want)

        numbers = signal.SIGALRM, signal.SIGPROF
        before = [signal.signal(number, handler) for number in numbers]
        try:
            with interrupting(kernels, lambda: seen > 0 or came == MOST):
                losses = blocks.train_steps(X, Y, rows)
        finally:
            for number, old in zip(numbers, before, strict=True):
                signal.signal(number, old)
        assert seen
        assert torch.equal(losses, twin.train_steps(X, Y, rows))
        assert_same_state(snapshot(blocks), snapshot(twin))
        blocks.train_step(x, y)  # nothing of the handler's is left


class During(TorchDispatchMode):
    """Calls a function once, at the first operation of PyTorch's."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.function, self.calls = function, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        if self.calls == 1:
            self.function()
        return func(*args, **(kwargs or {}))


@on(*IN_PYTHON)
@pytest.mark.parametrize("inner", CALLS)
@pytest.mark.parametrize("outer", CALLS)
def test_of_two_calls_on_the_same_parameters_none_may_write(
    kernels: ModuleType, outer: str, inner: str
) -> None:
    call, found = CALLS[outer](), []
    twin, nested = clone_call(call), CALLS[inner]()
    other = clone_call(nested)
    nested.slices.params, nested.slices.stats = call.slices.params, call.slices.stats

    def run() -> None:
        found.append(refused(lambda: getattr(kernels, inner)(nested)))
        getattr(kernels, inner)(other)  # on its own parameters

    with During(run):
        getattr(kernels, outer)(call)
    assert found == [outer != "predict" or inner != "predict"]
    getattr(kernels, outer)(twin)
    assert_same(call, twin)


@on(*IN_PYTHON)
def test_gradients_alone_write_nothing(kernels: ModuleType) -> None:
    call = make_train_call(PLAN, 3, 2, 4, 1, D=3, grads=True)
    nested = clone_call(call)
    nested.slices.params, nested.slices.stats = call.slices.params, call.slices.stats
    with During(lambda: kernels.train(nested)):
        kernels.train(call)
    assert_same(call, nested)


@on(*IN_PYTHON)
def test_another_thread_waits(kernels: ModuleType) -> None:
    call = CALLS["train"]()
    twin, seen = clone_call(call), []
    thread = threading.Thread(target=kernels.train, args=(call,))

    def begin() -> None:
        thread.start()
        thread.join(0.2)
        seen.append(thread.is_alive())

    with During(begin):
        kernels.train(call)
    thread.join(60)
    assert seen == [True]
    for _ in range(2):
        kernels.train(twin)
    assert_same(call, twin)


def test_a_thread_that_the_interrupted_call_may_wait_for_is_refused() -> None:
    """In a backward pass on a GPU, autograd's own thread makes the calls."""
    call, found = CALLS["train"](), []
    x = torch.zeros(1, requires_grad=True)

    def in_backward() -> None:
        y = x.clone()
        y.register_hook(lambda _: found.append(refused(lambda: reference.train(call))))
        y.backward()

    def begin() -> None:
        thread = threading.Thread(target=in_backward)
        thread.start()
        thread.join(60)

    with During(begin):
        reference.train(call)
    assert found == [True]


def test_a_forked_child_does_not_wait_for_threads_that_it_has_not() -> None:
    call, forked, go = CALLS["train"](), threading.Event(), threading.Event()

    def stay(_: Any) -> None:
        go.set()
        assert forked.wait(60)

    thread = threading.Thread(target=turns.takes_turn(stay), args=(call,))
    thread.start()
    assert go.wait(60)
    child = os.fork()
    if child == 0:
        turns.takes_turn(lambda _: os._exit(7))(call)
    forked.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
