"""unfolded: convolutions of all blocks as batched products with the windows of their input."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, unfold

from .grouped import Grouped
from .network import dropped


class Unfolded(Grouped):
    memory_format = torch.contiguous_format

    def features(self, x: Tensor) -> Tensor:
        x = x[None]
        for name, drop in self.dropout.items():
            x = self.convolution(name, x).relu()
            if name != "c2":
                x = max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
            x = dropped(x, drop)
        return x.flatten(2)

    def convolution(self, name: str, x: Tensor) -> Tensor:
        """(T, B, channels, height, width) of x (T, B, ...), or (1, B, ...) for all blocks."""
        n, B, C, height, width = x.shape
        T, height, width = self.shape.T, height - 2, width - 2
        weight = self.params[f"{name}.weight"].view(n, -1, 9 * C)
        windows = unfold(x.flatten(0, 1), 3).unflatten(0, (n, B)).transpose(1, 2).flatten(2)
        bias = self.params[f"{name}.bias"].view(n, -1, 1)
        y = torch.baddbmm(bias, weight, windows)  # (n, T / n channels, B pixels)
        return y.view(T, -1, B, height, width).transpose(1, 2)
