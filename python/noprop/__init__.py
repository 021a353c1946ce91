"""Trains NoProp networks (arXiv:2503.24322v2): models, data, checkpoints and a command line."""

from noprop_kernels import __version__

from .errors import InputError
from .evaluation import Evaluation, evaluate
from .model import Answer, Model, load
from .training import NotFinite, Progress, fit

__all__ = [
    "Answer",
    "Evaluation",
    "InputError",
    "Model",
    "NotFinite",
    "Progress",
    "__version__",
    "evaluate",
    "fit",
    "load",
]
