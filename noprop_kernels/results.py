"""Results of the calls: tensors with one entry per slice that ran."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Step:
    """One training step of n slices.

    Gradients are at the weights before the update; None: not requested.

    Attributes:
        loss: (n,), sum over rows of weight * error / B.
        error: (n, B), unweighted.
        applied: (n,) bool; false where the loss was not finite and only `draws` advanced.
        d_x: (n, B, F), or (n, B, C, H, W) where the plan's input is an image, never summed over
            slices; a dict by name where the plan has other inputs than "x".
        d_z: (n, B, width), of the features given as `z=`, likewise.
        d_signal, d_noise: (n, B), through z.
        d_W_embed: (n, M, D), through u_hat, the target and z.
    """

    loss: Tensor
    error: Tensor
    applied: Tensor
    d_x: Tensor | dict[str, Tensor] | None = None
    d_z: Tensor | None = None
    d_signal: Tensor | None = None
    d_noise: Tensor | None = None
    d_W_embed: Tensor | None = None


@dataclass
class Gradients:
    """Gradients of n slices, divided by the rows of the whole batch, so that parts of it add.

    Attributes:
        by_name: (n, ...) by parameter name; change them in place before `update` as you like.
        loss: (n,), the part's share of the loss.
        error: (n, B), unweighted.
        applied: (n,) bool; false where the loss is not finite, and then `update` leaves the slice
            alone.
        stats: (n, H) by name of the running statistic: the batch's mean and unbiased variance.
        index: (n,) int64, positions of the slices in the object.
        rows: rows of the whole batch, by which everything is divided.
    """

    by_name: dict[str, Tensor]
    loss: Tensor
    error: Tensor
    applied: Tensor
    index: Tensor
    rows: int
    stats: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: "Gradients") -> "Gradients":
        """The sum of two parts of one batch; `error` has the rows of both, in this order.

        Raises:
            ValueError: the parts are of other slices or batches, or batch norm makes them not
                additive.
        """
        if not isinstance(other, Gradients):
            return NotImplemented
        if not torch.equal(self.index, other.index) or self.by_name.keys() != other.by_name.keys():
            raise ValueError("Gradients: parts must be of the same slices to add, got others")
        if self.rows != other.rows:
            raise ValueError(
                f"Gradients: parts must have the rows of one batch, got {self.rows}, {other.rows}"
            )
        if self.stats or other.stats:
            raise ValueError(
                "Gradients: parts must be free of batch norm to add, got statistics of two parts, "
                "which are not those of the whole batch"
            )
        return Gradients(
            {name: grad + other.by_name[name] for name, grad in self.by_name.items()},
            self.loss + other.loss,
            torch.cat([self.error, other.error], 1),
            self.applied & other.applied,
            self.index,
            self.rows,
        )

    def norm(self) -> Tensor:
        """(n,) float32: each slice's gradient norm over all its parameters."""
        norms = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in self.by_name.values()]
        return torch.linalg.vector_norm(torch.stack(norms), dim=0)

    def scale_(self, factor: float | Tensor) -> "Gradients":
        """Multiplies the gradients in place by a number, or by (n,) numbers; losses stay."""
        if isinstance(factor, Tensor) and factor.ndim > 0:
            if factor.shape != self.loss.shape:
                raise ValueError(
                    f"Gradients.scale_: factor must be a number or of shape (n,) = "
                    f"({len(self.loss)},), got {tuple(factor.shape)}"
                )
            for grad in self.by_name.values():
                grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))
        else:
            for grad in self.by_name.values():
                grad.mul_(factor)
        return self


@dataclass
class Update:
    """An update under a loss of the caller's own.

    Attributes:
        applied: (n,) bool; false where the gradient of the logits was not finite.
        d_x: (n, B, F), or (n, B, C, H, W) where the plan's input is an image; a dict by name where
            the plan has other inputs than "x"; None where the forward's x needed no gradient.
        d_z: (n, B, width), likewise of z.
    """

    applied: Tensor
    d_x: Tensor | dict[str, Tensor] | None = None
    d_z: Tensor | None = None


@dataclass
class CoupledStep:
    """One training step of blocks, output head and what they share.

    Attributes:
        loss: (n,), of the blocks that ran.
        head_loss: (R,), the output head's; None where there is none.
        prior: (R,), KL(q(z_0 | y) || N(0, I)).
        applied: (R,) bool; false where a loss or a gradient was not finite, and then what is shared
            did not move.
    """

    loss: Tensor
    head_loss: Tensor | None
    prior: Tensor
    applied: Tensor


@dataclass
class Prediction:
    """The chain's results for S samples of the noise and R replicas.

    With keep="all" the first axis is that of the T blocks, before S.

    Attributes:
        logits: (S, R, B, M), of the last block.
        u_hat: (S, R, B, D), its estimate of the label's embedding.
        z: (S, R, B, D), z_T.
    """

    logits: Tensor
    u_hat: Tensor
    z: Tensor

    @property
    def probs(self) -> Tensor:
        """softmax(logits), of the shape of `logits`."""
        return torch.softmax(self.logits, -1)
