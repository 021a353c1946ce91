"""The extension `_cuda`, the persistent kernel and its launch; the one place that names it.

Tests put one here that is built for the host and runs the same kernel on CPU tensors.
"""

from typing import Any

try:
    from .. import _cuda  # type: ignore[attr-defined]

    module: Any = _cuda
    _missing = None
except ImportError as error:
    module = None
    _missing = f"the extension _cuda is not built: NOPROP_CUDA=ON builds it with nvcc ({error})"


def unavailable() -> str | None:
    """Why the extension cannot be used, or None."""
    return _missing if module is None else None


def on_host() -> bool:
    """Whether the kernel runs on the CPU."""
    return module is not None and module.on_host
