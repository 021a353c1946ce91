"""The chain of networks, or a sampler's of one: z_t = a u_hat_t + b z_{t-1} + sqrt(c) eps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noprop_kernels import Prediction, philox
from noprop_kernels.arguments.scalars import check_row, seed_list, seed_tensor
from noprop_kernels.autograd.chain import check_keep, check_replica
from noprop_kernels.check import MOST_COUNT, check_positive
from noprop_kernels.samplers import choose_sampler

from .networks import asked_dtype, autocast, exact
from .noise import predict_embedding

if TYPE_CHECKING:
    from .stack import NetworkStack


@torch.no_grad()
def predict(
    blocks: "NetworkStack",
    x: object,
    noise: bool,
    sampler: str | None,
    steps: int | None,
    samples: int,
    seed: int | Sequence[int] | None,
    first_row: int,
    keep: str | int,
    replica: int | None,
) -> Prediction:
    """ModuleBlocks.predict, of networks in eval mode."""
    op, goal, device, T = "predict", blocks.goal, blocks.device, blocks.T
    kind, steps = choose_sampler(
        op, goal.samplers, sampler, steps, noise=noise, default_steps=goal.steps
    )
    kept = check_keep(op, keep, steps)
    which = [*range(blocks.replicas)]
    if replica is not None:
        which = [check_replica(op, replica, len(which))]
    S = check_positive(op, "samples", samples, MOST_COUNT)
    x = blocks.rows(op, x, len(which))
    B, D = x.shape[1], blocks.D
    first_row = check_row(op, first_row, B)
    seeds = blocks.seeds.view(-1, T)[which, 0]
    if seed is not None:
        given = seed_list(op, seed)
        if len(given) not in (1, len(which)):
            raise ValueError(
                f"{op}: seed must be one or {len(which)}, one per replica, got {seed!r}"
            )
        seeds = seed_tensor(given).to(device).expand(len(which))
    shape = (kept, S, len(which), B)
    logits = torch.empty(*shape, blocks.M, dtype=torch.float32, device=device)
    u_hat = torch.empty(*shape, D, dtype=torch.float32, device=device)
    z = torch.empty_like(u_hat)
    dtype = asked_dtype(device, blocks.precision)
    with exact(device):
        for at, r in enumerate(which):
            chain = Chain(blocks, r, x[at], dtype, kind, steps)
            for sample in range(S):
                draw = (seeds[at : at + 1], sample, first_row) if noise else None
                out = (value[:, sample, at] for value in (logits, u_hat, z))
                chain.run(draw, *out)
    results = (logits, u_hat, z)
    return Prediction(*((result[0] for result in results) if keep == "last" else results))


class Chain:
    """A replica's chain over rows x (B, ...); features of encoders are made once for all draws."""

    def __init__(
        self,
        blocks: "NetworkStack",
        replica: int,
        x: Tensor,
        dtype: torch.dtype | None,
        kind: str,
        steps: int,
    ) -> None:
        self.blocks, self.replica, self.x, self.dtype = blocks, replica, x, dtype
        self.table = blocks.goal.table(kind, steps)
        self.features: dict[int, Tensor] = {}

    def u_hat(self, e: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """logits (B, M) and u_hat (B, D) of evaluation e."""
        blocks = self.blocks
        i = self.replica * blocks.T + e % blocks.T
        encoder = self.replica if blocks.share_encoder else i
        t = None
        if blocks.goal.timed:
            t = self.table.t[e].to(z.device).expand(len(z))
        with autocast(z.device, self.dtype):
            if encoder not in self.features:
                self.features[encoder] = blocks.encode("predict", encoder, self.x)
            logits = blocks.logits("predict", i, self.features[encoder], z, t)
        return logits, predict_embedding(blocks, logits)

    def run(
        self, draw: tuple[Tensor, int, int] | None, logits: Tensor, u_hat: Tensor, z_kept: Tensor
    ) -> None:
        """One draw of the noise (seed, sample, first row), or none; writes what is kept."""
        table, B, D = self.table, len(self.x), self.blocks.D
        device, every = self.x.device, len(table.a) // len(z_kept)

        def normal(block: int) -> Tensor:
            assert draw is not None  # by the callers
            seed, sample, first_row = draw
            at = (seed, philox.STREAM_INFERENCE, 0, sample, block, B, D)
            return philox.normal(*at, first_row=first_row)[0]

        z = torch.zeros(B, D, dtype=torch.float32, device=device)
        if draw is not None:
            z = normal(philox.BLOCK_Z_0)
        base, total, step = z, torch.zeros_like(z), 0
        numbers = (table.a, table.b, table.sqrt_c, table.weight, table.next, table.keep)
        rows = torch.stack(numbers, 1).float().tolist()
        for e, (a, b, sqrt_c, weight, onward, keep) in enumerate(rows):
            found, estimate = self.u_hat(e, z)
            k = a * estimate + b * z
            total = total + weight * k
            if not table.ends[e]:
                z = base + onward * k
                continue
            z = total + keep * base
            if draw is not None and sqrt_c != 0:
                z = z + sqrt_c * normal(step % 2**16)
            base, total, step = z, torch.zeros_like(z), step + 1
            if (e + 1) % every == 0:
                at = (e + 1) // every - 1
                logits[at], u_hat[at], z_kept[at] = found, estimate, z
