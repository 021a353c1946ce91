"""A stack of slices as an nn.Module: what blocks and the output head share.

Parameters are named by the plan ("hx.weight", (N, out, in)); moments stand beside them
("hx.weight_m"), and each slice
has a seed and two counters: `draws` addresses noise, `updates` is Adam's step. All are ordinary
contiguous tensors, so that .to(), deepcopy, pickle, safetensors and torch.optim work as on any
module.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ..arguments.scalars import check_rates, number_tensor
from ..backends import dispatch
from ..backends.calls import (
    Embedding,
    Gather,
    Noise,
    Noising,
    Objective,
    Rule,
    Slices,
    TrainCall,
    TrainOut,
)
from ..backends.gpu import errors
from ..check import MOST_COUNT, check_tensor
from ..goal import Numbers
from ..optimizers import Optimizer
from ..philox import initial_parameters
from ..plan import Plan
from .named_tensors import all_names, place
from .strict import Memo, StrictModule


class StackedModule(StrictModule):
    """Parameters, moments and counters of N slices, and the calls that move them.

    Args:
        plan: the layers.
        seeds: (N,) int64.
        numbers: of the step, one per slice.
        embedding: (M, D) float32, or None for one-hot.
        precision, backend: as DenoisingBlocks.
        stream: of the noise in training.
        M: classes.
    """

    seeds: Tensor
    draws: Tensor
    updates: Tensor
    W_embed: Tensor | None
    blocks_per_launch: int | None = None
    _numbers: Tensor

    def __init__(
        self,
        plan: Plan,
        *,
        seeds: Tensor,
        numbers: Numbers,
        embedding: Tensor | None,
        optimizer: Optimizer | None,
        precision: str,
        backend: str | None,
        stream: int,
        M: int,
    ) -> None:
        super().__init__()
        op, N = type(self).__name__, len(seeds)
        self._N = N
        if embedding is not None:
            # an object is made on the CPU and moved as a whole
            check_tensor(op, "embedding", embedding, shape=(M, None), device=seeds.device)
            embedding = embedding.detach().clone(memory_format=torch.contiguous_format)
        self.plan = plan
        self.optimizer = optimizer
        self.precision = precision
        self.backend = backend
        self.M = M
        self.D = M if embedding is None else embedding.shape[1]
        self._stream = stream
        self._head, self._flow, self._sigma = numbers.head, numbers.flow, numbers.sigma
        self.register_buffer("W_embed", embedding)
        self.register_buffer("seeds", seeds)
        self.register_buffer("draws", torch.zeros_like(seeds))
        self.register_buffer("updates", torch.zeros_like(seeds))
        stacked = torch.stack([numbers.signal, numbers.noise, numbers.weight])
        self.register_buffer("_numbers", stacked, persistent=False)
        self._shapes = {name: (N,) for name in ("seeds", "draws", "updates")}
        self._shapes |= {"_numbers": (3, N)}
        if embedding is not None:
            self._shapes["W_embed"] = (M, self.D)

    def _initialise(self, block: Tensor) -> None:
        """Draws the parameters, under block (N,), and makes their moments and statistics.

        Last in a constructor: a layer may have no name that the object has for something else.
        """
        self._params = tuple(self.plan.parameters())
        self._stats = tuple(self.plan.statistics())
        self._own = tuple(self._shapes)  # not of the plan
        self._moments = self.optimizer.moments if self.optimizer is not None else ()
        shapes = {**self.plan.parameters(), **self.plan.statistics()}
        self._shapes |= {
            name + suffix: (len(self), *shape)
            for name, shape in shapes.items()
            for suffix in ("", "_m", "_v")
        }
        with torch.no_grad():
            params = initial_parameters(self.plan, self.seeds, block)
        for name, value in params.items():
            place(self, name, nn.Parameter(value))
            for moment in self._moments:
                place(self, f"{name}_{moment}", torch.zeros_like(value))
        for name, shape in self.plan.statistics().items():
            start = self._empty(len(self), *shape)
            place(self, name, start.fill_(name.endswith("running_var")))
        self._memo = Memo()  # from here on what is fixed stays

    def extra_repr(self) -> str:
        total = sum(value.numel() for value in self.parameters())
        plan = ", ".join(
            f"{name}: {' + '.join(layer.sources)} -> {layer.features}"
            for name, layer in self.plan.layers.items()
        )
        return (
            f"M={self.M}, D={self.D}, {total:,} parameters, precision={self.precision!r}, "
            f"optimizer={self.optimizer}\n{plan}"
        )

    def __repr__(self) -> str:
        """Without the modules that stand for dotted names, which compute nothing."""
        lines = self.extra_repr().replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {lines}\n)"

    def advance(self) -> None:
        """Moves every slice's `draws` by one, so that the next `loss` draws new noise."""
        self._check_own()
        self.draws += 1

    def check(self) -> None:
        """Waits for the GPU and raises what it flagged in this object's calls so far.

        A GPU looks at contents where a call may not wait: labels and indices out of range, inputs
        that are not finite. A training step that meets one is skipped, and the error comes with a
        later call, or here. On the CPU contents are checked before anything is written, and this
        does nothing.

        Raises:
            ValueError: contents of an earlier call did not fit; the text has the op and what it
                met. It is raised once.
            RuntimeError: a CUDA graph is being captured.
        """
        self._check_own(0)
        errors.check(self.device, self.updates)

    # every call of a backend

    def _slices(self, index: Tensor) -> Slices:
        moments, params, stats = self._moments, self._params, self._stats
        tensors = iter(self._tensors(all_names(params, moments, stats)))
        buffers = self._buffers
        return Slices(
            plan=self.plan,
            params=dict(zip(params, tensors, strict=False)),
            m=dict(zip(params, tensors, strict=False)) if "m" in moments else {},
            v=dict(zip(params, tensors, strict=False)) if "v" in moments else {},
            stats=dict(zip(stats, tensors, strict=True)),
            seeds=buffers["seeds"],
            draws=buffers["draws"],
            updates=buffers["updates"],
            index=index,
            precision=self.precision,
        )

    def _run(self, name: str, call: Any, written: Sequence[Tensor] = ()) -> None:
        """Runs one of BACKEND_FUNCTIONS; autograd learns what it wrote, even if stopped."""
        backend = dispatch.choose(self.plan, self.device, self.precision, self.backend)
        with torch.no_grad():
            try:
                getattr(backend, name)(call)
            except (ValueError, MemoryError):  # raised before anything is written
                written = ()
                raise
            finally:
                increment_version(written)

    @staticmethod
    def _state(slices: Slices) -> list[Tensor]:
        groups = (slices.params, slices.m, slices.v, slices.stats)
        return [*chain.from_iterable(group.values() for group in groups), slices.updates]

    def _at(self, index: Tensor) -> slice | Tensor:
        """`index` where the numbers are; of neighbours a slice, so that nothing is copied."""
        positions = index.tolist()
        if positions == list(range(positions[0], positions[-1] + 1)):
            return slice(positions[0], positions[-1] + 1)
        return index.to(self.device, non_blocking=True)

    def _embedding(self) -> Embedding:
        return Embedding(self._buffers["W_embed"], self.D)

    def _levels(
        self, index: Tensor, K: int, B: int, rows: int | None = None
    ) -> tuple[Noising, Objective]:
        """The numbers of K steps, expanded; `rows` of the whole batch are by default B."""
        key = ("levels", *index.tolist(), K, B, rows)
        numbers = self._buffers["_numbers"]
        before = self._memo.get(key)
        if before is not None and before[0] is numbers:
            return before[1]
        at = numbers[:, None, self._at(index), None].expand(3, K, len(index), B)
        noising = Noising(at[0], at[1], self._sigma)
        objective = Objective(at[2], self._flow, self._head, B if rows is None else rows)
        self._memo.keep(key, (numbers, (noising, objective)))
        return noising, objective

    def _noise_at(
        self, index: Tensor, block: Tensor, draw: Tensor | None = None, first_row: int = 0
    ) -> Noise:
        """The address of K steps' noise; draw (K, n) is by default the slices' own."""
        K, at, buffers = len(block), self._at(index), self._buffers
        if draw is None:
            own: Tensor = buffers["draws"][None, at].clone()  # the call moves the original
            steps = torch.arange(K, dtype=torch.int64, device=self.device)
            draw = own + steps[:, None]
        return Noise(buffers["seeds"][at], draw, block, self._stream, first_row)

    # training

    def _check_training(self, op: str, argument: str, B: int) -> None:
        if B > MOST_COUNT + 1:
            raise ValueError(f"{op}: {argument} must have at most 2^32 rows, got {B}")
        least = 2 if self.plan.has_norm() else 1
        if B < least:
            norm = " with batch norm" if least == 2 else ""
            raise ValueError(
                f"{op}: {argument} must have at least {least} rows in training{norm}, got {B}"
            )

    def _rule(self, op: str, lr: object, K: int, index: Tensor) -> Rule:
        """The rule of K steps, whose lr is None, a number, (K,) or (K, n)."""
        if self.optimizer is None:
            raise ValueError(
                f"{op}: optimizer must not be None here; give one to {type(self).__name__}, or use "
                "loss(), a torch.optim optimizer and advance()"
            )
        if not self.training:
            raise ValueError(f"{op}: mode must be that of train(), got that of eval()")
        params = self._find(self._params)
        if not all(value.requires_grad and value.is_leaf for value in params):
            named = zip(self._params, params, strict=True)
            frozen = [name for name, value in named if not (value.requires_grad and value.is_leaf)]
            raise ValueError(
                f"{op}: parameters must all be leaves that require a gradient, got {frozen}; part "
                "of them is trained by loss(), torch.optim and advance()"
            )
        n = index.shape[0]
        lr = self.optimizer.lr if lr is None else lr
        number, device = isinstance(lr, float | int), self.device
        key = ("rule", *index.tolist(), K, device, lr)
        before = self._memo.get(key) if number else None
        if before is not None and before[0] is self.optimizer:
            return before[1]
        decay = number_tensor(op, "weight_decay", self.optimizer.weight_decay)
        rule = Rule(
            self.optimizer,
            check_rates(op, lr, K, n).to(device, non_blocking=True),
            decay.expand(len(self))[index].to(device, non_blocking=True),
        )
        if number:
            self._memo.keep(key, (self.optimizer, rule))
        return rule

    def _step_lr(self, op: str, lr: object, index: Tensor) -> Rule:
        """The rule of one step, whose lr is a number or (n,)."""
        if lr is not None and not isinstance(lr, float | int):
            lr = number_tensor(op, "lr", lr)
            lr = lr if lr.ndim == 0 else lr[None]
        return self._rule(op, lr, 1, index)

    def _train(
        self,
        *,
        index: Tensor,
        block: Tensor,
        inputs: Mapping[str, Tensor | Gather],
        y: Tensor | Gather,
        B: int,
        rule: Rule | None,
        out: TrainOut,
        z: Tensor | None = None,
        draw: Tensor | None = None,
        first_row: int = 0,
        rows: int | None = None,
    ) -> None:
        """K steps of the selected slices, K = len(block): an update each, or `out.grads` once."""
        K = len(block)
        if K > 1:
            self._check_own(K)
        slices = self._slices(index)
        noising, objective = self._levels(index, K, B, rows)
        call = TrainCall(
            slices=slices,
            noise=self._noise_at(index, block, draw, first_row),
            noising=noising,
            objective=objective,
            embedding=self._embedding(),
            inputs=dict(inputs),
            z=z,
            y=y,
            rule=rule,
            B=B,
            K=K,
            out=out,
            blocks_per_launch=self.blocks_per_launch,
        )
        self._run("train", call, () if rule is None else [*self._state(slices), slices.draws])

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _named(self, d_inputs: dict[str, Tensor]) -> Tensor | dict[str, Tensor] | None:
        """d_x: a tensor where the plan has one input beside "z"."""
        if len(self.plan.inputs) == 2 and d_inputs:
            return next(iter(d_inputs.values()))
        return d_inputs or None

    def _new_out(self, K: int, n: int) -> TrainOut:
        return TrainOut(
            loss=self._empty(K, n),
            applied=self._empty(K, n, dtype=torch.bool),
        )

    def _train_steps(
        self,
        op: str,
        index: Tensor,
        block: Tensor,
        inputs: Mapping[str, Tensor | Gather],
        y: Tensor | Gather,
        B: int,
        lr: object,
    ) -> Tensor:
        """Losses (K, n) of K steps in one call."""
        K = len(block)
        rule = self._rule(op, lr, K, index)
        out = self._new_out(K, len(index))
        if K > 0:
            self._check_training(op, "indices", B)
            self._train(index=index, block=block, inputs=inputs, y=y, B=B, rule=rule, out=out)
        return out.loss
