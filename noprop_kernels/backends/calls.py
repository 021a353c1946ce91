"""Records of the calls to a backend: plain tensors, checked before a record is made.

Every backend is a module with the seven functions of `BACKEND_FUNCTIONS`, each taking one of these
records, or `predict` that of chain_calls.py; the CPU's also has functions of one dense layer's
tensors. Outputs are tensors that the caller made; a backend writes them and allocates nothing that
outlives the call. `op` is the public name of the call, which errors begin with.

Letters: N slices that the object holds, n slices that the call runs, K steps, B rows, F features, D
width of an embedding, M classes. "Expanded" dimensions may have stride 0.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..optimizers import Optimizer
from ..plan import Plan

BACKEND_FUNCTIONS = ("add_noise", "forward", "head", "backward", "update", "train", "predict")

Tensors = dict[str, Tensor]


# Metadata of each field of a training call that holds tensors: whether they may be others in the
# next call of the same kind. A graph of launches copies those that may into tensors of its own, and
# freezes the address of the rest, so that one of these that changes costs a capture at each call.
FRESH, LASTING = {"fresh": True}, {"fresh": False}


@dataclass
class Slices:
    """The stacked state of an object, and which of its slices a call runs.

    Args:
        plan: the layers.
        params: (N, ...) float32 by state_dict name, in plan order.
        m, v: moments, as params; empty where the optimizer keeps none.
        stats: running statistics (N, H) float32 by name ("hx.norm.running_mean"); empty without
            norm.
        seeds, draws, updates: (N,) int64, on the CPU where the kernels run there.
        index: (n,) int64, on the CPU: positions of the slices to run, each at most once.
        precision: "float32" | "tf32" | "bfloat16": what the operands of the layers' products
            (weights, sources and output gradients) are rounded to. Products, sums, all else and the
            state are float32.
    """

    plan: Plan
    params: Tensors = field(metadata=LASTING)
    m: Tensors = field(metadata=LASTING)
    v: Tensors = field(metadata=LASTING)
    stats: Tensors = field(metadata=LASTING)
    seeds: Tensor = field(metadata=LASTING)
    draws: Tensor = field(metadata=LASTING)
    updates: Tensor = field(metadata=LASTING)
    index: Tensor = field(metadata=LASTING)
    precision: str = "float32"


@dataclass
class NoiseAddress:
    """The address of eps: counters (column // 4, first_row + row, block | stream << 16, draw).

    Args:
        seeds: (n,) int64, the Philox keys.
        draw: (K, n) int64.
        block: (K, n) int64, t - 1 for DT, expanded.
        stream: of eps; eps_1 is drawn from stream 1.
        first_row: position of row 0 in the whole batch.
    """

    seeds: Tensor = field(metadata=FRESH)
    draw: Tensor = field(metadata=FRESH)
    block: Tensor = field(metadata=FRESH)
    stream: int
    first_row: int = 0


@dataclass
class Embedding:
    """The labels' embeddings: u_y = W_embed[y], (M, D) float32, or one-hot where None (D = M)."""

    W_embed: Tensor | None = field(metadata=LASTING)
    D: int

    @property
    def M(self) -> int:
        """Classes."""
        return self.D if self.W_embed is None else len(self.W_embed)


@dataclass
class Noising:
    """How a label becomes z = signal * u_y + noise * eps + sigma * eps_1.

    Args:
        signal, noise: (K, n, B) float32, expanded.
        sigma: standard deviation of flow matching's second noise eps_1.
    """

    signal: Tensor = field(metadata=FRESH)
    noise: Tensor = field(metadata=FRESH)
    sigma: float


@dataclass
class Objective:
    """loss = sum over rows of weight * error / rows; error = |u_hat - (u_y - flow * eps)|^2.

    Args:
        weight: (K, n, B) float32, expanded.
        flow: 0, or 1 for the flow-matching target u_y - eps.
        head: "softmax" | "linear", how logits become u_hat; or "cross_entropy", whose error is
            -log softmax(logits)[y]; or "radial", whose error is -log softmax(r)[y] with
            r_m = -|u_hat - u_m|^2 / (2 radius^2) and u_hat = softmax(logits) @ W_embed.
        rows: of the whole batch.
        radius: sigma of the radial head.
    """

    weight: Tensor = field(metadata=FRESH)
    flow: float
    head: str
    rows: int
    radius: float = 0.0


@dataclass
class Gather:
    """Rows of a data set, not copied: indices[k, replica[i], b] for step k, slice i, row b.

    Args:
        data: (rows, F) float32 | bfloat16 | uint8, or (rows,) int64 for labels.
        indices: (K, R, B) int64.
        replica: (n,) int64, or zeros where R = 1.
        mean, scale: (F,) float32, or both None: the feature is (data - mean) * scale.
    """

    data: Tensor = field(metadata=LASTING)
    indices: Tensor = field(metadata=FRESH)
    replica: Tensor = field(metadata=FRESH)
    mean: Tensor | None = field(default=None, metadata=FRESH)
    scale: Tensor | None = field(default=None, metadata=FRESH)


@dataclass
class AddNoiseCall:
    """z = signal * u_y + noise * eps + sigma * eps_1 (see Noising).

    Outputs (K = 1): z (n, B, D) and eps (n, B, D) float32; either may be None. Labels out of range
    raise before any write on the CPU. On a GPU the error is recorded for `owner` (an object's
    `updates`; None: the device) and raised by its next call.
    """

    noise: NoiseAddress
    noising: Noising
    embedding: Embedding
    y: Tensor  # (K, n, B) int64, expanded
    z: Tensor | None
    eps: Tensor | None
    owner: Tensor | None = None
    op: str = "add_noise"


@dataclass
class TimesCall:
    """t of the rows of a step: uniform numbers of stream 6, site 0, block 0, column 0.

    A backend may have `draw_times` for it; without, philox.py draws the same numbers.

    Args:
        strata: 0, or the equal parts of [0, 1] of which row b has part b.
        t: out, (K, n, B) float64 in [0, 1).
    """

    noise: NoiseAddress
    strata: int
    t: Tensor


@dataclass
class ForwardCall:
    """logits of the selected slices, or None: no product is computed, and `save` keeps what
    `backward` needs of the inputs, which is all where the plan is a product without an activation.

    `training` uses batch statistics, and updates the running ones at once. With `save`, `saved` is
    set to what the backend needs for `backward`; it stays valid for any number of backward calls.
    With `check` all inputs but "z" must be finite; without it they may be anything. `owner` as in
    AddNoiseCall. `noise` is the address of dropout's numbers, needed in training where the plan has
    dropout.
    """

    slices: Slices
    inputs: Tensors  # (n, B, F) float32 by input name, "z" among them, n expanded
    logits: Tensor | None  # out: (n, B, M)
    training: bool
    save: bool
    saved: Any = None
    check: bool = False
    owner: Tensor | None = None
    noise: NoiseAddress | None = None


@dataclass
class HeadCall:
    """Loss of logits and its gradient: loss (n,), error (n, B), d_logits (n, B, M), for K = 1.

    `eps` (n, B, D) is needed where flow is not 0. Each output may be None. `owner` as in
    AddNoiseCall.
    """

    objective: Objective
    embedding: Embedding
    y: Tensor  # (K, n, B) int64, expanded
    logits: Tensor  # (n, B, M)
    eps: Tensor | None
    loss: Tensor | None
    error: Tensor | None
    d_logits: Tensor | None
    u_hat: Tensor | None = None  # (n, B, D)
    owner: Tensor | None = None
    op: str = "denoising_loss"


@dataclass
class Rule:
    """An optimizer for one call: lr (K, n) float64, expanded; weight_decay (n,) float64."""

    optimizer: Optimizer
    lr: Tensor = field(metadata=FRESH)
    weight_decay: Tensor = field(metadata=FRESH)


@dataclass
class BackwardCall:
    """Gradients of a saved forward for given d_logits (n, B, M).

    Outputs: `grads` (n, ...) by parameter name, or None; `d_inputs` (n, B, F) by input name, those
    wanted. With `rule` the parameters are updated in place instead: where `d_logits` is finite,
    `updates` advances and `applied` (n,) bool is true.
    """

    slices: Slices
    saved: Any
    d_logits: Tensor
    grads: Tensors | None
    d_inputs: Tensors
    rule: Rule | None = None
    applied: Tensor | None = None


@dataclass
class UpdateCall:
    """One optimizer step from gradients (n, ...), for the slices where `apply` (n,) bool is true
    and, if there is `applied` (n,) bool, out, which says where that is, every gradient is finite.

    Updates params, m, v and `updates`; the caller updates `draws` and statistics.
    """

    slices: Slices
    grads: Tensors
    apply: Tensor
    rule: Rule
    applied: Tensor | None = None


@dataclass
class TrainOut:
    """Outputs of a training call; None is not computed. All but loss and applied need K = 1.

    Args:
        loss: (K, n) float32, sum over rows of weight * error / rows.
        applied: (K, n) bool; false where the loss is not finite.
        error: (n, B) float32, unweighted.
        d_inputs: (n, B, F) by input name.
        d_signal, d_noise: (n, B): through z.
        d_W_embed: (n, M, D): through u_hat, what the head compares it with, and z.
        grads: (n, ...) by parameter name. Where given, nothing is updated, and
        stats: (n, H) gets the batch's mean and unbiased variance by the name of the running
            statistic.
    """

    loss: Tensor = field(metadata=FRESH)
    applied: Tensor = field(metadata=FRESH)
    error: Tensor | None = field(default=None, metadata=LASTING)
    d_inputs: Tensors = field(default_factory=dict, metadata=LASTING)
    d_signal: Tensor | None = field(default=None, metadata=LASTING)
    d_noise: Tensor | None = field(default=None, metadata=LASTING)
    d_W_embed: Tensor | None = field(default=None, metadata=LASTING)
    grads: Tensors | None = field(default=None, metadata=LASTING)
    stats: Tensors | None = field(default=None, metadata=LASTING)


@dataclass
class TrainCall:
    """K steps of every selected slice: noise, forward, head, backward, update.

    Per slice and step: where the loss is finite, the weights, moments, statistics and `updates`
    move; `draws` advances either way. With `out.grads` (K = 1) gradients are written and no state
    moves, the counters included.

    A GPU trains `blocks_per_launch` slices at once (None: all), which bounds its memory for
    activations and changes no bit.

    `inputs` has every input of the plan but "z": (K, n, B, F) float32 with the last two dimensions
    contiguous and the first two expanded, or a Gather. `z` is None where the kernel draws it, or
    features of it, (n, B, width) float32 (K = 1). Labels, as `inputs`: (K, n, B) int64 expanded, or
    a Gather. noise.draw holds the draws of step k; contents (labels, indices, NaN in x) are checked
    before any write.
    """

    slices: Slices
    noise: NoiseAddress
    noising: Noising
    objective: Objective
    embedding: Embedding
    inputs: dict[str, Tensor | Gather] = field(metadata=FRESH)
    z: Tensor | None = field(metadata=LASTING)
    y: Tensor | Gather = field(metadata=FRESH)
    rule: Rule | None
    B: int
    K: int
    out: TrainOut
    blocks_per_launch: int | None = None
    op: str = "train"
