"""The extension `_cuda`, the persistent kernel and its launch; the one place that names it.

Tests put one here that is built for the host and runs the same kernel on CPU tensors.
"""

from importlib import import_module
from typing import Any


def _left_out() -> str:
    """What the build said of CUDA, in the compiler's words where it failed."""
    try:
        return import_module("noprop_kernels._C").cuda_left_out or "its file is missing"
    except ImportError:
        return "neither is _C"


module: Any = None
_missing = ""
try:
    module = import_module("noprop_kernels._cuda")
except ModuleNotFoundError:
    _missing = f"the extension _cuda is not built: {_left_out()}"
except ImportError as error:
    _missing = f"the extension _cuda cannot be loaded: {error}"


def unavailable() -> str | None:
    """Why the extension cannot be used, in one line, or None."""
    return _missing.partition("\n")[0] if module is None else None


def on_host() -> bool:
    """Whether the kernel runs on the CPU."""
    return module is not None and module.on_host


def describe() -> str:
    """What is built and which devices it sees; what is not, with all that the build said of it."""
    if module is None:
        return _missing
    try:
        devices = [module.device(i)["name"] for i in range(module.device_count())]
    except RuntimeError as error:
        return f"built, no device: {error}"
    return f"built, devices: {', '.join(devices) or 'none'}"
