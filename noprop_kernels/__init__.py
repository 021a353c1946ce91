"""Fused training of NoProp blocks (arXiv:2503.24322v2), each by its own loss, all at once."""

from typing import TYPE_CHECKING

from .source_folder import hand_over

if TYPE_CHECKING or not hand_over():
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

    if _reason := native.unavailable():
        raise ImportError(
            f"noprop_kernels: the compiled extension _C cannot be loaded from {__path__[0]} "
            f"({_reason}). `pip install .` in the source folder builds and installs the package, "
            "`pip install -e .` builds it in place"
        )

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


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
