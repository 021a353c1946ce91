"""Records of inference, as calls.py has them: a chain of evaluations, and the call that runs it."""

from dataclasses import dataclass

from torch import Tensor

from .calls import Embedding, Slices, Tensors


@dataclass
class Chain:
    """E evaluations of a replica's network, which lead from z_0 to the last z.

    Evaluation e runs block e of E blocks, or the only block there is, at z, and gives
    k = a u_hat + b z. Where it ends a step, z = keep * base + total + weight * k + sqrt_c * eps:
    base is z as the step began, total the sum of weight * k of the step's earlier evaluations. Any
    other evaluation adds weight * k to total, and z = base + next * k is where the next one runs.
    The last one ends a step. DT's chain is E = T steps with weight 1 and keep 0.

    Args:
        a, b, sqrt_c, weight, next, keep: (E,) float32, finite.
        ends: (E,) bool.
        t: (E, F) float32, the features of the plan's input "t", the same for all rows; None where
            the caller's inputs have all of the plan's but "z".
    """

    a: Tensor
    b: Tensor
    sqrt_c: Tensor
    weight: Tensor
    next: Tensor
    keep: Tensor
    ends: Tensor
    t: Tensor | None = None


@dataclass
class PredictCall:
    """The chain z_t = a u_hat + b z_{t-1} + sqrt(c) eps of each replica (eq. 3), or a sampler's.

    The n = R * L slices of `slices.index` are R replicas of L blocks in order; L is 1, or the
    chain's E. z_0 is drawn from stream 2 with block 0xFFFF, the noise of step i (0, 1, ...) with
    block i; draw = index of the sample. Without noise z_0 is 0, its mean.

    Args:
        inputs: (R, B, F) float32 by input name, without "z" and without "t" where the chain has it;
            the first dimension may be expanded.
        head: "softmax" | "linear".
        first_row: position of row 0 in the whole batch.
        add_noise: false omits sqrt(c) eps and begins at z_0 = 0: nothing is random.

    Outputs: logits (kept, S, R, B, M), u_hat and z (kept, S, R, B, D), after every E / kept
        evaluations, each of which ends a step; kept divides E. Inputs must be finite; `owner` as in
        AddNoiseCall.
    """

    slices: Slices
    seeds: Tensor  # (R,) int64
    inputs: Tensors
    chain: Chain
    head: str
    embedding: Embedding
    first_row: int
    add_noise: bool
    logits: Tensor
    u_hat: Tensor
    z: Tensor
    owner: Tensor | None = None
