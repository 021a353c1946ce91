"""The networks of ModuleBlocks as one module: their calls, and their state."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noprop_kernels.arguments.batches import rows_of
from noprop_kernels.arguments.times import Blocks, check_blocks
from noprop_kernels.goal import Goal

from . import state
from .arguments import OP
from .batches import shape_of
from .networks import check_features, check_logits, in_eval, time_input
from .optimizers import BlockOptimizers
from .signature import Shape, Signature, has_batch_norm


class NetworkStack(nn.Module):
    """N slices, a network each, with encoders, optimizers and counters; made by ModuleBlocks.

    Attributes:
        goal, M, D, x_shape, time_width, precision, share_encoder, optimizer, replicas: as of
            ModuleBlocks.
        networks: of each slice.
        encoders: a copy for each slice, or for each replica where it is shared; or none.
        encoder_learns: whether a shared encoder has an optimizer.
        seeds, draws, updates: (N,) int64, by which noise is addressed, and steps are counted.
        W_embed: (M, D), or None for one-hot.
    """

    goal: Goal
    M: int
    D: int
    x_shape: Shape | None
    time_width: int | None
    precision: str
    replicas: int
    networks: nn.ModuleList
    encoders: nn.ModuleList
    share_encoder: bool
    encoder_learns: bool
    optimizer: BlockOptimizers | None
    seeds: Tensor
    draws: Tensor
    updates: Tensor
    W_embed: Tensor | None

    @property
    def T(self) -> int:
        """Blocks of the whole chain."""
        return self.goal.T

    @property
    def held(self) -> tuple[int, ...]:
        """All of 1..T."""
        return (*range(1, self.T + 1),)

    @property
    def device(self) -> torch.device:
        return self.seeds.device

    @property
    def plan(self) -> Signature:
        """What a network takes; its layers are not known."""
        inputs = {} if self.x_shape is None else {"x": self.x_shape}
        inputs["z"] = (self.D,)
        if self.goal.timed:
            inputs["t"] = () if self.time_width is None else (self.time_width,)
        parameters = sum(p.numel() for part in self.parts_of(0) for p in part.parameters())
        return Signature(inputs, has_batch_norm(self), parameters)

    def __len__(self) -> int:
        """N, the slices."""
        return len(self.networks)

    def extra_repr(self) -> str:
        return f"T={self.T}, replicas={self.replicas}, M={self.M}, D={self.D}, goal={self.goal}"

    # one slice

    def parts_of(self, i: int) -> list[nn.Module]:
        """The modules of slice i alone: its network, and its copy of the encoder."""
        copied = len(self.encoders) and not self.share_encoder
        return [self.networks[i], *([self.encoders[i]] if copied else [])]

    def owner(self, i: int) -> str:
        """Slice i in errors."""
        of_replica = f" of replica {i // self.T}" if self.replicas > 1 else ""
        return f"network {i % self.T + 1}{of_replica}"

    # calls of networks, in the caller's mode, grad mode and precision

    def rows(self, op: str, x: object, slices: int) -> Tensor:
        """x (B, ...), or (slices, B, ...), as (slices, B, *x_shape)."""
        shape = shape_of(x, self.x_shape)
        rows = rows_of(op, "x", x, shape, slices, self.device)
        # under a default device torch.compile cannot trace unflatten
        return rows.reshape(*rows.shape[:-1], *shape)

    def encode(self, op: str, i: int, x: Tensor) -> Tensor:
        """What networks read of x (B, ...), by encoder i where there are any."""
        if not len(self.encoders):
            return x
        if self.share_encoder and not self.encoder_learns:
            with in_eval(self.encoders[i]), torch.no_grad():
                return check_features(op, self.encoders[i](x), len(x))
        return check_features(op, self.encoders[i](x), len(x))

    def logits(self, op: str, i: int, features: Tensor, z: Tensor, t: Tensor | None) -> Tensor:
        """Network i's logits (B, M) float32 of features, z (B, D) and t (B,) float64."""
        times = [] if t is None else [time_input(t, self.time_width)]
        found = self.networks[i](features, z, *times)
        return check_logits(op, found, self.owner(i), (len(z), self.M))

    def call(self, op: str, i: int, x: Tensor, z: Tensor, t: Tensor | None) -> Tensor:
        """`logits` of x, or of a shared encoder's features, by a copy of the encoder."""
        return self.logits(op, i, x if self.share_encoder else self.encode(op, i, x), z, t)

    def positions(self, op: str, blocks: Blocks) -> list[int]:
        """The slices of `blocks` in all replicas; None: all."""
        ts = self.held if blocks is None else check_blocks(op, "blocks", blocks, self.T)
        return [r * self.T + t - 1 for r in range(self.replicas) for t in ts]

    # state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        probe = fn(self.seeds.new_empty(0, dtype=torch.float32))
        if probe.dtype != torch.float32 or probe.device.type == "meta":
            raise ValueError(
                f"{OP}: parameters must stay torch.float32 and have values, got {probe.dtype} on "
                f"{probe.device}"
            )
        super()._apply(fn, recurse)
        if self.optimizer is not None:
            self.optimizer.follow()
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.optimizer is not None:
            for name, value in self.optimizer.tensors().items():
                destination[f"{prefix}{state.OPTIMIZERS}{name}"] = value

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's, with what the optimizers keep; one that does not fit changes nothing.

        Raises:
            ValueError: keys, shapes or seeds are not this object's, or `assign` or not `strict`.
        """
        op = f"{OP}.load_state_dict"
        if assign or not strict:
            raise ValueError(f"{op}: strict must be true and assign false, got {strict}, {assign}")
        given, kept = state.split(state_dict)
        state.check_given(op, self, given)
        if self.optimizer is None:
            if kept:
                raise ValueError(f"{op}: state_dict must have no optimizers where there are none")
            return super().load_state_dict(given)
        states = self.optimizer.states(op, kept)
        result = super().load_state_dict(given)
        self.optimizer.restore(states)
        return result
