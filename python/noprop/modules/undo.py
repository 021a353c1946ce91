"""Undoes what a forward changed: buffers such as running statistics, and gradients."""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .stack import NetworkStack


class Kept:
    """The buffers of slices as they were, put back where the block of code raises.

    Gradients are forgotten at its beginning, and where it raises.
    """

    def __init__(self, blocks: "NetworkStack", positions: list[int]) -> None:
        self.parts: dict[int, list[nn.Module]] = {i: blocks.parts_of(i) for i in positions}
        if blocks.share_encoder:
            shared = {i // blocks.T for i in positions}
            self.parts |= {len(blocks) + r: [blocks.encoders[r]] for r in shared}
        self.before = {
            key: [buffer.clone() for module in modules for buffer in module.buffers()]
            for key, modules in self.parts.items()
        }

    def __enter__(self) -> "Kept":
        self.forget_gradients()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for key in self.parts:
                self.put_back(key)
            self.forget_gradients()

    @torch.no_grad()
    def put_back(self, key: int) -> None:
        """The buffers of a slice, by its position; of replica r's shared encoder by N + r."""
        buffers = [buffer for module in self.parts[key] for buffer in module.buffers()]
        for buffer, value in zip(buffers, self.before[key], strict=True):
            buffer.copy_(value)

    def forget_gradients(self) -> None:
        for modules in self.parts.values():
            for module in modules:
                module.zero_grad(set_to_none=True)
