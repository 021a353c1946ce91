"""Blocks that train in fused steps: one, many in one call, or its halves, gradients and update."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..arguments.batches import (
    INT64,
    Inputs,
    Normalize,
    check_inputs,
    check_labels,
    gather_inputs,
    packed,
)
from ..arguments.scalars import seed_list, seed_tensor
from ..backends.calls import UpdateCall
from ..check import MOST_COUNT, check_count, check_integer, check_positive, check_tensor
from ..compiler.eager import eager_only
from ..goal import DT
from ..optimizers import AdamW, Optimizer
from ..philox import STREAM_EPS
from ..plan import Plan
from ..results import Gradients, Step
from .module import StackedModule

Blocks = int | Sequence[int] | None
BOOL = (torch.bool,)
CPU = torch.device("cpu")


class TrainedBlocks(StackedModule):
    """The slices (replica, block) of a goal's chain, and the fused training of any of them."""

    t: Tensor
    _block: Tensor

    def __init__(
        self,
        plan: Plan,
        goal: DT,
        *,
        embedding: Tensor | None = None,
        optimizer: Optimizer | None = AdamW(lr=1e-3, weight_decay=1e-3),  # noqa: B008  # frozen
        seed: int | Sequence[int] = 0,
        held: Sequence[int] | None = None,
        precision: str = "float32",
        backend: str | None = None,
        blocks_per_launch: int | None = None,
    ) -> None:
        op = "DenoisingBlocks"
        if not isinstance(plan, Plan):
            raise ValueError(f"{op}: plan must be a Plan, got {type(plan).__name__}")
        if len(plan.inputs) < 2:
            raise ValueError(f'{op}: plan must have an input beside "z", got {list(plan.inputs)}')
        if not isinstance(goal, DT):
            raise ValueError(f"{op}: goal must be a DT, got {type(goal).__name__}")
        seeds = seed_list(op, seed)
        held = check_blocks(op, "held", range(1, goal.T + 1) if held is None else held, goal.T)
        t = torch.tensor(sorted(held) * len(seeds), dtype=torch.int64, device="cpu")
        super().__init__(
            plan,
            seeds=seed_tensor(seeds).repeat_interleave(len(held)),
            numbers=goal.numbers(t),
            embedding=embedding,
            optimizer=optimizer,
            precision=precision,
            backend=backend,
            stream=STREAM_EPS,
            M=plan.widths[plan.output],
        )
        self.register_buffer("t", t)
        self.register_buffer("_block", t - 1, persistent=False)
        self._shapes |= {"t": t.shape, "_block": t.shape}
        self.goal = goal
        self.blocks_per_launch = blocks_per_launch
        self.held = tuple(sorted(held))
        self.replicas = len(seeds)
        self._initialise(self._block)

    @property
    def T(self) -> int:
        """Blocks of the whole chain, held or not."""
        return self.goal.T

    def extra_repr(self) -> str:
        held = f"T={self.T}" if len(self.held) == self.T else f"T={self.T}, held={self.held}"
        return f"{held}, replicas={self.replicas}, {super().extra_repr()}"

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
        numbers_grad: bool = False,
    ) -> Step:
        """One step of n slices: draw z_{t-1}, forward, loss, backward, update.

        Moves `draws` by one, and where the loss is finite the weights, moments, running statistics
        and `updates`.

        Args:
            x: (B, F) float32, shared, or (n, B, F), one per slice; a dict by name if the plan has
                more inputs.
            y: (B,) int64, labels.
            blocks: the t to train, in all replicas; None: all held.
            lr: a number or (n,); None: the optimizer's.
            z: (n, B, width) float32, features made from `add_noise` at the same address; eps is
                drawn again only for the target, and the path through z is the caller's.
            input_grad: ask for d_x, and d_z if `z` is given.
            numbers_grad: ask for d_W_embed, and d_signal and d_noise unless `z` is given.

        Returns:
            Step.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
            BackendError: no backend can run it.
        """
        op = "train_step"
        index, empty = self._index(op, blocks), self._empty
        n = len(index)
        rule = self._step_lr(op, lr, index)
        inputs, B = self._batch(op, x, y, n)
        if not input_grad:
            refuse_graph(op, x, z)
        out = self._new_out(1, n)
        out.error = empty(n, B)
        if z is None:
            self._check_draws_z(op)
        else:
            shape = (n, B, self.plan.widths["z"])
            z = check_tensor(op, "z", z, shape=shape, device=self.device).detach().contiguous()
        if input_grad:
            names = [*inputs] if z is None else [*inputs, "z"]
            out.d_inputs = {name: empty(n, B, self.plan.widths[name]) for name in names}
        if numbers_grad:
            out.d_W_embed = empty(n, self.M, self.D)
            if z is None:
                out.d_signal, out.d_noise = empty(n, B), empty(n, B)
        self._train(
            index=index,
            block=self._noise_block(index, 1),
            inputs={name: packed(value)[None] for name, value in inputs.items()},
            y=y.contiguous().expand(1, n, B),
            z=z,
            B=B,
            rule=rule,
            out=out,
        )
        d_z = out.d_inputs.pop("z", None)
        return Step(
            out.loss[0],
            out.error,
            out.applied[0],
            self._named(out.d_inputs),
            d_z,
            out.d_signal,
            out.d_noise,
            out.d_W_embed,
        )

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
    ) -> Tensor:
        """K steps in one call, each as `train_step`; a stopped slice stands at its own `draws`.

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

        Returns:
            (K, n) float32 losses.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
            BackendError: no backend can run it.
        """
        op = "train_steps"
        index = self._index(op, blocks)
        self._check_draws_z(op)
        replica = torch.div(index, len(self.held), rounding_mode="floor")
        inputs, labels, K, B = gather_inputs(
            op, X, Y, indices, normalize, self.plan, replica, self.replicas, self.device
        )
        refuse_graph(op, X)
        return self._train_steps(op, index, self._noise_block(index, K), inputs, labels, B, lr)

    @eager_only
    def gradients(
        self,
        x: Inputs,
        y: Tensor,
        *,
        blocks: Blocks = None,
        step: int | None = None,
        first_row: int = 0,
        rows: int | None = None,
    ) -> Gradients:
        """Gradients of one step's loss, or of a part of its batch; no state moves, no counter.

        Args:
            x, y, blocks: as in `train_step`.
            step: the draw whose noise is used; None: each slice's own `draws`.
            first_row: position of row 0 in the whole batch.
            rows: rows of the whole batch, by which the loss is divided; None: B.

        Returns:
            Gradients, which add over the parts of a batch; give them to `update`.

        Raises:
            ValueError: an argument does not fit.
            BackendError: no backend can run it.
        """
        op = "gradients"
        index = self._index(op, blocks)
        self._check_draws_z(op)
        inputs, B = self._batch(op, x, y, len(index))
        refuse_graph(op, x)
        first_row = check_row(op, first_row, B)
        rows = B if rows is None else check_positive(op, "rows", rows, MOST_COUNT)
        draw = None
        if step is not None:
            draw = self.draws.new_full((1, len(index)), check_count(op, "step", step))
        n = len(index)
        out = self._new_out(1, n)
        out.error = self._empty(n, B)
        out.grads = {name: self._empty(n, *s) for name, s in self.plan.parameters().items()}
        out.stats = {name: self._empty(n, *s) for name, s in self.plan.statistics().items()}
        self._train(
            index=index,
            block=self._noise_block(index, 1),
            inputs={name: packed(value)[None] for name, value in inputs.items()},
            y=y.contiguous().expand(1, n, B),
            B=B,
            rule=None,
            out=out,
            draw=draw,
            first_row=first_row,
            rows=rows,
        )
        return Gradients(
            out.grads, out.loss[0], out.error, out.applied[0], index.clone(), rows, out.stats
        )

    @eager_only
    def update(self, grads: Gradients, *, lr: float | Tensor | None = None) -> Tensor:
        """The second half of `train_step`: moves the slices of `grads`, and `draws` by one.

        A slice whose loss or gradient is not finite is left alone, but for `draws`.

        Args:
            grads: of this object, or of one of the same plan and slices.
            lr: a number or (n,); None: the optimizer's.

        Returns:
            (n,) bool, the slices that moved.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
        """
        op = "update"
        if not isinstance(grads, Gradients):
            raise ValueError(f"{op}: grads must be Gradients, got {type(grads).__name__}")
        self._check_own()
        index = check_tensor(op, "index", grads.index, shape=(None,), dtype=INT64, device=CPU)
        index = index.clone(memory_format=torch.contiguous_format)  # may be a view of anything
        n, positions = len(index), index.tolist()
        if len(set(positions)) != n or not all(0 <= i < len(self) for i in positions):
            raise ValueError(
                f"{op}: grads must be of this object's {len(self)} slices, each once, "
                f"got {positions}"
            )
        shapes = self.plan.parameters()
        if not isinstance(grads.by_name, Mapping) or grads.by_name.keys() != shapes.keys():
            raise ValueError(f"{op}: grads must have {list(shapes)}, got {list(grads.by_name)}")
        for name, shape in shapes.items():
            check_tensor(op, name, grads.by_name[name], shape=(n, *shape), device=self.device)
        check_tensor(op, "applied", grads.applied, shape=(n,), dtype=BOOL, device=self.device)
        statistics = self.plan.statistics()
        if not isinstance(grads.stats, Mapping) or not grads.stats.keys() <= statistics.keys():
            raise ValueError(f"{op}: stats must be among {list(statistics)}, got {grads.stats}")
        for name in grads.stats:
            shape = statistics[name]
            check_tensor(op, name, grads.stats[name], shape=(n, *shape), device=self.device)
        rule = self._step_lr(op, lr, index)
        slices = self._slices(index)
        state = self._state(slices)
        by_name = {name: apart(grads.by_name[name], state) for name in shapes}
        apply = grads.applied.clone()
        for value in (*by_name.values(), *grads.stats.values()):
            apply &= value.flatten(1).isfinite().all(1)
        self._run("update", UpdateCall(slices, by_name, apply, rule), state)
        at = index.to(self.device)
        self.draws[at] += 1
        for name, batch in grads.stats.items():
            norm = self.plan.layers[name.partition(".")[0]].norm
            momentum = norm.momentum if norm is not None else 0.0
            running = slices.stats[name]
            moved = (1 - momentum) * running[at] + momentum * batch
            running[at] = torch.where(apply[:, None], moved, running[at])
        return apply

    # arguments

    def _index(self, op: str, blocks: Blocks) -> Tensor:
        """(n,) positions of the slices of `blocks`, replica-major; the state is looked at too."""
        self._check_own()
        if blocks is None:
            return positions(self.held, self.held, self.replicas)
        ts = check_blocks(op, "blocks", blocks, self.T)
        if missing := [t for t in ts if t not in self.held]:
            raise ValueError(f"{op}: blocks must be among {list(self.held)}, held, got {missing}")
        return positions(tuple(ts), self.held, self.replicas)

    def _noise_block(self, index: Tensor, K: int) -> Tensor:
        """Philox' block t - 1 of the slices, (K, n)."""
        block, key = self._buffers["_block"], ("block", *index.tolist(), K)
        before = self._memo.get(key)
        if before is None or before[0] is not block:
            before = block, block[self._at(index)].expand(K, len(index))
            self._memo.keep(key, before)
        return before[1]

    def _batch(
        self, op: str, x: Inputs, y: Tensor, n: int, *, training: bool = True
    ) -> tuple[dict[str, Tensor], int]:
        """A training batch, checked: inputs (n, B, F) by name, and B."""
        inputs = check_inputs(op, x, self.plan, n, self.device)
        B = next(iter(inputs.values())).shape[1]
        check_labels(op, y, B, self.M, self.device)
        if training or B < 1:
            self._check_training(op, "y", B)
        return {name: value.detach() for name, value in inputs.items()}, B

    def _check_draws_z(self, op: str) -> None:
        if (width := self.plan.widths["z"]) != self.D:
            raise ValueError(
                f'{op}: plan must have a "z" of the width D = {self.D} of an embedding where z is '
                f"drawn, got {width}; train_step takes features of it as z="
            )


def apart(value: Tensor, state: Sequence[Tensor]) -> Tensor:
    """Contiguous, and copied where it lies in memory that the update writes."""
    written = {tensor.untyped_storage().data_ptr() for tensor in state}
    value = value.detach().contiguous()
    return value.clone() if value.untyped_storage().data_ptr() in written else value


def refuse_graph(op: str, *given: Any) -> None:
    """Nothing goes back to what made an input, which would be left untrained without a word."""
    for value in given:
        for tensor in value.values() if isinstance(value, Mapping) else (value,):
            if getattr(tensor, "requires_grad", False) and torch.is_grad_enabled():
                raise ValueError(
                    f"{op}: inputs must not require a gradient, since none goes back to them; give "
                    "x.detach(), or train_step x.detach() with input_grad=True and call "
                    "x.backward(step.d_x), or use loss()"
                )


def check_row(op: str, first_row: object, B: int) -> int:
    """The place of row 0 in a batch that noise has addresses for."""
    return check_count(op, "first_row", first_row, MOST_COUNT + 1 - B)


def positions(ts: tuple[int, ...], held: tuple[int, ...], replicas: int) -> Tensor:
    """(n,), where the blocks `ts` stand in every replica; of all calls alike, so never written."""
    make = make_positions if torch.compiler.is_compiling() else kept_positions
    return make(ts, held, replicas)


def make_positions(ts: tuple[int, ...], held: tuple[int, ...], replicas: int) -> Tensor:
    at = [r * len(held) + held.index(t) for r in range(replicas) for t in ts]
    return torch.tensor(at, dtype=torch.int64, device="cpu")


kept_positions = lru_cache(maxsize=256)(make_positions)


def check_blocks(op: str, name: str, blocks: object, T: int) -> list[int]:
    """The paper's t, one or several, each once and in 1..T."""
    given = [*blocks] if isinstance(blocks, Iterable) and not is_scalar(blocks) else [blocks]
    try:
        ts = [check_integer(op, name, t, 1, T) for t in given]
    except ValueError:
        ts = []
    if not ts or len(set(ts)) != len(ts):
        raise ValueError(f"{op}: {name} must be distinct t in 1..{T}, at least one, got {given}")
    return ts


def is_scalar(value: object) -> bool:
    """A tensor or array without dimensions, which cannot be iterated though it has the method."""
    return getattr(value, "ndim", 1) == 0
