"""Trains NoProp networks (arXiv:2503.24322v2): models, data, checkpoints and a command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noprop_kernels import __version__

    from .answer import Answer
    from .callbacks import Callback, Steps
    from .epochs import Epoch, Progress
    from .errors import InputError
    from .estimator import NoPropClassifier as NoPropClassifier
    from .evaluation import Evaluation, evaluate
    from .loading import load
    from .model import Model
    from .modules.blocks import ModuleBlocks
    from .training import NotFinite, fit

__all__ = [
    "Answer",
    "Callback",
    "Epoch",
    "Evaluation",
    "InputError",
    "Model",
    "ModuleBlocks",
    "NotFinite",
    "Progress",
    "Steps",
    "__version__",
    "evaluate",
    "fit",
    "load",
]

# imported on first use: the command line must print its help without waiting for torch
_HOMES = {
    "Answer": ".answer",
    "Callback": ".callbacks",
    "Epoch": ".epochs",
    "Evaluation": ".evaluation",
    "InputError": ".errors",
    "Model": ".model",
    "ModuleBlocks": ".modules.blocks",
    "NoPropClassifier": ".estimator",
    "NotFinite": ".training",
    "Progress": ".epochs",
    "Steps": ".callbacks",
    "__version__": "noprop_kernels",
    "evaluate": ".evaluation",
    "fit": ".training",
    "load": ".loading",
}


_MODULES = ("loggers",)  # of which this package has no names


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    if name in _MODULES or f".{name}" in _HOMES.values():
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "NoPropClassifier"]  # not in __all__, since it needs an extra
