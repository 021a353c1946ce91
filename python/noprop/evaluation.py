"""The paper's protocol: the chain with noise in every step, several times; and what it adds.

`accuracy_per_block` is block t's answer in the chain, `accuracy_alone` the same block's answer
from pure noise. Where the two are alike, the chain adds nothing to a single block.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .export import z_0
from .model import Model, in_parts

SAMPLES = 5  # the paper's runs of inference
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Evaluation:
    """Accuracies as fractions, means over the samples.

    Attributes:
        test_accuracy, test_accuracy_std: head on z_T, and its deviation over the samples.
        accuracy_per_block: argmax of block t's logits after t blocks of the chain.
        accuracy_per_block_no_noise: the same in a chain without noise in any step, for one z_0.
        accuracy_alone: argmax of block t's logits on z ~ N(0, I), with no other block before it.
        accuracy_last_block: the last of accuracy_per_block.
        accuracy_no_last_noise: head on z_T without the last step's noise.
        accuracy_no_noise: head on z_T of a chain without noise in any step, for one z_0.
        samples: how often the chain was drawn.
        rows: rows of the data.
    """

    test_accuracy: float
    test_accuracy_std: float
    accuracy_per_block: list[float]
    accuracy_per_block_no_noise: list[float]
    accuracy_alone: list[float]
    accuracy_last_block: float
    accuracy_no_last_noise: float
    accuracy_no_noise: float
    samples: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: Model, x: Tensor, y: Tensor, *, samples: int = SAMPLES, seed: int | None = None
) -> Evaluation:
    """Accuracies of `model` on (x, y). Labels are compared with answers and used for nothing else.

    The last block's answer and the head's differ by two things: z_T = a u_hat + b z_{T-1} +
    sqrt(c) eps carries noise that `accuracy_no_last_noise` leaves out, and z_{T-1} beside u_hat.

    Args:
        model: blocks and head.
        x: (rows, F) uint8 or float32.
        y: (rows,) int64.
        samples: S, at least 1.
        seed: of the draws; None is the model's own.

    Raises:
        ValueError: samples is below 1, or there are no rows.
    """
    if samples < 1 or len(x) == 0 or len(x) != len(y):
        raise ValueError(
            f"evaluate: samples must be at least 1 and x and y have the same rows, at least 1, got "
            f"{samples} samples, {len(x)} and {len(y)} rows"
        )
    was_training = model.blocks.training
    model.blocks.eval()  # running statistics, which answers must not move
    try:
        counts = [
            _count(model, rows, y[first_row : first_row + len(rows)], samples, seed, first_row)
            for first_row, rows in in_parts(x, ROWS_AT_ONCE)
        ]
    finally:
        model.blocks.train(was_training)
    shares = {
        name: torch.stack([part[name] for part in counts]).sum(0).double() / len(x)
        for name in counts[0]
    }  # (S,) or (T, S) each
    per_block = shares["chain"].mean(1).tolist()
    return Evaluation(
        test_accuracy=shares["final"].mean().item(),
        test_accuracy_std=shares["final"].std().item() if samples > 1 else 0.0,
        accuracy_per_block=per_block,
        accuracy_per_block_no_noise=shares["quiet_chain"].mean(1).tolist(),
        accuracy_alone=shares["alone"].mean(1).tolist(),
        accuracy_last_block=per_block[-1],
        accuracy_no_last_noise=shares["no_last_noise"].mean().item(),
        accuracy_no_noise=shares["no_noise"].mean().item(),
        samples=samples,
        rows=len(x),
    )


def _count(
    model: Model, x: Tensor, y: Tensor, samples: int, seed: int | None, first_row: int
) -> dict[str, Tensor]:
    """Right answers among the rows: (S,) of the head, (T, S) of the blocks, by name."""
    blocks, features = model.blocks, model.features(x)
    y = y.to(features.device)

    def right(logits: Tensor) -> Tensor:
        return (logits.argmax(-1) == y).sum(-1).cpu()

    draws = {"samples": samples, "seed": seed, "first_row": first_row}
    chain = blocks.predict(features, noise=True, keep="all", **draws)
    quiet = blocks.predict(features, noise=False, keep="all", seed=seed, first_row=first_row)
    u_hat, z = chain.u_hat[:, :, 0], chain.z[:, :, 0]  # (T, S, B, D)
    start = z_0(model, len(x), **draws)  # block 1 alone answers as block 1 of the chain
    T, schedule = blocks.goal.T, blocks.goal.schedule
    before_last = z[-2] if T > 1 else start
    with torch.no_grad():
        alone = [right(blocks.forward(features, start[s])) for s in range(samples)]  # (T,) each
    return {
        "chain": right(chain.logits[:, :, 0]),
        "alone": torch.stack(alone, 1),
        "final": right(model.read(z[-1])),
        "no_last_noise": right(
            model.read(schedule.a[T].item() * u_hat[-1] + schedule.b[T].item() * before_last)
        ),
        "quiet_chain": right(quiet.logits[:, :, 0]),  # (T, 1)
        "no_noise": right(model.read(quiet.z[-1, :, 0])),  # (1,)
    }
