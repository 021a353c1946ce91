"""OutputHead: the linear classifier of z_T, trained separately (arXiv:2503.24322v2, eq. 8)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments.batches import INT64, check_labels, gather_inputs, rows_of
from .arguments.row_weights import check_row_weight, in_steps
from .arguments.scalars import seed_list, seed_tensor
from .autograd import block_nodes, block_ops
from .backends import dispatch
from .check import LARGEST, check_integer, check_number, check_positive, check_tensor, is_flag
from .compiler.eager import eager_only
from .goal import Goal, LastLevel, Levels, check_goal
from .optimizers import AdamW, Optimizer
from .philox import STREAM_HEAD
from .plan import Dense, Plan
from .results import Step, Update
from .schedule import MOST_BLOCKS
from .stack import engine, known
from .stack.call_arguments import positions
from .stack.module import Stack
from .stack.shared import Shared, check_shared
from .stack.state import check_state

HEADS = {"softmax": "cross_entropy", "radial": "radial"}  # the kernels' by kind
SIGMA = "be above 0", lambda sigma: 0 < sigma <= LARGEST
INIT_BLOCK = 0xFFFF  # the block number of its initial parameters, which no block has


class OutputHead(Stack):
    """The class from z_T: logits = z_T @ weight.T + bias, trained on z_T ~ q(z_T | y).

    kind "softmax": p(y | z_T) = softmax(logits)[y]. kind "radial": p(y | z_T) = softmax(r)[y] with
    r_m = -|u_tilde - u_m|^2 / (2 sigma^2) and u_tilde = softmax(logits) @ W_embed. Either trains by
    -log p(y | z_T) (eq. 14-16).

    Radial probabilities are bounded: one-hot embeddings are sqrt(2) apart, so that with sigma = 1 a
    probability is at most 1 / (1 + (M - 1) / e), .23 of M = 10 classes, and a loss never reaches 0.
    A smaller sigma lifts the bound.

    It needs no block: z_T = sqrt(alpha_bar_T) u_y + sqrt(1 - alpha_bar_T) eps. With fixed
    embeddings it may be trained before, beside or after the blocks. One slice per replica.

    Args:
        D: width of an embedding.
        M: classes.
        goal: the noise levels, those of the blocks.
        embedding: (M, D) float32, the fixed label embeddings; None: one-hot, D = M.
        shared: as of DenoisingBlocks. With an FM it must learn W_embed: fixed embeddings need no
            output head, and learned ones train it by `backward_update`, as nk.Coupled does.
        kind: "softmax" or "radial". Triton and the CUDA kernels do not train a radial head.
        sigma: of a radial head.
        optimizer: of noprop_kernels.optimizers; None makes a plain module.
        seed: of the parameters and the noise; a list makes one replica for each.
        precision: "float32", or "bfloat16" | "tf32": the rounding of operands of the layers'
            products (weights, sources, output gradients); all else is float32. The CPU kernels have
            no tf32.
        backend: a backend to force; None: the best that runs here.

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        D: int,
        M: int,
        *,
        goal: Goal,
        embedding: Tensor | None = None,
        shared: Shared | None = None,
        kind: str = "softmax",
        sigma: float = 1.0,
        optimizer: Optimizer | None = AdamW(lr=1e-3, weight_decay=1e-3),  # noqa: B008  # frozen
        seed: int | Sequence[int] = 0,
        precision: str = "float32",
        backend: str | None = None,
    ) -> None:
        op = "OutputHead"
        D, M = check_positive(op, "D", D), check_positive(op, "M", M)
        check_goal(op, goal)
        seeds = seed_tensor(seed_list(op, seed))
        shared = check_shared(op, shared, goal, embedding, M, len(seeds))
        if goal.flow != 0 and (shared is None or not shared.learns_embedding):
            raise ValueError(
                f"{op}: goal must not be an FM, whose classes are read by the nearest embedding, "
                "unless the embeddings are learned"
            )
        if embedding is not None:
            check_tensor(op, "embedding", embedding, shape=(M, D))
        else:
            W_embed = None if shared is None else shared.W_embed
            width = M if W_embed is None else W_embed.shape[-1]
            if D != width:
                given = f"M = {M} without an embedding" if W_embed is None else f"{width}, shared's"
                raise ValueError(f"{op}: D must be {given}, got {D}")
        if not isinstance(kind, str) or kind not in HEADS:
            raise ValueError(f"{op}: kind must be one of {tuple(HEADS)}, got {kind!r}")
        if kind == "radial" and goal.flow != 0:
            raise ValueError(
                f'{op}: kind must be "softmax" under an FM, whose anchor is of logits, got {kind!r}'
            )
        sigma = check_number(op, "sigma", sigma, *SIGMA)
        super().__init__(
            Plan({"z": (D,)}, {"logits": Dense("z", M)}),
            goal,
            seeds=seeds,
            held=(goal.T,),
            buffers={},
            initial_block=torch.full_like(seeds, INIT_BLOCK),
            trains=LastLevel(goal, HEADS[kind], sigma if kind == "radial" else 0.0),
            embedding=embedding,
            optimizer=optimizer,
            precision=precision,
            backend=backend,
            stream=STREAM_HEAD,
            M=M,
            shared=shared,
        )
        self.kind = kind
        self.sigma = sigma

    def extra_repr(self) -> str:
        radial = f", sigma={self.sigma:g}" if self.kind == "radial" else ""
        return f"kind={self.kind!r}{radial}, {super().extra_repr()}"

    def forward(self, z: Tensor) -> Tensor:
        """logits = z @ weight.T + bias, differentiable in the parameters and z.

        Args:
            z: (B, D) float32, shared, or (R, B, D), one per replica.

        Returns:
            (R, B, M) float32.

        Raises:
            ValueError: z does not fit.
        """
        index = self._everyone()
        z = rows_of("forward", "z", z, (self.D,), len(self), self.device)
        if z.shape[1] == 0:
            return engine.empty(self, len(self), 0, self.M)
        run = block_ops.forward if torch.compiler.is_compiling() else block_nodes.forward
        return run(self, {"z": z}, index)

    def log_probs(self, z: Tensor) -> Tensor:
        """log p(y | z) of every class, differentiable in the parameters and z.

        Args:
            z: as of `forward`.

        Returns:
            (R, B, M) float32.

        Raises:
            ValueError: z does not fit.
        """
        logits = self(z)
        if self.kind == "softmax":
            return logits.log_softmax(-1)
        p = logits.softmax(-1)
        W_embed = self.W_embed if self.shared is None else self.shared.table(self.device)
        if W_embed is None:  # |u_tilde - u_m|^2 = |p|^2 - 2 p_m + 1
            return (p / self.sigma**2).log_softmax(-1)
        # of the differences themselves, in whose squares little is lost between near embeddings
        mode = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(p @ W_embed, W_embed.expand(len(p), -1, -1), compute_mode=mode)
        return (distance.square() / (-2 * self.sigma**2)).log_softmax(-1)

    @eager_only
    def train_step(
        self,
        y: Tensor,
        t: int,
        *,
        lr: float | Tensor | None = None,
        levels_grad: bool = False,
        row_weight: Tensor | None = None,
    ) -> Step:
        """One step on z_T of the labels.

        Args:
            y: (B,) int64, labels.
            t: the block, in 1..T, in whose order of training this step is; it addresses the noise.
            lr: a number or (R,); None: the optimizer's.
            levels_grad: whether to compute d_W_embed, d_signal and d_noise, all through z_T.
            row_weight: (B,) float32, as of DenoisingBlocks.train_step.

        Returns:
            Step.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
            BackendError: no backend can run it.
        """
        return head_step(self, y, t, lr, levels_grad, None, row_weight)

    @eager_only
    def train_steps(
        self,
        Y: Tensor,
        indices: Tensor | None,
        t: int | Tensor,
        *,
        lr: float | Tensor | None = None,
        row_weight: Tensor | None = None,
    ) -> Tensor:
        """K steps in one call, each as `train_step`.

        Args:
            Y: (rows,) int64, all labels; with indices None (K, B), batches already gathered.
            indices: (K, B) int64, rows of each batch, or (K, R, B), each replica's own; None: Y has
                the batches.
            t: an int, or (K,) int64, one per step.
            lr: a number, (K,) or (K, R); None: the optimizer's.
            row_weight: float32 in Y's shape, as of DenoisingBlocks.train_steps.

        Returns:
            (K, R) float32 losses.

        Raises:
            ValueError: an argument does not fit, or optimizer=None.
            BackendError: no backend can run it.
        """
        op, index = "train_steps", self._everyone()
        self._refuse_flow(op)
        inputs, labels, K, B = gather_inputs(
            op, {}, Y, indices, None, self.plan, (), index, len(self), self.device
        )
        block = self._noise_block(op, t, K)
        weight = check_row_weight(op, row_weight, Y.shape, self.device)
        weight = in_steps(weight, labels, len(self))
        return engine.train_steps(self, op, index, block, inputs, labels, B, lr, weight)

    @eager_only
    def backward_update(
        self, logits: Tensor, d_logits: Tensor, *, lr: float | Tensor | None = None
    ) -> Update:
        """Backward and update under a loss of the caller's own; counts as `train_step` does.

        Args:
            logits: the result of `forward` in grad mode; each can be used once.
            d_logits: (R, B, M) float32, the loss' gradient; where it is not finite a replica is not
                updated.
            lr: a number or (R,); None: the optimizer's.

        Returns:
            Update, with d_z where forward's z required a gradient.

        Raises:
            ValueError: `logits` is no result of this object's forward, was used already, or the
                weights have changed since; or another argument does not fit.
        """
        return block_nodes.backward_update(self, logits, d_logits, lr)

    def _refuse_flow(self, op: str) -> None:
        if self.goal.flow != 0:
            raise ValueError(
                f"{op}: goal must not be an FM, whose output head learns from the end of the "
                "block's path; take Coupled.step, or forward and backward_update"
            )

    def _everyone(self) -> Tensor:
        """(R,) positions of all slices, after a check of the state."""
        check_state(self)
        held = self.layout.held
        return positions(held, held, self.layout.replicas)

    def _noise_block(self, op: str, t: int | Tensor, K: int) -> Tensor:
        """Philox's block t - 1 of each step, (K, R)."""
        cache, key = self.layout.cache, ("noise block", t, K, self.device)
        if type(t) is int and key in cache:
            return cache[key]
        if isinstance(t, Tensor):
            ts = check_tensor(op, "t", t, shape=(K,), dtype=INT64)
        else:
            if is_flag(t) or not hasattr(t, "__index__"):
                got = type(t).__name__
                raise ValueError(f"{op}: t must be an int or a tensor ({K},), got {got}")
            t = check_integer(op, "t", t, 0, MOST_BLOCKS)  # in 1..T where there are steps
            ts = torch.full((K,), t, dtype=torch.int64, device="cpu")
        if K and not (1 <= int(ts.min()) and int(ts.max()) <= self.goal.T):
            raise ValueError(f"{op}: t must be in 1..{self.goal.T}, got {ts.unique().tolist()}")
        block = (ts - 1).to(self.device, non_blocking=True)[:, None].expand(K, len(self))
        if type(t) is int:
            cache.keep(key, block)
        return block


def head_step(
    head: OutputHead,
    y: Tensor,
    t: int,
    lr: float | Tensor | None,
    levels_grad: bool,
    last: Levels | None,
    row_weight: Tensor | None = None,
) -> Step:
    """OutputHead.train_step; `last` are the levels of z_T, where the caller has them."""
    repeatable = type(t) is int and (lr is None or type(lr) is float) and known.has_form(y)
    repeatable = repeatable and not levels_grad and last is None and row_weight is None
    key = ("train_step", t, lr, y.shape[0]) if repeatable else ()
    if repeatable and (done := step_again(head, key, y)) is not None:
        return done
    op, index = "train_step", head._everyone()
    head._refuse_flow(op)
    rule = engine.step_rule(head, op, lr, index)
    B = len(check_labels(op, y, None, head.device))
    engine.check_rows(head, op, "y", B)
    row_weight = check_row_weight(op, row_weight, (B,), head.device)
    out = engine.new_out(head, 1, len(head))
    out.error = engine.empty(head, len(head), B)
    if levels_grad:
        out.d_W_embed = engine.empty(head, len(head), head.M, head.D)
        out.d_signal, out.d_noise = torch.empty_like(out.error), torch.empty_like(out.error)
    block, given = head._noise_block(op, t, 1), None if last is None else (None, last)
    call = engine.step(head, op, index, block, {}, y, B, out, row_weight, rule=rule, given=given)
    if repeatable:
        known.keep(head, key, call, ("y", "out"))
    return Step(
        out.loss[0],
        out.error,
        out.applied[0],
        d_signal=out.d_signal,
        d_noise=out.d_noise,
        d_W_embed=out.d_W_embed,
    )


def step_again(head: OutputHead, key: tuple, y: Tensor) -> Step | None:
    """A step as an earlier one by this key, or None (see stack/known.py)."""
    call = known.on_labels(head, key, y)
    if call is None:
        return None
    call.out = out = engine.new_out(head, 1, len(head))
    out.error = engine.empty(head, len(head), call.B)
    try:
        engine.run_train(head, call, dispatch.cpu)
    except ValueError:  # nothing has changed
        return None
    return Step(out.loss[0], out.error, out.applied[0])
