"""ModuleBlocks: networks of one's own as NoProp's blocks (arXiv:2503.24322v2)."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

import noprop_kernels as nk
from noprop_kernels.arguments.batches import Normalize, rows_of
from noprop_kernels.arguments.scalars import seed_list, seed_tensor
from noprop_kernels.arguments.times import Blocks, check_blocks, check_times
from noprop_kernels.autograd.chain import check_replica
from noprop_kernels.check import check_positive
from noprop_kernels.goal import Goal

from . import chain, steps
from .arguments import (
    OP,
    Networks,
    check_encoder,
    check_fixed_goal,
    check_precision,
    check_shape,
    check_time_width,
    listed,
    own_embedding,
)
from .networks import asked_dtype, autocast, check_networks, exact, in_eval, trained
from .optimizers import BlockOptimizers, Make
from .signature import Shape
from .stack import NetworkStack

ADAMW = partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-3)  # as of nk.DenoisingBlocks


class ModuleBlocks(NetworkStack):
    """Blocks t = 1..T, each an nn.Module of one's own, trained by its own loss alone.

    Network t is called as network(x, z_{t-1}), under a CT or an FM, which have one network for all
    t, as network(x, z_t, t), and returns logits. Noise, losses and samplers are those of
    nk.DenoisingBlocks, in PyTorch's operations on any device: the same noise at the same address.
    noprop.Model takes it as it takes nk.DenoisingBlocks.

    A slice is a (replica, block); slices are stacked replica by replica, t ascending in each. Each
    has an optimizer of its own, and its backward reaches its own parameters alone. A slice whose
    loss is not finite keeps its state in that step. torch's random numbers in a network, such as
    dropout's, are drawn behind a seed that is a function of (seed, t, step), so that training
    resumes with the same bits; torch's own generators stay as they were. Batch norm uses the
    batch's statistics in training and the running ones in `predict`.

    Encoders: with `encoder` a network reads encoder(x) in place of x, which a chain computes once.
    By default each slice trains a copy of it by its own loss. With share_encoder the slices of a
    replica read one, which learns by the sum of their losses: the gradients of their features are
    added, and no loss reaches another network. If none of its parameters requires a gradient it is
    frozen, and stays in eval mode. Features that are the same in every epoch are best made by
    noprop.Model's own encoder, once.

    Networks may be compiled (network.compile()). In torch.autocast they compute in its dtype, and
    noise, losses and chains in float32. Parameters are float32.

    Args:
        networks: T modules for each seed, replica by replica, which share no tensor; or a function
            from t to a module, called behind a seed of torch that is made of (seed, t).
        goal: the noise levels and loss weights: a DT, CT or FM.
        M: classes.
        embedding: (M, D) float32, the fixed label embeddings; None: one-hot, D = M.
        x_shape: of a row of x as networks, or the encoder, take it, such as (3, 32, 32); None: a
            row of any number of features, x (B, F).
        time_width: None: networks of a CT or FM take t (B,) float32; a width: nk.embed_time(t,
            time_width).
        encoder: see above.
        share_encoder: whether the slices of a replica have one encoder.
        optimizer: makes an optimizer of torch.optim of a slice's parameters, a list; None: the
            blocks only predict. Its rates may differ by group: an `lr` of a call is that of the
            first, to which the others keep their proportions.
        seed: of the noise, and of what is random in networks; a list makes one replica for each.
        precision: "float32", or "bfloat16": networks run in torch.autocast of it.

    Raises:
        ValueError: an argument does not fit.
    """

    # as the trainer reads them of nk.DenoisingBlocks
    shared: None = None
    backend: None = None

    def __init__(
        self,
        networks: Networks,
        goal: Goal,
        M: int,
        *,
        embedding: Tensor | None = None,
        x_shape: Shape | None = None,
        time_width: int | None = None,
        encoder: nn.Module | None = None,
        share_encoder: bool = False,
        optimizer: Make | None = ADAMW,
        seed: int | Sequence[int] = 0,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.goal, self.M = check_fixed_goal(goal), check_positive(OP, "M", M)
        check_encoder(encoder, share_encoder)
        embedding = own_embedding(embedding, self.M)
        self.D = self.M if embedding is None else embedding.shape[1]
        self.x_shape, self.time_width = check_shape(x_shape), check_time_width(goal, time_width)
        self.share_encoder, self.precision = share_encoder, check_precision(precision)
        seeds = seed_tensor(seed_list(OP, seed))
        self.replicas, count = len(seeds), len(seeds) * goal.T
        networks = check_networks(OP, listed(networks, seeds, goal.T), count)
        copies = 0 if encoder is None else self.replicas if share_encoder else count
        encoders = [copy.deepcopy(encoder) for _ in range(copies)]
        self.networks = nn.ModuleList(networks)
        self.encoders = nn.ModuleList(check_networks(OP, encoders, copies))
        self.register_buffer("W_embed", embedding)
        self.register_buffer("seeds", seeds.repeat_interleave(goal.T))
        self.register_buffer("draws", torch.zeros_like(self.seeds))
        self.register_buffer("updates", torch.zeros_like(self.seeds))
        self.encoder_learns = share_encoder and bool(trained(*self.encoders))
        self.optimizer: BlockOptimizers | None = None
        if optimizer is not None:
            groups = [(self.owner(i), trained(*self.parts_of(i))) for i in range(count)]
            if self.encoder_learns:
                groups += [("encoder", trained(each)) for each in self.encoders]
            self.optimizer = BlockOptimizers(OP, optimizer, groups)

    def block(self, t: int, *, replica: int = 0) -> nn.Module:
        """Network t itself.

        Raises:
            ValueError: there is no such block or replica.
        """
        (t,) = check_blocks("block", "t", t, self.T)
        return self.networks[check_replica("block", replica, self.replicas) * self.T + t - 1]

    def replica(self, replica: int) -> "ModuleBlocks":
        """A copy of one replica, with the bits of one that was trained alone.

        Raises:
            ValueError: there is no such replica.
        """
        r, T = check_replica("replica", replica, self.replicas), self.T
        own = slice(r * T, (r + 1) * T)
        made = copy.deepcopy(self)
        made.replicas = 1
        made.networks = made.networks[own]
        shared = slice(r, r + 1)
        made.encoders = made.encoders[shared if self.share_encoder else own]
        for name in ("seeds", "draws", "updates"):
            setattr(made, name, getattr(made, name)[own].clone())
        if made.optimizer is not None:
            each = made.optimizer.each
            made.optimizer.each = each[own] + each[len(self) :][shared]
        return made

    # training

    def train_steps(
        self,
        X: Tensor,
        Y: Tensor,
        indices: Tensor | None,
        *,
        blocks: Blocks = None,
        lr: float | Tensor | None = None,
        normalize: Normalize | None = None,
        row_weight: Tensor | None = None,
    ) -> Tensor:
        """K steps of n slices: each draws z_{t-1}, runs its network forward and backward, and takes
        a step of its optimizer where its loss is finite. `draws` advance in any case.

        Where a network raises, that step changes nothing.

        Args:
            X: (rows, F) or (rows, *x_shape), the data set: float32, bfloat16 or uint8, which counts
                as 0..255 of [0, 1]; with indices None (K, B, ...), batches already gathered.
            Y: (rows,) or (K, B) int64, labels.
            indices: (K, B) int64, rows of each batch, or (K, R, B), each replica's own; None: X has
                the batches.
            blocks: the t to train, in all replicas; None: all. A shared encoder learns from these.
            lr: a number, (K,) or (K, n); None: the optimizers' own.
            normalize: (mean, std), as of nk.DenoisingBlocks.
            row_weight: float32 in Y's shape, as of nk.DenoisingBlocks.

        Returns:
            (K, n) float32, losses sum over rows of weight * |u_hat - target|^2 / B.

        Raises:
            ValueError: an argument does not fit, or a network's result does not.
        """
        at = self.positions("train_steps", blocks)
        return steps.train_steps(self, X, Y, indices, at, lr, normalize, row_weight)

    def check(self) -> None:
        """Nothing: calls check contents before they write, on every device."""

    # inference

    def forward(
        self, x: Tensor, z: Tensor, *, t: Tensor | None = None, blocks: Blocks = None
    ) -> Tensor:
        """Logits of the networks, differentiable, in the present mode of each.

        Args:
            x: (B, F) or (B, *x_shape), shared, or (n, B, ...).
            z: (n, B, D) float32, or (B, D), shared.
            t: (B,) or (n, B) in [0, 1], needed under a CT or FM.
            blocks: the t to run, in all replicas; None: all.

        Returns:
            (n, B, M) float32.

        Raises:
            ValueError: an argument does not fit.
        """
        op = "forward"
        at = self.positions(op, blocks)
        n, rows = len(at), self.rows(op, x, len(at))
        z = rows_of(op, "z", z, (self.D,), n, self.device)
        B = rows.shape[1]
        if z.shape[1] != B:
            raise ValueError(f"{op}: x and z must have the same rows, got {B} and {z.shape[1]}")
        times = None
        if self.goal.timed:
            times = check_times(op, t, n, B, self.device).expand(n, B)
        elif t is not None:
            raise ValueError(f"{op}: t must be None under a DT, got {type(t).__name__}")
        dtype = asked_dtype(self.device, self.precision)
        results = []
        with exact(self.device):
            for j, i in enumerate(at):
                with autocast(self.device, dtype):
                    read = self.encode(op, i // self.T if self.share_encoder else i, rows[j])
                    of_row = None if times is None else times[j]
                    results.append(self.logits(op, i, read, z[j], of_row))
        return torch.stack(results)

    def predict(
        self,
        x: Tensor,
        *,
        noise: bool = True,
        sampler: str | None = None,
        steps: int | None = None,
        samples: int = 1,
        seed: int | Sequence[int] | None = None,
        first_row: int = 0,
        keep: str | int = "last",
        replica: int | None = None,
    ) -> nk.Prediction:
        """The chain of networks in eval mode, whatever theirs; it advances no counter.

        Args:
            x: (B, F) or (B, *x_shape), shared, or (R, B, ...), one per replica.
            noise, sampler, steps, samples, seed, first_row, keep, replica: as of
                nk.DenoisingBlocks.predict.

        Returns:
            nk.Prediction of (S, R, B, ...), with other `keep` than "last" (kept, S, R, B, ...).

        Raises:
            ValueError: an argument does not fit.
        """
        with in_eval(self.networks, self.encoders):
            return chain.predict(
                self, x, noise, sampler, steps, samples, seed, first_row, keep, replica
            )
