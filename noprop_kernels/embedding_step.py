"""A step whose squared error is formed in PyTorch, on the kernels' forward and backward.

It reaches W_embed where a training call of the kernels does not: in flow matching's anchor, the
cross entropy at the end of the path, z + (1 - t) v_hat, whose gradient also goes to the block
(arXiv:2503.24322v2, section 2.3.1), and where the target is a constant.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .arguments.batches import Inputs, refuse_graph
from .arguments.times import Blocks
from .backends.reference.equations import add_noise_gradient
from .blocks import DenoisingBlocks
from .output_head import OutputHead
from .stack import engine, training
from .stack.call_arguments import check_batch, index_of
from .stack.shared import Shared


@dataclass
class BlockStep:
    """What a step of n blocks gives to Coupled; gradients are at the values before the step.

    Attributes:
        loss: (n,).
        applied: (n,) bool.
        d_W_embed: (M, D), the mean over the n blocks of their losses' gradients; None: not wanted.
        d_signal, d_noise, d_weight: (n, B), of each block's loss.
        head_loss: (R,), of the output head, where the step trained it too; it moved where the block
            did.
    """

    loss: Tensor
    applied: Tensor
    d_W_embed: Tensor | None = None
    d_signal: Tensor | None = None
    d_noise: Tensor | None = None
    d_weight: Tensor | None = None
    head_loss: Tensor | None = None


def embedding_step(
    blocks: DenoisingBlocks,
    head: OutputHead,
    shared: Shared,
    x: Inputs,
    y: Tensor,
    ts: Blocks,
    given: engine.TimedLevels | None,
    lr: float | None,
) -> BlockStep:
    """One step of the blocks `ts`, and under an FM of the output head by the anchor.

    `given` as engine.levels_of. There is one replica.
    """
    op, goal = "step", blocks.goal
    refuse_graph(op, x)
    index = index_of(blocks, op, ts)
    n = len(index)
    _, B = check_batch(blocks, op, x, y, n)
    z, eps = training.add_noise(blocks, op, y, ts, with_eps=True, given=given)
    address = engine.noise_of(blocks, index, engine.blocks_of(blocks, index, 1))
    noising, objective, t = engine.levels_of(blocks, index, address, B, given=given)
    signal, rest, weight = noising.signal[0], noising.noise[0], objective.weight[0]

    W_embed = engine.embedding_of(blocks).W_embed
    assert W_embed is not None and eps is not None
    classes = torch.arange(len(W_embed), dtype=y.dtype, device=y.device)
    one_hot = (y[:, None] == classes).to(W_embed.dtype)  # (B, M), so that u_y = one_hot @ W_embed
    with torch.enable_grad():
        z.requires_grad_()
        logits = blocks.forward(x, z, t=None if t is None else t[0], blocks=ts)
        leaves = W, coefficients, z_free = (
            W_embed.clone().requires_grad_(),
            logits.detach().requires_grad_(),
            z.detach().requires_grad_(),
        )
        u_hat = (coefficients if goal.head == "linear" else coefficients.softmax(-1)) @ W
        target = one_hot @ (W.detach() if shared.detach_target else W) - goal.flow * eps
        error = (u_hat - target).square().sum(-1)  # (n, B)
        loss = (weight * error).sum(-1) / B
        end = z_free + rest[..., None] * u_hat if goal.flow else None
    finite, head_loss = loss.detach().isfinite(), None
    outputs, seeds = [loss], [torch.ones_like(loss)]
    if end is not None:
        head_loss, finite, d_end = anchor(head, y, end.detach(), finite, lr)
        outputs, seeds = [loss, end], [*seeds, d_end]
    d_W, d_logits, d_z = torch.autograd.grad(
        outputs, leaves, seeds, allow_unused=True, materialize_grads=True
    )
    d_logits = torch.where(finite[:, None, None], d_logits, torch.nan)  # which updates nothing
    update = blocks.backward_update(logits, d_logits, lr=lr)
    assert update.d_z is not None
    d_z = d_z + update.d_z.view_as(d_z)
    d_signal, d_noise = add_noise_gradient(d_z, one_hot @ W_embed, eps)
    d_u_y = (signal[..., None] * d_z).sum(0)  # by z; d_W has the paths of u_hat and the target
    return BlockStep(
        loss=loss.detach(),
        applied=update.applied,
        d_W_embed=(d_W + one_hot.T @ d_u_y) / n,
        d_signal=d_signal,
        d_noise=d_noise,
        d_weight=error.detach() / B,
        head_loss=head_loss,
    )


def anchor(
    head: OutputHead, y: Tensor, end: Tensor, finite: Tensor, lr: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Trains the output head on the end of the path, (R, B, D), where `finite` (R,).

    Returns its loss (R,), where this is finite too, and the gradient in `end`. Where the gradient
    of its logits is not finite, that of `end` is not, and the block stays as the head does.
    """
    with torch.enable_grad():
        logits = head.forward(end.requires_grad_())
        free = logits.detach().requires_grad_()
        loss = torch.stack([cross_entropy(one, y) for one in free.unbind(0)])
    (d_logits,) = torch.autograd.grad(loss, free, torch.ones_like(loss))
    finite = finite & loss.detach().isfinite()
    d_logits = torch.where(finite[:, None, None], d_logits, torch.nan)
    update = head.backward_update(logits, d_logits, lr=lr)
    assert update.d_z is not None
    return loss.detach(), finite, update.d_z
