"""Random crops and flips of training images, made as the rows of a batch are gathered.

An image gets a border of PAD pixels of the raw value 0, of which a window of the image's size is
cut out, and is mirrored half of the time. All blocks see the same batch. The draw is a function of
(seed, step, row of the batch): neither calls nor interruptions change it.
"""

from typing import Any

import torch
from torch import Tensor

from noprop_kernels import philox

from .inputs import InputFormat
from .normalisation import Normalisation

NAMES = ("none", "crop-flip")
PAD = 4


def check(op: str, name: str, inputs: InputFormat, encoder: bool = False) -> None:
    """
    Raises:
        ValueError: there is no such augmentation, or it is not for these rows or an encoder.
    """
    if name not in NAMES:
        raise ValueError(f"{op}: augment must be one of {NAMES}, got {name!r}")
    if name != "none" and inputs.image is None:
        raise ValueError(
            f"{op}: augment must be 'none' of rows that are no images (rows, H, W) or "
            f"(rows, C, H, W), got {name!r} of {inputs.features} numbers"
        )
    if name != "none" and encoder:  # whose features are made once, before the first epoch
        raise ValueError(f"{op}: augment must be 'none' for a model with an encoder, got {name!r}")


class CropFlip:
    """Augments the arguments of `train_steps`.

    Args:
        inputs: the format of a row, an image.
        normalize: mean and std of x.
        seed: as of the order of the rows.
    """

    def __init__(self, inputs: InputFormat, normalize: Any, seed: int) -> None:
        assert inputs.image is not None  # by `check`
        self.shape = inputs.image
        self.seeds = torch.tensor([seed], dtype=torch.int64, device="cpu")
        kind = torch.uint8 if inputs.kind == "bytes" else torch.float64
        zeros = torch.zeros(1, inputs.features, dtype=kind, device="cpu")
        blank = Normalisation.of(normalize).apply(zeros)
        self.blank = blank.view(self.shape)[:, :1, :1]  # (C, 1, 1): 0 as a feature

    def __call__(self, batch: dict[str, Any], first_step: int) -> dict[str, Any]:
        """K steps from `first_step` on, of `Feed.take`; the rows are copied."""
        X, Y, indices = batch["X"], batch["Y"], batch["indices"]
        weight = {name: batch[name] for name in ("row_weight",) if name in batch}
        if indices is not None:
            X, Y = X[indices], Y[indices]
            weight = {name: value[indices] for name, value in weight.items()}
        K, B, F = X.shape
        blank = torch.zeros_like(self.blank) if X.dtype == torch.uint8 else self.blank
        draws = self.draws(first_step, K, B, X.device).flatten(0, 1)
        made = crop_flip(X.view(-1, *self.shape), blank.to(X), draws)
        return batch | {"X": made.view(K, B, F), "Y": Y, "indices": None} | weight

    def draws(self, first_step: int, K: int, B: int, device: torch.device) -> Tensor:
        """(K, B, 3) int64: row and column of the window, 0..2 PAD, and whether it is mirrored."""
        seeds = self.seeds.to(device).expand(K)
        steps = torch.arange(first_step, first_step + K, dtype=torch.int64, device=device)
        words = philox.words(seeds, philox.STREAM_AUGMENTATION, 0, steps, 0, B, 3)
        return words * words.new_tensor([2 * PAD + 1, 2 * PAD + 1, 2]) >> 32


def crop_flip(images: Tensor, blank: Tensor, draws: Tensor) -> Tensor:
    """Windows of images (n, C, H, W) in borders of `blank` (C, 1, 1), by draws (n, 3)."""
    n, C, H, W = images.shape
    padded = blank.expand(n, C, H + 2 * PAD, W + 2 * PAD).clone()
    padded[:, :, PAD:-PAD, PAD:-PAD] = images
    top, left, mirrored = (column[:, None] for column in draws.unbind(1))
    y = top + torch.arange(H, dtype=torch.int64, device=images.device)  # (n, H)
    x = torch.arange(W, dtype=torch.int64, device=images.device)
    x = left + torch.where(mirrored == 1, W - 1 - x, x)  # (n, W)
    row = torch.arange(n, dtype=torch.int64, device=images.device)[:, None, None]
    # indices around a slice put their dimensions first: (n, H, W, C)
    return padded[row, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()
