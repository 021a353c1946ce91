"""DenoisingBlocks: the blocks of NoProp as one stack (arXiv:2503.24322v2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from .arguments.batches import Inputs, check_inputs, rows_of, same_rows
from .arguments.row_weights import check_row_weight
from .arguments.scalars import seed_list, seed_tensor
from .arguments.times import Blocks, check_blocks, check_time_input, check_times
from .autograd import block_nodes, block_ops, chain
from .compiler.eager import eager_only
from .goal import Goal, check_goal
from .optimizers import AdamW, Optimizer
from .philox import STREAM_EPS
from .plan import Plan
from .results import Prediction, Update
from .stack import engine, plain_modules, training
from .stack.call_arguments import check_batch, check_draws_z, index_of
from .stack.shared import Shared, check_shared


class DenoisingBlocks(training.TrainedStack):
    """Blocks t = 1..T, each a network of its own: u_hat_t = softmax(plan_t(x, z_{t-1})) @ W_embed.

    Under a DT block t is trained by its own loss alone, (T / 2) eta (SNR(t) - SNR(t-1)) mean
    |u_hat_t - u_y|^2 on z_{t-1} ~ q(z_{t-1} | y) (arXiv:2503.24322v2, eq. 8). Under a CT or an FM
    there is one block for all t in [0, 1] (eqs. 9 and 12): each step draws a t for every row, and
    the plan's input "t" is its embedding, which no caller gives.

    A slice is a (replica, block); slices are stacked replica by replica, t ascending in each. A
    block's training is the same, bit for bit, whichever other blocks are held or run, in any order.

    Where an input of the plan is an image, calls take images (..., B, C, H, W), (..., B, H, W) of
    one channel, or their rows (..., B, F); gradients are images. In train mode dropout is drawn at
    the address of the next step, as the noise is.

    Args:
        plan: the layers of one block, with M logits; its "z" has the width D of an embedding,
            unless every call brings features of it.
        goal: the noise levels and loss weights: a DT, CT or FM.
        embedding: (M, D) float32, the fixed label embeddings; None: one-hot, D = M.
        shared: an nk.Shared of this goal and these seeds, whose embeddings and schedule every call
            reads, fixed or learned, in place of `embedding`; its tensors are not in this object's
            state_dict. Where it learns W_embed there is one seed.
        optimizer: of noprop_kernels.optimizers; None makes a plain module, for `loss` and
            torch.optim.
        seed: of the parameters and the noise; a list makes one replica for each.
        held: the t to keep in memory; None: all of 1..T.
        precision: "float32", or "bfloat16" | "tf32": the rounding of operands of the layers'
            products (weights, sources, output gradients); all else is float32. The CPU kernels have
            no tf32.
        backend: a backend to force; None: the best that runs here.
        blocks_per_launch: slices that a GPU trains at once, which bounds its memory for
            activations; None: all of a call. It changes no bit.

    Raises:
        ValueError: an argument does not fit.
    """

    held: tuple[int, ...] = ()
    replicas: int = 1

    def __init__(
        self,
        plan: Plan,
        goal: Goal,
        *,
        embedding: Tensor | None = None,
        shared: Shared | None = None,
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
        check_goal(op, goal)
        if goal.timed:
            check_time_input(op, plan)
        seeds = seed_list(op, seed)
        held = check_blocks(op, "held", range(1, goal.T + 1) if held is None else held, goal.T)
        M = plan.widths[plan.output]
        t = torch.tensor(sorted(held) * len(seeds), dtype=torch.int64, device="cpu")
        super().__init__(
            plan,
            goal,
            seeds=seed_tensor(seeds),
            held=tuple(sorted(held)),
            buffers={"t": t},
            initial_block=t - 1,
            trains=goal,
            embedding=embedding,
            optimizer=optimizer,
            precision=precision,
            backend=backend,
            stream=STREAM_EPS,
            M=M,
            shared=check_shared(op, shared, goal, embedding, M, len(seeds)),
        )
        self.blocks_per_launch = blocks_per_launch
        self.held = tuple(sorted(held))
        self.replicas = len(seeds)

    @property
    def T(self) -> int:
        """Blocks of the whole chain, held or not."""
        return self.goal.T

    def extra_repr(self) -> str:
        held = f"T={self.T}" if len(self.held) == self.T else f"T={self.T}, held={self.held}"
        return f"{held}, replicas={self.replicas}, {super().extra_repr()}"

    # the parts of a step

    def forward(
        self, x: Inputs, z: Tensor, *, t: Tensor | None = None, blocks: Blocks = None
    ) -> Tensor:
        """logits = plan(x, z), or plan(x, z, t), differentiable in the parameters, x and z.

        In train mode with batch norm it uses batch statistics, and updates the running ones; with
        dropout it draws that of the next step, the same until a step or `advance()` is counted.

        Args:
            x: (B, F) float32, shared, or (n, B, F); a dict by name if the plan has more inputs.
            z: (n, B, width) float32, or (B, width), shared.
            t: (B,) or (n, B) float32 or float64 in [0, 1], needed under a CT or FM.
            blocks: the t to run, in all replicas; None: all held.

        Returns:
            (n, B, M) float32.

        Raises:
            ValueError: an argument does not fit.
        """
        op = "forward"
        index = index_of(self, op, blocks)
        inputs = check_inputs(op, x, self.plan, self.layout.given, len(index), self.device)
        if self.goal.timed:
            B = next(iter(inputs.values())).shape[1]
            t = check_times(op, t, len(index), B, self.device)
            inputs["t"] = engine.time_input(self, t).expand(len(index), -1, -1)
        elif t is not None:
            raise ValueError(f"{op}: t must be None under a DT, got {type(t).__name__}")
        inputs["z"] = rows_of(op, "z", z, self.plan.shapes["z"], len(index), self.device)
        B = same_rows(op, inputs, 1, "x and z")
        if self.training and self.plan.has_norm():
            engine.check_rows(self, op, "y", B)
        if B == 0:
            return engine.empty(self, len(index), 0, self.M)
        run = block_ops.forward if torch.compiler.is_compiling() else block_nodes.forward
        return run(self, {name: inputs[name] for name in self.plan.inputs}, index)

    @eager_only
    def loss(
        self, x: Inputs, y: Tensor, *, blocks: Blocks = None, row_weight: Tensor | None = None
    ) -> Tensor:
        """loss = sum over rows of weight * |u_hat - u_y|^2 / B, differentiable in parameters and x.

        The noise is that of the next step: call `advance()` after each step of an outside
        optimizer. No gradient reaches what an nk.Shared learns.

        Args:
            x, blocks: as in `forward`.
            y: (B,) int64, labels.
            row_weight: (B,) float32, as of `train_step`; no gradient reaches it.

        Returns:
            (n,) float32; its sum trains every block by its own loss alone.

        Raises:
            ValueError: an argument does not fit.
        """
        op = "loss"
        index = index_of(self, op, blocks)
        check_draws_z(self, op)
        _, B = check_batch(self, op, x, y, len(index), training=self.training)
        row_weight = check_row_weight(op, row_weight, (B,), self.device)
        z, eps = training.add_noise(self, op, y, blocks)
        t = self.times(len(y), blocks=blocks) if self.goal.timed else None
        logits = self.forward(x, z, t=t, blocks=blocks)
        return block_nodes.Loss.apply(self, index, y, eps, logits, row_weight)

    @eager_only
    def backward_update(
        self, logits: Tensor, d_logits: Tensor, *, lr: float | Tensor | None = None
    ) -> Update:
        """Backward and update under a loss of the caller's own; counts as `train_step` does.

        Args:
            logits: the result of `forward` in grad mode; each can be used once.
            d_logits: (n, B, M) float32, the loss' gradient; where it is not finite a slice is not
                updated.
            lr: a number or (n,); None: the optimizer's.

        Returns:
            Update.

        Raises:
            ValueError: `logits` is no result of this object's forward, was used already, or the
                weights have changed since; or another argument does not fit.
        """
        return block_nodes.backward_update(self, logits, d_logits, lr)

    # one block, and plain modules

    def block(self, t: int, *, replica: int = 0) -> fx.GraphModule:
        """Block t as torch.nn modules on this object's storage: training one trains the other.

        Call it again where .to() or load_state_dict(assign=True) has replaced the parameters.

        Args:
            t: the paper's, in 1..T.
            replica: the number of the replica.

        Returns:
            A module called as block(x, z), or block(x, z, nk.embed_time(t, width)), inputs in the
            plan's order, images as such or as rows;
            its state_dict's keys are the plan's. In train mode its dropout is torch's own.

        Raises:
            ValueError: t is not held, or the replica does not exist.
        """
        index = index_of(self, "block", t)
        replica = chain.check_replica("block", replica, self.replicas)
        return plain_modules.shared_module(self, int(index[replica]))

    def to_modules(self) -> list[fx.GraphModule]:
        """Every slice as torch.nn modules with their own tensors; they run without this library."""
        return [plain_modules.copied_module(self, i) for i in range(len(self))]

    def load_modules(self, blocks: Sequence[torch.nn.Module]) -> None:
        """Copies parameters and running statistics from modules as `to_modules` makes them.

        Moments and counters do not change.

        Raises:
            ValueError: their number, a name or a shape does not fit; then nothing has changed.
        """
        plain_modules.load(self, blocks)

    # inference

    def predict(
        self,
        x: Inputs,
        *,
        noise: bool = True,
        sampler: str | None = None,
        steps: int | None = None,
        samples: int = 1,
        seed: int | Sequence[int] | None = None,
        first_row: int = 0,
        keep: str | int = "last",
        replica: int | None = None,
    ) -> Prediction:
        """The chain z_t = a_t u_hat_t + b_t z_{t-1} + sqrt(c_t) eps from z_0 ~ N(0, I).

        arXiv:2503.24322v2, eq. 3, or under a CT or FM another sampler. It uses running statistics,
        whatever the mode, and advances no counter. A row's result does not depend on the other
        rows: without noise it is a function of the row alone, with noise also of its position,
        first_row + its number.

        Args:
            x: (B, F) float32, shared, or (R, B, F), one per replica; a dict by name if the plan has
                more inputs.
            noise: false omits sqrt(c_t) eps and begins at z_0 = 0, the mean of N(0, I), so that
                nothing is random and all samples are equal.
            sampler: under a CT "ancestral" (eq. 3; None with noise), "ddim" (None without),
                "euler", "heun" or "rk4"; under an FM "euler" (None), "heun" or "rk4". All but
                "ancestral" draw z_0 alone.
            steps: of the sampler, 1..65535; None: 1,000. A DT's are its T blocks.
            samples: S, draws of the noise.
            seed: of the noise, an int or one per replica; None: each replica's own.
            first_row: position of row 0 in the whole set.
            keep: "last", "all" for the results after every step, or a number that divides the
                steps: for so many, equally far apart.
            replica: the number of the one replica that runs, so that R = 1 here; None: all.

        Returns:
            Prediction of (S, R, B, ...), with other `keep` than "last" (kept, S, R, B, ...).

        Raises:
            ValueError: an argument does not fit, or not all T blocks are held.
        """
        return chain.predict(
            self, x, noise, sampler, steps, samples, seed, first_row, keep, replica
        )
