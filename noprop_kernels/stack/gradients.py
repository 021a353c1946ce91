"""The two halves of a step: its gradients, and the update from them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..arguments.batches import INT64, Inputs, refuse_graph
from ..arguments.row_weights import check_row_weight
from ..arguments.scalars import check_row, check_whole
from ..arguments.times import Blocks
from ..backends.calls import UpdateCall
from ..backends.contents import finite_rows
from ..check import check_count, check_tensor
from ..compiler.eager import eager_only
from ..results import Gradients
from . import engine, known
from .call_arguments import check_batch, check_draws_z, index_of
from .module import Stack
from .state import check_state, slices_of, updated

BOOL = (torch.bool,)
CPU = torch.device("cpu")


class GradientStack(Stack):
    """The two halves of a step as calls of their own."""

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
        row_weight: Tensor | None = None,
    ) -> Gradients:
        """Gradients of one step's loss, or of a part of its batch; no state and no counter changes.

        Args:
            x, y, blocks: as in `train_step`.
            step: the draw of the noise; None: each slice's own `draws`.
            first_row: position of row 0 in the whole batch.
            rows: rows of the whole batch, by which the loss is divided; None: B.
            row_weight: (B,) float32, as of `train_step`.

        Returns:
            Gradients, which add over the parts of a batch; give them to `update`.

        Raises:
            ValueError: an argument does not fit.
            BackendError: no backend can run it.
        """
        op = "gradients"
        index = index_of(self, op, blocks)
        check_draws_z(self, op)
        inputs, B = check_batch(self, op, x, y, len(index))
        row_weight = check_row_weight(op, row_weight, (B,), self.device)
        refuse_graph(op, x)
        first_row = check_row(op, first_row, B)
        rows = check_whole(op, rows) or B
        draw = None
        if step is not None:
            draw = self.draws.new_full((1, len(index)), check_count(op, "step", step))
        n, block = len(index), engine.blocks_of(self, index, 1)
        out = engine.new_out(self, 1, n)
        out.error = engine.empty(self, n, B)
        out.grads = {name: engine.empty(self, n, *s) for name, s in self.plan.parameters().items()}
        out.stats = {name: engine.empty(self, n, *s) for name, s in self.plan.statistics().items()}
        address: dict[str, Any] = {"draw": draw, "first_row": first_row, "rows": rows}
        engine.step(self, op, index, block, inputs, y, B, out, row_weight, rule=None, **address)
        return Gradients(
            out.grads, out.loss[0], out.error, out.applied[0], index.clone(), rows, out.stats
        )

    @eager_only
    def update(self, grads: Gradients, *, lr: float | Tensor | None = None) -> Tensor:
        """The second half of `train_step`: updates the slices of `grads`; `draws` advance by one.

        A slice whose loss or gradient is not finite keeps its state, except `draws`.

        Args:
            grads: of this object, or of one of the same plan and slices.
            lr: a number or (n,); None: the optimizer's.

        Returns:
            (n,) bool, the slices that were updated.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
        """
        op, key = "update", known.update_key(self, grads, lr)
        if key is not None and (done := known.update(self, key, grads)) is not None:
            return done
        if not isinstance(grads, Gradients):
            raise ValueError(f"{op}: grads must be Gradients, got {type(grads).__name__}")
        check_state(self)
        index = check_tensor(op, "index", grads.index, shape=(None,), dtype=INT64, device=CPU)
        index = index.clone(memory_format=torch.contiguous_format)  # it may be a view
        n, positions = len(index), index.tolist()
        if len(set(positions)) != n or not all(0 <= i < len(self) for i in positions):
            raise ValueError(
                f"{op}: grads must be of this object's {len(self)} slices, each once, got "
                f"{positions}"
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
        rule = engine.step_rule(self, op, lr, index)
        slices = slices_of(self, index)
        state = updated(slices)
        written = {tensor.untyped_storage().data_ptr() for tensor in state}
        by_name = {name: apart(grads.by_name[name], written) for name in shapes}
        apply = grads.applied.clone()
        for value in grads.stats.values():
            apply &= finite_rows(value.flatten(1))
        applied = torch.empty_like(apply)
        call = UpdateCall(slices, by_name, apply, rule, applied)
        engine.run(self, "update", call, state)
        if key is not None:
            known.keep(self, key, call, ("grads", "apply", "applied"))
        at = index.to(self.device)
        self.draws[at] += 1
        for name, batch in grads.stats.items():
            momentum = self.plan.momentum(name)
            running = slices.stats[name]
            moved = (1 - momentum) * running[at] + momentum * batch
            running[at] = torch.where(applied[:, None], moved, running[at])
        return applied


def apart(value: Tensor, written: set[int]) -> Tensor:
    """Contiguous, and copied where it shares memory that the update writes."""
    value = value.detach().contiguous()
    return value.clone() if value.untyped_storage().data_ptr() in written else value
