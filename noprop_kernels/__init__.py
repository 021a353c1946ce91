"""Fused training of NoProp blocks (arXiv:2503.24322v2), each by its own loss, all at once."""

from . import functional, native, plans
from .blocks import DenoisingBlocks
from .dispatch import BackendError, check_device, explain, use_backend
from .goal import DT
from .head import OutputHead
from .linear import Linear
from .loss import DenoisingLoss
from .optimizers import SGD, Adam, AdamW
from .plan import BatchNorm, Dense, Plan
from .results import Gradients, Prediction, Step, Update
from .schedule import NoiseSchedule

__version__ = "0.1.0"

if _reason := native.unavailable():
    raise ImportError(
        f"noprop_kernels: the compiled extension _C cannot be loaded from {__path__[0]} "
        f"({_reason}). If this is a source folder that hides an installed package, run Python "
        "elsewhere; to work in the source folder, build it in place with `pip install -e .`"
    )

__all__ = [
    "DT",
    "SGD",
    "Adam",
    "AdamW",
    "BackendError",
    "BatchNorm",
    "Dense",
    "DenoisingBlocks",
    "DenoisingLoss",
    "Gradients",
    "Linear",
    "NoiseSchedule",
    "OutputHead",
    "Plan",
    "Prediction",
    "Step",
    "Update",
    "check_device",
    "explain",
    "functional",
    "plans",
    "use_backend",
]
