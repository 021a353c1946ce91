"""A stack of slices as an nn.Module: what blocks and the output head share.

Parameters are named by the plan ("hx.weight", (N, out, in)); moments stand beside them
("hx.weight_m"), and each slice
has a seed and two counters: `draws` addresses noise, `updates` is Adam's step. All are ordinary
contiguous tensors, so that .to(), deepcopy, pickle, safetensors and torch.optim work as on any
module.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from . import dispatch
from .arguments import check_rates, number_tensor
from .calls import Gather, Mix, Noise, Rule, Slices, TrainCall, TrainOut
from .check import check_tensor, shape_text
from .goal import Numbers
from .gpu import errors
from .noise import initial_parameters
from .optimizers import Optimizer
from .plan import Plan
from .tree import all_names, find, place

FACTS = (Tensor.is_contiguous, *map(attrgetter, ("dtype", "shape", "device")))


class Memo(dict):
    """What calls keep for later ones, beside what it was made of, which they compare with what is
    there now. An object's copies and files start without it.
    """

    def keep(self, key: tuple, value: Any) -> None:
        if len(self) >= 64:
            self.clear()
        self[key] = value

    def __reduce__(self) -> tuple[type, tuple]:
        return Memo, ()


class StackedModule(nn.Module):
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
    _buffers: dict[str, Any]  # read where nn.Module's search for an attribute would cost

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
        if embedding is not None:
            # an object is made on the CPU and moved as a whole
            check_tensor(op, "embedding", embedding, shape=(M, None), device=seeds.device)
            embedding = embedding.detach().clone(memory_format=torch.contiguous_format)
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"{op}: optimizer must be SGD, Adam or AdamW of noprop_kernels or None, "
                f"got {type(optimizer).__name__}"
            )
        if optimizer is not None and isinstance(decays := optimizer.weight_decay, tuple):
            if len(decays) != N:
                raise ValueError(
                    f"{op}: optimizer must have one weight_decay or {N}, got {len(decays)}"
                )
        dispatch.check_options(op, precision, backend)
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

    def _initialise(self, block: Tensor) -> None:
        """Draws the parameters, under block (N,), and makes their moments and statistics.

        Last in a constructor: a layer may have no name that the object has for something else.
        """
        self._params = tuple(self.plan.parameters())
        self._stats = tuple(self.plan.statistics())
        self._memo = Memo()
        shapes = {**self.plan.parameters(), **self.plan.statistics()}
        self._shapes = {
            name + suffix: (len(self), *shape)
            for name, shape in shapes.items()
            for suffix in ("", "_m", "_v")
        }
        moments = self.optimizer.moments if self.optimizer is not None else ()
        with torch.no_grad():
            params = initial_parameters(self.plan, self.seeds, block)
        for name, value in params.items():
            place(self, name, nn.Parameter(value))
            for moment in moments:
                place(self, f"{name}_{moment}", torch.zeros_like(value))
        for name, shape in self.plan.statistics().items():
            start = self._empty(len(self), *shape)
            place(self, name, start.fill_(name.endswith("running_var")))

    @property
    def device(self) -> torch.device:
        return self._buffers["draws"].device

    def __len__(self) -> int:
        """N, the slices held."""
        return self._buffers["draws"].shape[0]

    def advance(self) -> None:
        """Moves every slice's `draws` by one, so that the next `loss` draws new noise."""
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
        errors.check(self.device, self.updates)

    # every call of a backend

    def _tensors(self, names: tuple[str, ...]) -> list[Tensor]:
        """The state's tensors as they are now, fit to be addressed by a kernel."""
        tensors, device = find(self, names), self.device
        facts = [[*map(fact, tensors)] for fact in FACTS]
        if facts == self._memo.get((names, device)):
            return tensors
        for name, value, *got in zip(names, tensors, *facts, strict=True):
            shape = self._shapes[name]
            if got != [True, torch.float32, shape, device]:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a contiguous torch.float32 tensor of "
                    f"shape {shape_text(shape)} on {device}, got {shape_text(value.shape)} "
                    f"{value.dtype} with strides {value.stride()} on {value.device}"
                )
        self._memo.keep((names, device), facts)  # those of any tensors that fit
        return tensors

    def _slices(self, index: Tensor) -> Slices:
        moments = self.optimizer.moments if self.optimizer is not None else ()
        params, stats = self._params, self._stats
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

    def _mix(self, index: Tensor, K: int, B: int, rows: int | None = None) -> Mix:
        key = ("mix", *index.tolist(), K, B, rows)
        numbers, W_embed = self._buffers["_numbers"], self._buffers["W_embed"]
        before = self._memo.get(key)
        if before is not None and before[0] is numbers and before[1].W_embed is W_embed:
            return before[1]
        at = numbers[:, None, self._at(index), None].expand(3, K, len(index), B)
        mix = Mix(
            signal=at[0],
            noise=at[1],
            weight=at[2],
            flow=self._flow,
            sigma=self._sigma,
            head=self._head,
            W_embed=W_embed,
            D=self.D,
            rows=B if rows is None else rows,
        )
        self._memo.keep(key, (numbers, mix))
        return mix

    def _noise_at(
        self, index: Tensor, block: Tensor, draw: Tensor | None = None, first_row: int = 0
    ) -> Noise:
        """The address of K steps' noise; draw (K, n) is by default the slices' own."""
        K, at, buffers = len(block), self._at(index), self._buffers
        if draw is None:
            own: Tensor = buffers["draws"][None, at].clone()  # the call moves the original
            draw = (
                own
                if K == 1
                else own + torch.arange(K, dtype=torch.int64, device=self.device)[:, None]
            )
        return Noise(buffers["seeds"][at], draw, block, self._stream, first_row)

    # training

    def _check_training(self, op: str, argument: str, B: int) -> None:
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
        slices = self._slices(index)
        call = TrainCall(
            slices=slices,
            noise=self._noise_at(index, block, draw, first_row),
            mix=self._mix(index, K, B, rows),
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

    # what must stay true of the state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if (dtype := fn(self.draws.new_empty(0, dtype=torch.float32)).dtype) != torch.float32:
            raise ValueError(
                f"{type(self).__name__}: parameters must stay torch.float32, got {dtype}"
            )
        return super()._apply(fn, recurse)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's, but a state of other slices or shapes is refused before anything is written.

        Raises:
            ValueError: keys (with strict), shapes, dtypes, seeds or t are not this object's.
        """
        if strict and (own := self.state_dict()).keys() != state_dict.keys():
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: state_dict must have the keys of this "
                f"object, got without {sorted(own.keys() - state_dict.keys())}, "
                f"with {sorted(state_dict.keys() - own.keys())}"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        op = f"{type(self).__name__}.load_state_dict"
        # assigned, they would leave the object on two devices
        device = self.device if local_metadata.get("assign_to_params_buffers") else None
        for name, own in self.state_dict().items():
            given = state_dict.get(prefix + name)
            if given is None:
                continue  # torch tells, unless strict is false
            check_tensor(op, name, given, shape=own.shape, dtype=(own.dtype,), device=device)
            if name in ("seeds", "t") and not torch.equal(own, given.to(own.device)):
                raise ValueError(
                    f"{op}: {name} must be {own.tolist()}, got {given.tolist()}; make the object "
                    "with those of the state_dict"
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
