"""Steps of ModuleBlocks: forward, loss and backward of each slice by itself, then the updates."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noprop_kernels import philox
from noprop_kernels.arguments.batches import Normalize
from noprop_kernels.arguments.scalars import check_rates
from noprop_kernels.check import MOST_COUNT, check_counter

from .batches import batches_of
from .features import Features
from .networks import asked_dtype, autocast, exact, trained
from .noise import Noised, mean_loss, noised
from .randomness import seeded, torch_seeds
from .undo import Kept

if TYPE_CHECKING:
    from .stack import NetworkStack

Rates = list[float | None]  # of the slices in a step; None: the optimizer's own


def train_steps(
    blocks: "NetworkStack",
    X: object,
    Y: object,
    indices: object,
    positions: list[int],
    lr: float | Tensor | None,
    normalize: Normalize | None,
    row_weight: Tensor | None,
) -> Tensor:
    """ModuleBlocks.train_steps, of the slices at these positions."""
    op, device, n = "train_steps", blocks.device, len(positions)
    if blocks.optimizer is None:
        raise ValueError(f"{op}: optimizer must not be None here; give one to ModuleBlocks")
    if not blocks.training:
        raise ValueError(f"{op}: mode must be that of train(), got that of eval()")
    batches = batches_of(
        *(op, X, Y, indices, normalize, row_weight),
        shape=blocks.x_shape,
        M=blocks.M,
        R=blocks.replicas,
        device=device,
    )
    K = batches.K
    rates: list[Rates] = [[None] * n] * K
    if lr is not None:
        rates = check_rates(op, lr, K, n).tolist()
    losses = torch.empty(K, n, dtype=torch.float32, device=device)
    if K > 0:
        check_rows(blocks, op, batches.B)
        check_counter(op, "draws", blocks.draws, K)
    dtype = asked_dtype(device, blocks.precision)
    with exact(device), torch.enable_grad():
        for k in range(K):
            losses[k] = step(blocks, positions, *batches.take(k), rates[k], dtype)
    return losses


def check_rows(blocks: "NetworkStack", op: str, B: int) -> None:
    """
    Raises:
        ValueError: a training batch has too few rows, or more than noise addresses.
    """
    least, norm = (2, " with batch norm") if blocks.plan.has_norm() else (1, "")
    if not least <= B <= MOST_COUNT + 1:
        raise ValueError(
            f"{op}: a batch must have at least {least} rows in training{norm}, and at most 2^32, "
            f"got {B}"
        )


def step(
    blocks: "NetworkStack",
    positions: list[int],
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    rates: Rates,
    dtype: torch.dtype | None,
) -> Tensor:
    """One step: the losses (n,). A slice whose loss is not finite keeps its state but for `draws`;
    where a network raises, all slices keep theirs.

    Args:
        x, y, weight: (R or 1, B, ...), (R or 1, B), and of the rows likewise, or None.
        dtype: of the networks' autocast.
    """
    optimizer = blocks.optimizer
    assert optimizer is not None  # by train_steps
    index = torch.tensor(positions, dtype=torch.int64, device=blocks.device)
    block, replica = index % blocks.T, index // blocks.T
    with torch.no_grad():
        own = replica if len(y) > 1 else torch.zeros_like(replica)
        made = noised(blocks, index, y[own], None if weight is None else weight[own])
        draws = blocks.draws[index]
        seeds = torch_seeds(blocks.seeds[index], philox.STREAM_DROPOUT, draws, block)
    rows = [x[i // blocks.T if len(x) > 1 else 0] for i in positions]
    with Kept(blocks, positions) as kept:
        features = Features(blocks, positions, rows, dtype)
        losses = torch.stack(
            [
                backward(blocks, i, seeds[j], features.of(j), made.of(j), dtype)
                for j, i in enumerate(positions)
            ]
        )
        finite = losses.isfinite()
        features.backward(finite)
    applied = finite.tolist()
    with torch.no_grad():
        for j, i in enumerate(positions):
            if applied[j]:
                optimizer.step(i, rates[j])
            else:
                kept.put_back(i)
        for r, j in features.moved(applied).items():
            if j is None:
                kept.put_back(len(blocks) + r)
            elif features.learns(r):
                optimizer.step(len(blocks) + r, rates[j])
        blocks.draws[index] += 1
        blocks.updates[index] += finite
    kept.forget_gradients()
    return losses


def backward(
    blocks: "NetworkStack", i: int, seed: int, x: Tensor, made: Noised, dtype: torch.dtype | None
) -> Tensor:
    """The loss () of slice i, whose gradient reaches its own parameters, and x where x is the
    result of an encoder that learns."""
    wanted = [*trained(*blocks.parts_of(i)), *([x] if x.requires_grad else [])]
    with seeded(seed, blocks.device):
        with autocast(blocks.device, dtype):
            logits = blocks.call("train_steps", i, x, made.z, made.t)
        if not logits.requires_grad:
            raise ValueError(
                f"train_steps: {blocks.owner(i)} must return logits that depend on its parameters, "
                "got some that require no gradient; nothing may detach them"
            )
        loss = mean_loss(blocks, logits, made)
        torch.autograd.backward(loss, inputs=wanted)
    return loss.detach()
