"""nk.DenoisingLoss: the loss of one block as a module."""

from typing import Any

from torch import Tensor, nn

from . import functional
from .backends import dispatch
from .check import LARGEST, check_number, check_tensor

OP = "DenoisingLoss"


class DenoisingLoss(nn.Module):
    """Losses of rows, weight * |u_hat - target|^2 with u_hat = softmax(logits) @ W_embed.

    See functional.denoising_loss.

    Args:
        W_embed: (M, D) float32, label embeddings; a Parameter is learned; None: one-hot.
        head: "softmax"; "linear" for u_hat = logits @ W_embed; "cross_entropy".
        flow: 0, or 1 for flow matching's target W_embed[y] - eps.
        backend: a backend to force; None: the best that runs here.

    Raises:
        ValueError: an argument does not fit.
    """

    W_embed: Tensor | None

    def __init__(
        self,
        W_embed: Tensor | None = None,
        *,
        head: str = "softmax",
        flow: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if W_embed is not None:
            check_tensor(OP, "W_embed", W_embed, shape=(None, None))
        if head not in functional.HEADS:
            raise ValueError(f"{OP}: head must be one of {functional.HEADS}, got {head!r}")
        dispatch.check_options(OP, "float32", backend)
        flow = check_number(OP, "flow", flow, "be finite", lambda value: abs(value) <= LARGEST)
        options: dict[str, Any] = {"head": head, "flow": flow, "backend": backend}
        self._options = options
        if isinstance(W_embed, nn.Parameter):
            self.register_parameter("W_embed", W_embed)
        else:
            self.register_buffer("W_embed", W_embed)

    def forward(
        self,
        logits: Tensor,
        y: Tensor,
        weight: float | Tensor | None = None,
        *,
        eps: Tensor | None = None,
    ) -> Tensor:
        """(B,) losses, differentiable in logits, weight and W_embed.

        Args:
            logits: (B, M) float32.
            y: (B,) int64, labels.
            weight: a number or (B,) float32; None: 1.
            eps: (B, D) float32, the noise of functional.add_noise, needed where flow is not 0.

        Raises:
            ValueError: an argument does not fit.
            BackendError: no backend can run it.
        """
        return functional.denoising_loss(
            logits, y, weight, W_embed=self.W_embed, eps=eps, **self._options
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options.items())
