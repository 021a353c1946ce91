"""LearnedEmbedding: label embeddings that are trained, and their first values."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .check import LARGEST, check_number, check_positive, check_tensor
from .philox import BLOCK_SHARED, STREAM_INITIALISATION, normal

INITIAL = ("orthogonal", "normal")
SITE = 3  # of the first values, behind those of gamma


@dataclass(frozen=True, eq=False)
class LearnedEmbedding:
    """W_embed (M, D) of nk.Shared, trained with the blocks (arXiv:2503.24322v2, section 2.2.1).

    Args:
        M: classes.
        D: width of an embedding.
        init: "orthogonal": orthonormal rows where M <= D, else as "normal"; "normal": N(0, 1); or
            (M, D) float32, such as an image of each class, the paper's prototypes.
        scale: factor of the first values; the noise has unit variance whatever it is.
        detach_target: whether u_y in the target of the squared error is a constant, which keeps it
            from pulling embeddings together; the paper lets its gradient flow.

    Raises:
        ValueError: an argument does not fit.
    """

    M: int
    D: int
    init: str | Tensor = "orthogonal"
    scale: float = 1.0
    detach_target: bool = False

    def __post_init__(self) -> None:
        op = "LearnedEmbedding"
        for name in ("M", "D"):
            object.__setattr__(self, name, check_positive(op, name, getattr(self, name)))
        rule = "be above 0", lambda value: 0 < value <= LARGEST
        object.__setattr__(self, "scale", check_number(op, "scale", self.scale, *rule))
        if not isinstance(self.detach_target, bool):
            raise ValueError(f"{op}: detach_target must be true or false, got {self.detach_target}")
        if isinstance(self.init, str):
            if self.init not in INITIAL:
                raise ValueError(f"{op}: init must be a tensor or of {INITIAL}, got {self.init!r}")
            return
        init = check_tensor(
            op, "init", self.init, shape=(self.M, self.D), device=torch.device("cpu")
        )
        if not bool(init.isfinite().all()):
            raise ValueError(f"{op}: init must be finite, got values that are not")

    def initial(self, seeds: Tensor) -> Tensor:
        """The first values, (R, M, D) float32, for seeds (R,) int64."""
        if isinstance(self.init, Tensor):
            start = self.init.detach().double().expand(len(seeds), -1, -1)
        else:
            address = (STREAM_INITIALISATION, SITE, 0, BLOCK_SHARED, self.M, self.D)
            start = normal(seeds, *address, dtype=torch.float64)
            if self.init == "orthogonal" and self.M <= self.D:
                start = torch.stack([orthonormal(one) for one in start])
        return (self.scale * start).float().contiguous()


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows by the QR decomposition of `rows`; uniform for normal ones by its signs."""
    q, r = cast(tuple[Tensor, Tensor], torch.linalg.qr(rows.mT))
    return (q * r.diagonal().sign()).mT
