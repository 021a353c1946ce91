"""A stack of slices as an nn.Module, shared by blocks and output head.

Parameters are named by the plan ("hx.weight", (N, out, in)); moments stand beside them
("hx.weight_m"), and each slice has a seed and two counters: `draws` addresses noise, `updates` is
Adam's step. All are ordinary contiguous tensors, so that .to(), deepcopy, pickle, safetensors and
torch.optim work as on any module.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..backends.gpu import errors
from ..check import check_tensor
from ..goal import Goal, StepGoal
from ..optimizers import Optimizer
from ..philox import initial_parameters
from ..plan import Plan
from .layout import make_layout
from .named_tensors import place
from .state import check_state
from .strict import StrictModule


class Stack(StrictModule):
    """Parameters, moments and counters of N slices.

    Args:
        plan: the layers.
        goal: the variant.
        seeds: (R,) int64, one per replica.
        held: the paper's t of each replica's slices, ascending.
        buffers: more of them by name, (N,) int64.
        initial_block: (N,) int64, Philox' block under which the parameters are drawn.
        trains: the goal that gives the levels of a step.
        embedding: (M, D) float32, or None for one-hot.
        shared: the nk.Shared, checked, that has the embeddings instead, and is no submodule: its
            tensors are not in this state_dict.
        precision, backend: as DenoisingBlocks.
        stream: of the noise in training.
        M: classes.
    """

    seeds: Tensor
    draws: Tensor
    updates: Tensor
    W_embed: Tensor | None
    blocks_per_launch: int | None = None

    def __init__(
        self,
        plan: Plan,
        goal: Goal,
        *,
        seeds: Tensor,
        held: tuple[int, ...],
        buffers: dict[str, Tensor],
        initial_block: Tensor,
        trains: StepGoal,
        embedding: Tensor | None,
        optimizer: Optimizer | None,
        precision: str,
        backend: str | None,
        stream: int,
        M: int,
        shared: Any = None,
    ) -> None:
        super().__init__()
        op, R = type(self).__name__, len(seeds)
        seeds = seeds.repeat_interleave(len(held))
        N = len(seeds)
        if embedding is not None:
            # an object is built on the CPU and moved as a whole
            check_tensor(op, "embedding", embedding, shape=(M, None), device=seeds.device)
            embedding = embedding.detach().clone(memory_format=torch.contiguous_format)
        self.plan = plan
        self.goal = goal
        self.M = M
        W_embed = embedding if shared is None else shared.W_embed
        self.D = M if W_embed is None else W_embed.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            name: (N,) for name in ("seeds", "draws", "updates", *buffers)
        }
        if embedding is not None:
            shapes["W_embed"] = (M, self.D)
        self.layout = make_layout(
            plan,
            trains,
            held=held,
            replicas=R,
            stream=stream,
            moments=optimizer.moments if isinstance(optimizer, Optimizer) else (),
            buffers=shapes,
        )
        self.optimizer = optimizer
        self.precision = precision
        self.backend = backend
        if shared is None:
            self.register_buffer("W_embed", embedding)
        else:
            self.__dict__["shared"] = shared  # which nn.Module would register
        self.register_buffer("seeds", seeds)
        self.register_buffer("draws", torch.zeros_like(seeds))
        self.register_buffer("updates", torch.zeros_like(seeds))
        for name, value in buffers.items():
            self.register_buffer(name, value)
        with torch.no_grad():
            params = initial_parameters(plan, seeds, initial_block)
        for name, value in params.items():
            place(self, name, nn.Parameter(value))
            for moment in self.layout.moments:
                place(self, f"{name}_{moment}", torch.zeros_like(value))
        for name, shape in plan.statistics().items():
            start = torch.empty(N, *shape, dtype=torch.float32, device=seeds.device)
            place(self, name, start.fill_(name.endswith("running_var")))

    def extra_repr(self) -> str:
        total = sum(value.numel() for value in self.parameters())
        plan = ", ".join(
            f"{name}: {' + '.join(layer.sources)} -> {self.plan.widths[name]}"
            for name, layer in self.plan.layers.items()
        )
        return (
            f"M={self.M}, D={self.D}, {total:,} parameters, precision={self.precision!r}, "
            f"optimizer={self.optimizer}\n{plan}"
        )

    def __repr__(self) -> str:
        """The repr without the modules of dotted names, which compute nothing."""
        lines = self.extra_repr().replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {lines}\n)"

    def advance(self) -> None:
        """Advances every slice's `draws` by one, so that the next `loss` draws new noise."""
        check_state(self)
        self.draws += 1

    def check(self) -> None:
        """Synchronises with the GPU, and raises the errors that it flagged in this object's calls
        so far.

        A GPU validates contents asynchronously: labels and indices in range, finite inputs. A
        training step with invalid contents is skipped, and the error is raised by a later call, or
        here. On the CPU contents are checked before anything is written, and this does nothing.

        Raises:
            ValueError: contents of an earlier call did not fit; the text names the op and the
                cause. It is raised once.
            RuntimeError: a CUDA graph is being captured.
        """
        check_state(self, 0)
        errors.check(self.device, self.updates)
