"""Fused training of NoProp blocks (arXiv:2503.24322v2), each by its own loss, all at once."""

from typing import TYPE_CHECKING

from .source_folder import hand_over

if TYPE_CHECKING or not hand_over():
    from . import functional, plans
    from .backends.cpu import backend as _cpu
    from .backends.dispatch import BackendError, check_device, use_backend
    from .blocks import DenoisingBlocks
    from .continuous import CT, FM
    from .coupled import Coupled
    from .denoising_loss import DenoisingLoss
    from .explanation import explain
    from .gamma import Gamma
    from .gamma_network import GammaNetwork
    from .goal import DT
    from .learned_embedding import LearnedEmbedding
    from .linear import Linear
    from .optimizer_in_backward import OptimizerInBackward
    from .optimizers import SGD, Adam, AdamW
    from .output_head import OutputHead
    from .plan import BatchNorm, Conv2d, Dense, MaxPool2d, Plan
    from .results import CoupledStep, Gradients, Prediction, Step, Update
    from .schedule import NoiseSchedule
    from .stack.shared import Shared
    from .time_embedding import embed_time

    if _reason := _cpu.unavailable():
        raise ImportError(
            f"noprop_kernels: the compiled extension _C cannot be loaded from {__path__[0]} "
            f"({_reason}). `pip install .` in the source folder builds and installs the package, "
            "`pip install -e .` builds it in place"
        )

__version__ = "0.1.0"

__all__ = [
    "CT",
    "DT",
    "FM",
    "SGD",
    "Adam",
    "AdamW",
    "BackendError",
    "BatchNorm",
    "Conv2d",
    "Coupled",
    "CoupledStep",
    "Dense",
    "DenoisingBlocks",
    "DenoisingLoss",
    "Gamma",
    "GammaNetwork",
    "Gradients",
    "LearnedEmbedding",
    "Linear",
    "MaxPool2d",
    "NoiseSchedule",
    "OptimizerInBackward",
    "OutputHead",
    "Plan",
    "Prediction",
    "Shared",
    "Step",
    "Update",
    "check_device",
    "embed_time",
    "explain",
    "functional",
    "plans",
    "use_backend",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
