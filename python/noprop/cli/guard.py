"""Runs a command: an error that a user can fix becomes one line on stderr and an exit status."""

import signal
import sys
import tempfile
import traceback
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NoReturn

import typer

from ..console import forget
from ..errors import InputError, notice
from ..signals import Interrupted, handled, raised, status

LESS_MEMORY = (
    "a smaller --batch-size needs less memory; so does --blocks-per-launch on a GPU, with "
    "the same result, with which --resume goes on"
)
OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # in torch's errors


def execute(name: str, options: dict[str, Any]) -> None:
    """Calls `run` of the command's module with its options.

    Raises:
        typer.Exit: with the status of the error.
    """
    try:
        command = import_module(f".{name}", __package__)  # takes seconds, since it imports torch
        with handled(raised):
            command.run(SimpleNamespace(**options))
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except BrokenPipeError:  # `noprop predict | head`: the reader has all it wants
        forget(sys.stdout)
        notice("the output was closed before its end")
        raise typer.Exit(status(signal.SIGPIPE)) from None
    except (InputError, ImportError, OSError) as error:
        fail(str(error))
    except MemoryError as error:
        fail(f"{str(error) or 'no memory'}\nnoprop: {LESS_MEMORY}")
    except Interrupted as error:
        notice("interrupted")
        raise typer.Exit(status(error.number)) from None
    except KeyboardInterrupt:
        notice("interrupted")
        raise typer.Exit(status(signal.SIGINT)) from None
    except Exception as error:
        if any(text in str(error).lower() for text in OF_MEMORY):
            fail(f"{str(error).splitlines()[0]}\nnoprop: {LESS_MEMORY}")
        if _is_backend_error(error):
            fail(str(error))
        fail(_fault(error))


def fail(line: str) -> NoReturn:
    notice(f"error: {line}")
    raise typer.Exit(1) from None


def _is_backend_error(error: Exception) -> bool:
    from noprop_kernels import BackendError  # here, since it imports torch

    return isinstance(error, BackendError)


def _fault(error: Exception) -> str:
    """Reports an unexpected error in one line, with the file of its traceback."""
    text = "".join(traceback.format_exception(error))
    what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="noprop-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as reason:
        return f"{what}; this is a fault of noprop ({reason}, so here is its traceback)\n{text}"
    return f"{what}; this is a fault of noprop, its traceback is in {file.name}"
