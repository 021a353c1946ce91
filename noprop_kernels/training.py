"""Blocks that train in fused steps: one, many in one call, or its halves, gradients and update."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .arguments import seed_list, seed_tensor
from .batches import Inputs, Normalize, check_inputs, check_labels, gather_inputs, packed
from .calls import UpdateCall
from .check import check_count, check_positive, check_tensor
from .eager import eager_only
from .goal import DT
from .noise import STREAM_EPS
from .optimizers import AdamW, Optimizer
from .plan import Plan
from .results import Gradients, Step
from .state import StackedModule

Blocks = int | Sequence[int] | None
BOOL = (torch.bool,)


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
        if blocks_per_launch is not None:
            check_positive(op, "blocks_per_launch", blocks_per_launch)
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
        return f"held={self.held}, replicas={self.replicas}, optimizer={self.optimizer}"

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
        check_count(op, "first_row", first_row)
        rows = B if rows is None else check_positive(op, "rows", rows)
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
        index, n = grads.index, len(grads.index)
        if n and not (0 <= int(index.min()) and int(index.max()) < len(self)):
            raise ValueError(
                f"{op}: grads must be of this object's {len(self)} slices, got {index.tolist()}"
            )
        shapes = self.plan.parameters()
        if grads.by_name.keys() != shapes.keys():
            raise ValueError(f"{op}: grads must have {list(shapes)}, got {list(grads.by_name)}")
        for name, shape in shapes.items():
            check_tensor(op, name, grads.by_name[name], shape=(n, *shape), device=self.device)
        check_tensor(op, "applied", grads.applied, shape=(n,), dtype=BOOL, device=self.device)
        for name, shape in self.plan.statistics().items():
            if name in grads.stats:
                check_tensor(op, name, grads.stats[name], shape=(n, *shape), device=self.device)
        rule = self._step_lr(op, lr, index)
        apply = grads.applied.clone()
        for grad in grads.by_name.values():
            apply &= grad.flatten(1).isfinite().all(1)
        slices = self._slices(index)
        by_name = {name: grads.by_name[name].detach().contiguous() for name in shapes}
        self._run("update", UpdateCall(slices, by_name, apply, rule), self._state(slices))
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
        """(n,) positions of the slices of `blocks`, replica-major."""
        if blocks is None:
            return positions(self.held, self.held, self.replicas)
        ts = check_blocks(op, "blocks", [blocks] if isinstance(blocks, int) else blocks, self.T)
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


def positions(ts: tuple[int, ...], held: tuple[int, ...], replicas: int) -> Tensor:
    """(n,), where the blocks `ts` stand in every replica; of all calls alike, so never written."""
    make = make_positions if torch.compiler.is_compiling() else kept_positions
    return make(ts, held, replicas)


def make_positions(ts: tuple[int, ...], held: tuple[int, ...], replicas: int) -> Tensor:
    at = [r * len(held) + held.index(t) for r in range(replicas) for t in ts]
    return torch.tensor(at, dtype=torch.int64, device="cpu")


kept_positions = lru_cache(maxsize=256)(make_positions)


def check_blocks(op: str, name: str, blocks: Sequence[int], T: int) -> list[int]:
    """The paper's t, each once and in 1..T."""
    ts = [int(t) if isinstance(t, int) else t for t in blocks]
    if not ts or len(set(ts)) != len(ts) or not all(type(t) is int and 1 <= t <= T for t in ts):
        raise ValueError(f"{op}: {name} must be distinct t in 1..{T}, at least one, got {ts}")
    return ts
