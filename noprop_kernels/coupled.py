"""Coupled: blocks, output head and what they share, one batch at a time (algorithms 1 to 3)."""

import torch
from torch import Tensor, nn

from .arguments.batches import Inputs, check_labels
from .blocks import DenoisingBlocks
from .check import check_integer
from .compiler.eager import eager_only
from .coupled_levels import step_levels
from .embedding_step import BlockStep, embedding_step
from .output_head import OutputHead, head_step
from .philox import BLOCK_SHARED, STREAM_TIME, uniform
from .results import CoupledStep, Step
from .stack import engine, training
from .stack.shared import Shared

ORDERS = ("paper", "all-t", "sampled")


class Coupled(nn.Module):
    """Trains blocks, output head, and the embeddings and schedule that they share and learn.

    A step's loss is the paper's: the block's squared error, the cross entropy of the output head at
    z_T (DT) or z_1 (CT), and KL(q(z_0 | y) || N(0, I)) (arXiv:2503.24322v2, eqs. 8 and 9); under an
    FM with learned embeddings the squared error and the anchor, the cross entropy at
    z_t + (1 - t) v_hat (section 2.3.1). The blocks, the head, W_embed and gamma each move by the
    gradient at the values that all had before the step. Where nothing is learned that is shared, a
    step is blocks.train_step and head.train_step, bit for bit.

    Args:
        blocks: all T of them, made with `shared`.
        head: made with `shared`; None under an FM whose embeddings are fixed, which has none.
        shared: what both read.
        order: of a DT's blocks. "paper": each step names its block, and t is the outer loop of an
            epoch (algorithm 1). "all-t": a step trains all blocks on its batch and the head once;
            the gradient of what is shared is the head's, the prior's, and the mean over t of the
            blocks', which is another algorithm than the paper's. "sampled": a step draws its block.

    Raises:
        ValueError: the three do not belong together.
    """

    def __init__(
        self,
        blocks: DenoisingBlocks,
        head: OutputHead | None,
        shared: Shared,
        *,
        order: str = "paper",
    ) -> None:
        super().__init__()
        op = type(self).__name__
        if not isinstance(blocks, DenoisingBlocks):
            raise ValueError(f"{op}: blocks must be DenoisingBlocks, got {type(blocks).__name__}")
        if head is not None and not isinstance(head, OutputHead):
            raise ValueError(f"{op}: head must be an OutputHead or None, got {type(head).__name__}")
        if not isinstance(shared, Shared):
            raise ValueError(f"{op}: shared must be a Shared, got {type(shared).__name__}")
        for name, part in (("blocks", blocks), ("head", head)):
            if part is not None and part.shared is not shared:
                raise ValueError(
                    f"{op}: {name} must be made with this shared=, got "
                    f"{'another' if part.shared is not None else 'none'}"
                )
        needs_head = blocks.goal.flow == 0 or shared.learns_embedding
        if (head is not None) != needs_head:
            raise ValueError(
                f"{op}: head must be {'an OutputHead' if needs_head else 'None'} under "
                f"{'this goal' if needs_head else 'an FM with fixed embeddings'}, got "
                f"{'None' if head is None else 'one'}"
            )
        if head is not None and (head.M, head.D) != (blocks.M, blocks.D):
            raise ValueError(
                f"{op}: head must have the blocks' M and D, {blocks.M} and {blocks.D}, got "
                f"{head.M} and {head.D}"
            )
        if len(blocks.held) != blocks.T:
            raise ValueError(
                f"{op}: blocks must hold all of the {blocks.T} blocks, got {blocks.held}"
            )
        if order not in ORDERS:
            raise ValueError(f"{op}: order must be one of {ORDERS}, got {order!r}")
        if order == "sampled" and shared.replicas > 1:
            raise ValueError(
                f'{op}: order must not be "sampled" with {shared.replicas} replicas, each of which '
                "would draw a block of its own"
            )
        self.blocks = blocks
        self.head = head
        self.shared = shared
        self.order = order

    @eager_only
    def step(
        self, x: Inputs, y: Tensor, t: int | None = None, *, lr: float | None = None
    ) -> CoupledStep:
        """One step on a batch.

        Args:
            x: as of DenoisingBlocks.train_step.
            y: (B,) int64, labels.
            t: the block, in 1..T, under order "paper" with T > 1; else None.
            lr: learning rate of all three; None: each optimizer's own.

        Returns:
            CoupledStep.

        Raises:
            ValueError: an argument does not fit, or an optimizer is None.
            BackendError: no backend can run it.
        """
        op, blocks, head, shared = "step", self.blocks, self.head, self.shared
        ts, head_t = self._chosen(op, t)
        y = check_labels(op, y, None, blocks.device)
        self._check_rules(op, lr)
        goal, levels = blocks.goal, step_levels(blocks, shared, y)
        if shared.learns_embedding and (goal.flow != 0 or shared.detach_target):
            assert head is not None
            block = embedding_step(blocks, head, shared, x, y, ts, levels.given, lr)
        else:
            step = training.train_step(
                *(blocks, x, y, ts, lr, None, False), levels_grad=shared.learns, given=levels.given
            )
            block = self._block_step(step, len(y))
        applied = block.applied.view(shared.replicas, -1).all(1)
        head_loss = block.head_loss
        at_end: Step | None = None
        if goal.flow == 0:
            assert head is not None
            at_end = head_step(head, y, head_t, lr, shared.learns, levels.last)
            head_loss, applied = at_end.loss, applied & at_end.applied
        applied = levels.update(levels.gradients(block, at_end), applied, lr)
        return CoupledStep(block.loss, head_loss, levels.prior.float(), applied)

    def extra_repr(self) -> str:
        return f"order={self.order!r}"

    # the parts of a step

    def _chosen(self, op: str, t: int | None) -> tuple[int | None, int]:
        """The block to train, None for all, and the t at whose address the head draws its noise."""
        T = self.blocks.T
        if T > 1 and self.order == "paper":
            if t is None:
                raise ValueError(f'{op}: t must be given in the order "paper", got None')
            t = check_integer(op, "t", t, 1, T)
            return t, t
        if t is not None and not (T == 1 and t == 1):
            order = f"order {self.order!r}" if T > 1 else "one block"
            raise ValueError(f"{op}: t must be None with {order}, got {t!r}")
        if self.order == "sampled" and T > 1:
            shared = self.shared
            u = uniform(shared.seeds, STREAM_TIME, 0, shared.draws, BLOCK_SHARED, 1, 1)
            t = 1 + int(u * T)
            return t, t
        return None, 1

    def _check_rules(self, op: str, lr: float | None) -> None:
        """Raises where a part cannot be updated, before any part is."""
        if isinstance(lr, Tensor):
            raise ValueError(f"{op}: lr must be a number or None, got a tensor")
        for part in (self.blocks, self.head):
            if part is not None:
                everyone = torch.arange(len(part), dtype=torch.int64, device="cpu")
                engine.step_rule(part, op, lr, everyone)
        if self.shared.learns:
            self.shared.rule(op, lr)

    def _block_step(self, step: Step, B: int) -> BlockStep:
        """A training call's results; d_W_embed is the mean over t, added up in its order."""
        result = BlockStep(step.loss, step.applied)
        if self.shared.learns_embedding:
            assert step.d_W_embed is not None
            total = torch.zeros_like(step.d_W_embed[0])
            for d_W_embed in step.d_W_embed.unbind(0):
                total = total + d_W_embed
            result.d_W_embed = total / len(step.d_W_embed)
        if self.shared.learns_schedule:
            result.d_signal, result.d_noise = step.d_signal, step.d_noise
            result.d_weight = step.error / B
        return result
