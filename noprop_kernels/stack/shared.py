"""What all blocks and the output head share and learn: W_embed, and the parameters of gamma."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..arguments.batches import check_labels
from ..arguments.scalars import seed_list, seed_tensor
from ..backends.calls import Rule
from ..backends.reference.equations import optimizer_step
from ..backends.shared_calls import SharedUpdateCall
from ..check import check_positive, check_tensor
from ..continuous import CT
from ..gamma_network import NAMES, GammaNetwork, LearnedGamma
from ..goal import Goal, LastLevel, StepGoal, check_goal
from ..learned_embedding import LearnedEmbedding
from ..optimizers import AdamW, Optimizer
from ..philox import STREAM_INITIALISATION
from . import engine
from .layout import Layout
from .named_tensors import all_names, place
from .state import check_state, checked_tensors
from .strict import StrictModule

BOOL = (torch.bool,)
GAMMA = "gamma."  # begins the names of gamma's parameters
GAMMA_PARAMETERS = tuple(GAMMA + name for name in NAMES)


class Shared(StrictModule):
    """The label embeddings and the schedule of a goal, with their optimizer, for R replicas.

    DenoisingBlocks and OutputHead that get it as `shared=` read the embeddings and gamma from it at
    every call; their own steps leave it alone. nk.Coupled trains all of them. A learned W_embed is
    a parameter (R, M, D); those of gamma are "gamma.w1", "gamma.b1" and "gamma.w2" (R, hidden),
    "gamma.gamma_0" and "gamma.delta" (R,). Moments stand beside them ("W_embed_m").

    Args:
        goal: a DT, CT or FM; a CT whose schedule is a GammaNetwork makes gamma learned.
        embedding: None: one-hot; (M, D) float32: fixed; a LearnedEmbedding: learned.
        optimizer: of noprop_kernels.optimizers; None makes a plain module.
        seed: of the first values; a list makes one replica for each.

    Raises:
        ValueError: an argument does not fit.
    """

    W_embed: Tensor | None
    seeds: Tensor
    updates: Tensor

    def __init__(
        self,
        goal: Goal,
        embedding: Tensor | LearnedEmbedding | None = None,
        *,
        optimizer: Optimizer | None = AdamW(lr=1e-3, weight_decay=1e-3),  # noqa: B008  # frozen
        seed: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check_goal(op, goal)
        seeds = seed_tensor(seed_list(op, seed))
        learned: dict[str, Tensor] = {}
        fixed = None
        if isinstance(embedding, LearnedEmbedding):
            learned["W_embed"] = embedding.initial(seeds)
        elif embedding is not None:
            given = check_tensor(
                op, "embedding", embedding, shape=(None, None), device=seeds.device
            )
            fixed = given.detach().clone(memory_format=torch.contiguous_format)
        if isinstance(goal, CT) and isinstance(goal.schedule, GammaNetwork):
            start = goal.schedule.initial_parameters(seeds)
            learned |= {GAMMA + name: value for name, value in start.items()}
        buffers: dict[str, tuple[int, ...]] = {}
        buffers |= dict.fromkeys(("seeds", "draws", "updates"), (len(seeds),))
        if fixed is not None:
            buffers["W_embed"] = tuple(fixed.shape)
        shapes = {name: tuple(value.shape) for name, value in learned.items()}
        moments = {f"{name}_{moment}": shapes[name] for name in shapes for moment in ("m", "v")}
        self.goal = goal
        self.replicas = len(seeds)
        self.detach_target = isinstance(embedding, LearnedEmbedding) and embedding.detach_target
        self.layout = Layout(
            goal=goal,
            given=(),
            held=(1,),
            replicas=len(seeds),
            stream=STREAM_INITIALISATION,
            params=tuple(learned),
            stats=(),
            moments=optimizer.moments if isinstance(optimizer, Optimizer) else (),
            buffers=tuple(buffers),
            shapes=buffers | shapes | moments,
        )
        self.optimizer = optimizer
        if "W_embed" not in learned:
            self.register_buffer("W_embed", fixed)
        self.register_buffer("seeds", seeds)
        self.register_buffer("draws", torch.zeros_like(seeds))
        self.register_buffer("updates", torch.zeros_like(seeds))
        for name, value in learned.items():
            place(self, name, nn.Parameter(value))
            for moment in self.layout.moments:
                place(self, f"{name}_{moment}", torch.zeros_like(value))

    @property
    def learns_embedding(self) -> bool:
        return "W_embed" in self.layout.params

    @property
    def learns_schedule(self) -> bool:
        return GAMMA + "delta" in self.layout.params

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.layout.params)

    def extra_repr(self) -> str:
        shape = "one-hot" if self.W_embed is None else tuple(self.W_embed.shape)
        return (
            f"{self.goal}, W_embed={shape}, learned={[*self.layout.params]}, "
            f"optimizer={self.optimizer}"
        )

    # what the others read

    def present_goal(self, *, replica: int | None = None, grad: bool = False) -> Goal:
        """The goal, whose schedule has gamma's present values.

        Args:
            replica: the one whose gamma; None: of all R, for levels (K, R, B).
            grad: whether the levels are differentiable in gamma's parameters.
        """
        return cast(Goal, self.present(self.goal, replica=replica, grad=grad))

    def present(
        self, goal: StepGoal, *, replica: int | None = None, grad: bool = False
    ) -> StepGoal:
        """`goal`, the shared one or an output head's of it, with gamma's present values."""
        if not self.learns_schedule:
            return goal
        if isinstance(goal, LastLevel):
            of = cast(Goal, self.present(goal.of, replica=replica, grad=grad))
            return replace(goal, of=of)
        params = {}
        for name, value in self.gamma_parameters().items():
            value = value if grad else value.detach()
            params[name] = value if replica is None else value[replica : replica + 1]
        return replace(cast(CT, goal), schedule=LearnedGamma(params))

    def gamma_parameters(self) -> dict[str, Tensor]:
        """Those of a learned gamma by gamma_network.NAMES, (R, hidden) or (R,)."""
        tensors = checked_tensors(self, GAMMA_PARAMETERS)
        return dict(zip(NAMES, tensors, strict=True))

    def table(self, device: torch.device) -> Tensor | None:
        """W_embed (M, D) of the only replica, for a call of a backend; None: one-hot."""
        if "W_embed" not in self.layout.shapes:
            return None
        (W_embed,) = checked_tensors(self, ("W_embed",), device)
        return W_embed.detach()[0] if self.learns_embedding else W_embed

    def prior(self, y: Tensor, M: int | None = None) -> Tensor:
        """KL(q(z_0 | y) || N(0, I)) = 1/2 (ab_0 |u_y|^2 - D ab_0 - D log(1 - ab_0)) (eqs. 8 and 9).

        The mean over the labels, differentiable in W_embed, whose gradient is ab_0 u, and in
        gamma's parameters. Under an FM it is 0.

        Args:
            y: (B,) int64, labels in [0, M).
            M: classes, where the embeddings are one-hot.

        Returns:
            (R,) float64.

        Raises:
            ValueError: an argument does not fit.
        """
        y = check_labels("prior", y, None, self.device)
        goal = self.present_goal(grad=True)
        u_squared, _ = self.u_squared(y)
        D = check_positive("prior", "M", M) if self.W_embed is None else self.W_embed.shape[-1]
        return goal.prior(u_squared, D)

    def u_squared(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean of |u_y|^2 over labels y (B,), (R,) float64, and, unless embeddings are one-hot,
        the share of each class in them, (M,) float64."""
        if self.W_embed is None:
            return torch.ones(self.replicas, dtype=torch.float64, device=self.device), None
        W_embed = self.W_embed.double().expand(self.replicas, -1, -1)
        classes = torch.arange(W_embed.shape[1], dtype=y.dtype, device=y.device)
        share = (y[:, None] == classes).double().mean(0)
        return torch.stack([one.square().sum(-1) @ share for one in W_embed.unbind(0)]), share

    # training

    @torch.no_grad()
    def update(
        self, grads: Mapping[str, Tensor], apply: Tensor, *, lr: float | Tensor | None = None
    ) -> Tensor:
        """One optimizer step of all parameters, in the replicas where `apply` and all is finite.

        A replica that is left out keeps parameters, moments and `updates`; `draws` advance.

        Args:
            grads: (R, ...) float32 by parameter name, of every parameter.
            apply: (R,) bool.
            lr: a number or (R,); None: the optimizer's.

        Returns:
            (R,) bool, the replicas that were updated.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
        """
        op = "update"
        names, R = self.layout.params, self.replicas
        if grads.keys() != {*names}:
            raise ValueError(f"{op}: grads must have {[*names]}, got {[*grads]}")
        apply = check_tensor(op, "apply", apply, shape=(R,), dtype=BOOL, device=self.device)
        for name in names:
            shape = self.layout.shapes[name]
            check_tensor(op, name, grads[name], shape=shape, device=self.device)
            apply = apply & grads[name].reshape(R, -1).isfinite().all(1)
        if names:
            self._move(grads, apply, lr)
            self.updates += apply
        self.draws += 1
        return apply

    def update_call(
        self, grads: Mapping[str, Tensor], apply: Tensor, lr: float | None
    ) -> tuple[SharedUpdateCall, list[Tensor]]:
        """`update` as a call of a backend, and the tensors that it writes."""
        check_state(self)
        params, moments, buffers = self.layout.params, self.layout.moments, self._buffers
        tensors = checked_tensors(self, all_names(params, moments, ()))
        state = iter(tensors)
        call = SharedUpdateCall(
            params=dict(zip(params, state, strict=False)),
            m=dict(zip(params, state, strict=False)) if "m" in moments else {},
            v=dict(zip(params, state, strict=False)) if "v" in moments else {},
            grads={**grads},
            apply=apply,
            applied=torch.empty_like(apply),
            updates=buffers["updates"],
            draws=buffers["draws"],
            rule=self.rule("update", lr),
        )
        return call, [*tensors, call.updates, call.draws]

    def rule(self, op: str, lr: float | Tensor | None) -> Rule:
        """The update rule of one step.

        Raises:
            ValueError: there is none, or a rate does not fit.
        """
        if self.optimizer is None:
            raise ValueError(f"{op}: optimizer must not be None here; give one to Shared")
        replicas = torch.arange(self.replicas, dtype=torch.int64, device="cpu")
        return engine.step_rule(cast(Any, self), op, lr, replicas)

    def _move(self, grads: Mapping[str, Tensor], apply: Tensor, lr: float | Tensor | None) -> None:
        check_state(self)
        rule = self.rule("update", lr)
        for name in self.layout.params:
            with_moments = (name, *(f"{name}_{moment}" for moment in self.layout.moments))
            state = dict(zip(("param", *self.layout.moments), with_moments, strict=True))
            tensors = dict(zip(state, checked_tensors(self, with_moments), strict=True))
            param, m, v = (tensors.get(part) for part in ("param", "m", "v"))
            new = optimizer_step(
                rule.optimizer,
                cast(Tensor, param),
                grads[name],
                m,
                v,
                lr=rule.lr[0],
                weight_decay=rule.weight_decay,
                updates=self.updates + 1,
            )
            where = apply.view(-1, *[1] * (grads[name].ndim - 1))
            for old, moved in zip((param, m, v), new, strict=True):
                if old is not None and moved is not None:
                    old.copy_(torch.where(where, moved, old))


def check_shared(
    op: str, shared: object, goal: Goal, embedding: object, M: int, replicas: int
) -> "Shared | None":
    """The `shared` of an object of M classes, which must be of its goal and its replicas.

    Raises:
        ValueError: it does not fit, or is not given where the goal's schedule is learned.
    """
    if shared is None:
        if isinstance(goal, CT) and isinstance(goal.schedule, GammaNetwork):
            raise ValueError(
                f"{op}: goal must have a schedule with values without shared=, got a GammaNetwork, "
                "whose parameters an nk.Shared holds"
            )
        return None
    if not isinstance(shared, Shared):
        raise ValueError(f"{op}: shared must be a Shared, got {type(shared).__name__}")
    if embedding is not None:
        raise ValueError(f"{op}: embedding must be None where shared is given, which has it")
    if shared.goal != goal:
        raise ValueError(f"{op}: shared must have the goal {goal}, got {shared.goal}")
    if shared.replicas != replicas:
        raise ValueError(
            f"{op}: shared must have {replicas} replicas, one per seed, got {shared.replicas}"
        )
    if shared.learns_embedding and replicas > 1:
        raise ValueError(
            f"{op}: seed must be one where W_embed is learned, since a call of a backend has one "
            f"W_embed for all replicas, got {replicas}; make an object for each seed"
        )
    W_embed = shared.W_embed
    if W_embed is not None and W_embed.shape[-2] != M:
        raise ValueError(
            f"{op}: shared must have embeddings of {M} classes, got {W_embed.shape[-2]}"
        )
    return shared
