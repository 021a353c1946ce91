"""SIGINT, SIGTERM and SIGHUP: the first one ends a run cleanly, the second one at once.

Schedulers send SIGTERM before they kill, a closing terminal sends SIGHUP, Ctrl-C sends SIGINT. A
signal that was ignored when the process started (nohup) stays ignored.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

Handler = Callable[[int, FrameType | None], None]
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupted(KeyboardInterrupt):
    """A signal arrived; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def status(number: int) -> int:
    """The exit status of a process that a signal ended, as shells report it."""
    return 128 + number


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Installs `handler` for the signals that are not ignored; only the main thread can."""
    before = {
        number: signal.signal(number, handler)
        for number in SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def at_once(number: int, frame: FrameType | None) -> None:
    """A handler that ends the process, whatever it is doing."""
    with suppress(OSError):
        os.write(2, b"noprop: interrupted\n")  # the signal may have interrupted print
    os._exit(status(number))


def raised(number: int, frame: FrameType | None) -> None:
    """A handler that raises Interrupted."""
    raise Interrupted(number)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], int]]:
    """Defers the first signal: the yielded function returns its number instead of 0, and the
    current step completes. A second signal ends the process at once.
    """
    first = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first:
            at_once(number, frame)
        first = number

    with handled(note):
        yield lambda: first
