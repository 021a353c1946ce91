"""Fused training of NoProp blocks (arXiv:2503.24322v2), each by its own loss, all at once."""

from . import plans
from .blocks import DenoisingBlocks
from .dispatch import BackendError, explain, use_backend
from .goal import DT
from .head import OutputHead
from .optimizers import SGD, Adam, AdamW
from .plan import BatchNorm, Dense, Plan
from .results import Gradients, Prediction, Step, Update
from .schedule import NoiseSchedule

__version__ = "0.1.0"

__all__ = [
    "DT",
    "SGD",
    "Adam",
    "AdamW",
    "BackendError",
    "BatchNorm",
    "Dense",
    "DenoisingBlocks",
    "Gradients",
    "NoiseSchedule",
    "OutputHead",
    "Plan",
    "Prediction",
    "Step",
    "Update",
    "explain",
    "plans",
    "use_backend",
]
