"""The extension `_cuda` with the persistent kernel and its launch; only this file names it.

Tests replace it by one built for the host, which runs the same kernel on CPU tensors.
"""

from importlib import import_module
from typing import Any


def _left_out() -> str:
    """The build's report on CUDA, with the compiler's messages where it failed."""
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
    """The reason why the extension cannot be used, in one line, or None."""
    return _missing.partition("\n")[0] if module is None else None


def on_host() -> bool:
    """Whether the kernel runs on the CPU."""
    return module is not None and module.on_host


def describe() -> str:
    """The build and the devices that it sees, or the build's report on why it is missing."""
    if module is None:
        return _missing
    try:
        devices = [module.device(i)["name"] for i in range(module.device_count())]
    except RuntimeError as error:
        return f"built, no device: {error}"
    return f"built, devices: {', '.join(devices) or 'none'}"
