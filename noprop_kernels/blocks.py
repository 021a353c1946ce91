"""DenoisingBlocks: the blocks of NoProp-DT as one stack (arXiv:2503.24322v2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from .arguments.batches import Inputs, check_inputs, check_labels, rows_of, same_rows
from .arguments.scalars import seed_list, seed_tensor
from .autograd import block_nodes, block_ops
from .backends.calls import AddNoiseCall
from .check import MOST_COUNT, check_positive
from .compiler.eager import eager_only
from .results import Prediction, Update
from .stack import plain_modules
from .stack.training import Blocks, TrainedBlocks, check_row


class DenoisingBlocks(TrainedBlocks):
    """Blocks t = 1..T, each a network of its own: u_hat_t = softmax(plan_t(x, z_{t-1})) @ W_embed.

    Block t is trained by its own loss alone, (T / 2) eta (SNR(t) - SNR(t-1)) mean |u_hat_t - u_y|^2
    on z_{t-1} ~ q(z_{t-1} | y) (arXiv:2503.24322v2, eq. 8).

    A slice is a (replica, block); slices are stacked replica by replica, t ascending in each. A
    block's training is the same, bit for bit, whatever else is held or run, and in whatever order.

    Args:
        plan: the layers of one block, with M logits; its "z" has the width D of an embedding,
            unless every call brings features of it.
        goal: the noise levels and loss weights.
        embedding: (M, D) float32, the fixed label embeddings; None: one-hot, D = M.
        optimizer: of noprop_kernels.optimizers; None makes a plain module, for `loss` and
            torch.optim.
        seed: of the parameters and the noise; a list makes one replica for each.
        held: the t to keep in memory; None: all of 1..T.
        precision: "float32", or "bfloat16" | "tf32": what the operands of the layers' products
            (weights, sources, output gradients) are rounded to; all else is float32. The CPU
            kernels have no tf32.
        backend: a backend to force; None: the best that runs here.
        blocks_per_launch: slices that a GPU trains at once, whose activations it has in memory;
            None: all of a call. It changes no bit.

    Raises:
        ValueError: an argument does not fit.
    """

    @eager_only
    def add_noise(self, y: Tensor, *, blocks: Blocks = None, first_row: int = 0) -> Tensor:
        """z_{t-1} = signal * u_y + noise * eps, at the address of the next step; changes nothing.

        Args:
            y: (B,) int64, labels.
            blocks: the t to draw for, in all replicas; None: all held.
            first_row: position of row 0 in the whole batch.

        Returns:
            (n, B, D) float32.

        Raises:
            ValueError: an argument does not fit.
        """
        op = "add_noise"
        index = self._index(op, blocks)
        y = check_labels(op, y, None, self.M, self.device)
        n, B = len(index), len(y)
        first_row = check_row(op, first_row, B)
        z = self._empty(n, B, self.D)
        if B:
            noise = self._noise_at(index, self._noise_block(index, 1), first_row=first_row)
            labels = y.contiguous().expand(1, n, B)
            noising, _ = self._levels(index, 1, B)
            call = AddNoiseCall(noise, noising, self._embedding(), labels, z, None, self.updates)
            self._run("add_noise", call)
        return z

    def forward(self, x: Inputs, z: Tensor, *, blocks: Blocks = None) -> Tensor:
        """logits = plan(x, z), differentiable in the parameters, x and z.

        In train mode with batch norm: batch statistics, and the running ones move.

        Args:
            x: (B, F) float32, shared, or (n, B, F); a dict by name if the plan has more inputs.
            z: (n, B, width) float32, or (B, width), shared.
            blocks: the t to run, in all replicas; None: all held.

        Returns:
            (n, B, M) float32.

        Raises:
            ValueError: an argument does not fit.
        """
        op = "forward"
        index = self._index(op, blocks)
        inputs = check_inputs(op, x, self.plan, len(index), self.device)
        inputs["z"] = rows_of(op, "z", z, self.plan.widths["z"], len(index), self.device)
        B = same_rows(op, inputs, 1, "x and z")
        if self.training and self.plan.has_norm():
            self._check_training(op, "y", B)
        if B == 0:
            return self._empty(len(index), 0, self.M)
        ordered = {name: inputs[name] for name in self.plan.inputs}
        run = block_ops.forward if torch.compiler.is_compiling() else block_nodes.forward
        return run(self, ordered, index)

    @eager_only
    def loss(self, x: Inputs, y: Tensor, *, blocks: Blocks = None) -> Tensor:
        """loss = sum over rows of weight * |u_hat - u_y|^2 / B, differentiable in parameters and x.

        The noise is that of the next step, so that `advance()` belongs after each step of an
        outside optimizer.

        Args:
            x, blocks: as in `forward`.
            y: (B,) int64, labels.

        Returns:
            (n,) float32; its sum trains every block by its own loss alone.

        Raises:
            ValueError: an argument does not fit.
        """
        op = "loss"
        index = self._index(op, blocks)
        self._check_draws_z(op)
        self._batch(op, x, y, len(index), training=self.training)
        logits = self.forward(x, self.add_noise(y, blocks=blocks), blocks=blocks)
        return block_nodes.Loss.apply(self, index, y, logits)

    @eager_only
    def backward_update(
        self, logits: Tensor, d_logits: Tensor, *, lr: float | Tensor | None = None
    ) -> Update:
        """Backward and update under a loss of the caller's own; counts as `train_step` does.

        Args:
            logits: what `forward` returned, in grad mode; once each.
            d_logits: (n, B, M) float32, the loss' gradient; a slice where it is not finite stays.
            lr: a number or (n,); None: the optimizer's.

        Returns:
            Update.

        Raises:
            ValueError: `logits` is no result of this object's forward, was used already, or the
                weights moved since; or another argument does not fit.
        """
        return block_nodes.backward_update(self, logits, d_logits, lr)

    # one block, and plain modules

    def block(self, t: int, *, replica: int = 0) -> fx.GraphModule:
        """Block t as torch.nn modules on this object's own storage: what one trains, the other has.

        Call it again after .to() has moved the parameters, or load_state_dict(assign=True) replaced
        them.

        Args:
            t: the paper's, in 1..T.
            replica: which of the replicas.

        Returns:
            A module called as block(x, z), inputs in the plan's order; its state_dict's keys are
            the plan's.

        Raises:
            ValueError: t is not held, or the replica does not exist.
        """
        index = self._index("block", t)
        if type(replica) is not int or not 0 <= replica < self.replicas:
            raise ValueError(f"block: replica must be in [0, {self.replicas}), got {replica!r}")
        return plain_modules.shared_module(self, int(index[replica]))

    def to_modules(self) -> list[fx.GraphModule]:
        """Every slice as torch.nn modules with their own tensors; they run without this library."""
        return [plain_modules.copied_module(self, i) for i in range(len(self))]

    def load_modules(self, blocks: Sequence[torch.nn.Module]) -> None:
        """Takes parameters and running statistics from modules as `to_modules` makes them.

        Moments and counters stay.

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
        samples: int = 1,
        seed: int | Sequence[int] | None = None,
        first_row: int = 0,
        keep: str = "last",
    ) -> Prediction:
        """The chain z_t = a_t u_hat_t + b_t z_{t-1} + sqrt(c_t) eps from z_0 ~ N(0, I).

        arXiv:2503.24322v2, eq. 3. Running statistics, whatever the mode; no counter moves. A row's
        result does not depend on the rows beside it: without noise it is a function of the row
        alone, with noise also of its position, first_row + its number.

        Args:
            x: (B, F) float32, shared, or (R, B, F), one per replica; a dict by name if the plan has
                more inputs.
            noise: false leaves sqrt(c_t) eps away and begins at z_0 = 0, the mean of N(0, I), so
                that nothing is random and all samples are alike.
            samples: S, draws of the noise.
            seed: of the noise, an int or one per replica; None: each replica's own.
            first_row: position of row 0 in the whole set.
            keep: "last", or "all" for the results after every block.

        Returns:
            Prediction of (S, R, B, ...), with keep="all" (T, S, R, B, ...).

        Raises:
            ValueError: an argument does not fit, or not all T blocks are held.
        """
        op = "predict"
        if len(self.held) != self.T:
            raise ValueError(
                f"{op}: all of the {self.T} blocks must be held, got held={list(self.held)}"
            )
        index = self._index(op, None)
        if keep not in ("last", "all"):
            raise ValueError(f'{op}: keep must be "last" or "all", got {keep!r}')
        self._check_draws_z(op)
        R, T = self.replicas, self.T
        samples = check_positive(op, "samples", samples, MOST_COUNT)
        inputs = check_inputs(op, x, self.plan, R, self.device)
        B = next(iter(inputs.values())).shape[1]
        first_row = check_row(op, first_row, B)
        seeds = self.seeds.view(R, T)[:, 0].contiguous()
        if seed is not None:
            given = seed_list(op, seed)
            if len(given) not in (1, R):
                raise ValueError(f"{op}: seed must be one or {R}, one per replica, got {seed!r}")
            seeds = seed_tensor(given).to(self.device).expand(R).contiguous()
        schedule, kept = self.goal.schedule, T if keep == "all" else 1
        coefficients = (schedule.a, schedule.b, schedule.c.sqrt())
        arguments = (
            list(inputs.values()),
            seeds,
            [value[1:].float().to(self.device) for value in coefficients],
            *(self.W_embed, self._head, self.D, first_row, noise, kept, samples),
        )
        if torch.compiler.is_compiling():
            results = block_ops.predict(self, index, *arguments)
        else:
            call = block_ops.predict_call(self._slices(index), *arguments)
            call.owner = self.updates
            if B:
                self._run("predict", call)
            results = (call.logits, call.u_hat, call.z)
        return Prediction(*(results if keep == "all" else (result[0] for result in results)))
