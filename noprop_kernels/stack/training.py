"""The fused training of a stack's slices: a step, many in one call, or its parts."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..arguments.batches import Inputs, Normalize, check_labels, flat, gather_inputs, refuse_graph
from ..arguments.row_weights import check_row_weight, in_steps
from ..arguments.scalars import check_row, check_whole
from ..arguments.times import Blocks
from ..backends.calls import AddNoiseCall
from ..check import MOST_COUNT, check_positive, check_tensor
from ..compiler.eager import eager_only
from ..results import Step
from . import engine, known
from .call_arguments import check_batch, check_draws_z, index_of, input_gradients
from .gradients import GradientStack
from .module import Stack


class TrainedStack(GradientStack):
    """Blocks that are trained by NoProp's own losses, in calls of the kernels."""

    @eager_only
    def train_step(
        self,
        x: Inputs,
        y: Tensor,
        *,
        blocks: Blocks = None,
        lr: float | Tensor | None = None,
        z: Tensor | None = None,
        input_grad: bool = False,
        levels_grad: bool = False,
        row_weight: Tensor | None = None,
    ) -> Step:
        """One step of n slices: draw z_{t-1}, forward, loss, backward, update.

        Advances `draws` by one, and where the loss is finite updates weights, moments, running
        statistics and `updates`.

        Args:
            x: (B, F) float32, shared, or (n, B, F), one per slice; a dict by name if the plan has
                more inputs than "x", "z" and a drawn "t".
            y: (B,) int64, labels.
            blocks: the t to train, in all replicas; None: all held.
            lr: a number or (n,); None: the optimizer's.
            z: (n, B, width) float32, features made from `add_noise` at the same address; eps is
                drawn again only for the target, and the caller computes the path through z.
            input_grad: whether to compute d_x, and d_z if `z` is given.
            levels_grad: whether to compute d_W_embed, and d_signal and d_noise unless `z` is given.
            row_weight: (B,) float32, at least 0, by which the rows' weights in the loss are
                multiplied; None: 1. The loss is divided by B whatever they are. On a GPU, where no
                check waits, a negative weight makes it NaN.

        Returns:
            Step.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
            BackendError: no backend can run it.
        """
        return train_step(self, x, y, blocks, lr, z, input_grad, levels_grad, row_weight)

    @eager_only
    def train_steps(
        self,
        X: Inputs,
        Y: Tensor,
        indices: Tensor | None,
        *,
        blocks: Blocks = None,
        lr: float | Tensor | None = None,
        normalize: Normalize | Mapping[str, Normalize] | None = None,
        row_weight: Tensor | None = None,
    ) -> Tensor:
        """K steps in one call, each as `train_step`; after a stop each slice has its own `draws`.

        Args:
            X: (rows, F), the data set: float32, bfloat16 or uint8, which counts as 0..255 of [0,
                1]; with indices None (K, B, F), batches already gathered. A dict by name if the
                plan has more inputs.
            Y: (rows,) or (K, B) int64, labels.
            indices: (K, B) int64, rows of each batch, or (K, R, B), each replica's own; None: X has
                the batches.
            blocks: the t to train, in all replicas; None: all held.
            lr: a number, (K,) or (K, n); None: the optimizer's.
            normalize: (mean, std), each a number, one per channel (features in channel order) or
                one per feature; uint8 is divided by 255 first, as by torchvision's ToTensor. A dict
                by name as X.
            row_weight: float32 in Y's shape, as of `train_step`; those of a data set are gathered
                as its rows are.

        Returns:
            (K, n) float32 losses.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
            BackendError: no backend can run it.
        """
        op = "train_steps"
        index = index_of(self, op, blocks)
        check_draws_z(self, op)
        replica = torch.div(index, len(self.layout.held), rounding_mode="floor")
        inputs, labels, K, B = gather_inputs(
            *(op, X, Y, indices, normalize, self.plan, self.layout.given),
            *(replica, self.layout.replicas, self.device),
        )
        refuse_graph(op, X)
        weight = check_row_weight(op, row_weight, Y.shape, self.device)
        weight = in_steps(weight, labels, len(index))
        return engine.train_steps(
            self, op, index, engine.blocks_of(self, index, K), inputs, labels, B, lr, weight
        )

    @eager_only
    def add_noise(
        self, y: Tensor, *, blocks: Blocks = None, first_row: int = 0, rows: int | None = None
    ) -> Tensor:
        """z_{t-1} = signal * u_y + noise * eps, at the address of the next step; changes nothing.

        Args:
            y: (B,) int64, labels.
            blocks: the t to draw for, in all replicas; None: all held.
            first_row: position of row 0 in the whole batch.
            rows: of the whole batch, which stratified t divide; None: B.

        Returns:
            (n, B, D) float32.

        Raises:
            ValueError: an argument does not fit.
        """
        return add_noise(self, "add_noise", y, blocks, first_row, rows)[0]

    @eager_only
    def times(
        self, B: int, *, blocks: Blocks = None, first_row: int = 0, rows: int | None = None
    ) -> Tensor:
        """t of each row of a batch of B, at the address of the next step; changes nothing.

        Args:
            B: rows.
            blocks, first_row, rows: as of `add_noise`.

        Returns:
            (n, B) float64 in [0, 1).

        Raises:
            ValueError: an argument does not fit, or the goal is a DT, which draws none.
        """
        op = "times"
        index = index_of(self, op, blocks)
        if not self.layout.goal.timed:
            raise ValueError(f"{op}: goal must be a CT or FM, which draw t, got {self.goal}")
        B = check_positive(op, "B", B, MOST_COUNT)
        return engine.next_times(self, index, B, check_row(op, first_row, B), check_whole(op, rows))


def train_step(
    stack: Stack,
    x: Inputs,
    y: Tensor,
    blocks: Blocks,
    lr: float | Tensor | None,
    z: Tensor | None,
    input_grad: bool,
    levels_grad: bool,
    row_weight: Tensor | None = None,
    given: engine.TimedLevels | None = None,
) -> Step:
    """DenoisingBlocks.train_step; `given` as engine.levels_of."""
    op = "train_step"
    index, empty = index_of(stack, op, blocks), partial(engine.empty, stack)
    n = len(index)
    rule = engine.step_rule(stack, op, lr, index)
    inputs, B = check_batch(stack, op, x, y, n)
    row_weight = check_row_weight(op, row_weight, (B,), stack.device)
    if not input_grad:
        refuse_graph(op, x, z)
    out = engine.new_out(stack, 1, n)
    out.error = empty(n, B)
    if z is None:
        check_draws_z(stack, op)
    else:
        rows, shape = flat(op, "z", z, stack.plan.shapes["z"]), (n, B, stack.plan.widths["z"])
        z = check_tensor(op, "z", rows, shape=shape, device=stack.device).detach().contiguous()
    if input_grad:
        names = [*inputs] if z is None else [*inputs, "z"]
        out.d_inputs = {name: empty(n, B, stack.plan.widths[name]) for name in names}
    if levels_grad:
        out.d_W_embed = empty(n, stack.M, stack.D)
        if z is None:
            out.d_signal, out.d_noise = empty(n, B), empty(n, B)
    block, options = engine.blocks_of(stack, index, 1), {"z": z, "rule": rule, "given": given}
    engine.step(stack, op, index, block, inputs, y, B, out, row_weight, **options)
    return Step(
        out.loss[0],
        out.error,
        out.applied[0],
        *input_gradients(stack, out.d_inputs),
        out.d_signal,
        out.d_noise,
        out.d_W_embed,
    )


def add_noise(
    stack: Stack,
    op: str,
    y: Tensor,
    blocks: Blocks,
    first_row: int = 0,
    rows: int | None = None,
    *,
    with_eps: bool = False,
    given: engine.TimedLevels | None = None,
) -> tuple[Tensor, Tensor | None]:
    """z of DenoisingBlocks.add_noise, and eps where the target, or the caller, needs it; `given`
    as engine.levels_of.
    """
    usual = blocks is None and rows is None and given is None
    usual = usual and type(first_row) is int and first_row == 0
    if usual and (done := known.add_noise(stack, y, with_eps)) is not None:
        return done
    index = index_of(stack, op, blocks)
    y = check_labels(op, y, None, stack.device)
    n, B = len(index), len(y)
    first_row, rows = check_row(op, first_row, B), check_whole(op, rows)
    z = engine.empty(stack, n, B, stack.D)
    eps = torch.empty_like(z) if with_eps or stack.layout.goal.flow != 0 else None
    if B:
        noise = engine.noise_of(
            stack, index, engine.blocks_of(stack, index, 1), first_row=first_row
        )
        call = AddNoiseCall(
            noise=noise,
            noising=engine.levels_of(stack, index, noise, B, rows, given)[0],
            embedding=engine.embedding_of(stack),
            y=y.contiguous().expand(1, n, B),
            z=z,
            eps=eps,
            owner=stack.updates,
            op=op,
        )
        engine.run(stack, "add_noise", call)
        if usual:
            known.keep(stack, known.noise_key(y, with_eps), call, ("y", "z", "eps"))
    return z, eps
