"""Accuracy of the answer, of each block in the chain and alone, and of the paper's protocol.

`accuracy_per_block` is block t's answer in the chain without noise, `accuracy_alone` the same
block's answer from pure noise. Where the two are alike, the chain adds nothing to a single block.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from noprop_kernels import philox

from .inputs import Array
from .model import Model, in_parts

SAMPLES = 5  # the paper's runs of inference
ROWS_AT_ONCE = 512
POINT = 0.01  # a head may be this much below its last block


@dataclass(frozen=True)
class Evaluation:
    """Accuracies as fractions.

    Attributes:
        test_accuracy: the answer's, as `Model.predict` gives it: the chain without noise.
        accuracy_per_block: argmax of block t's logits after t blocks of that chain.
        accuracy_last_block: the last of accuracy_per_block, that of the answer's probabilities.
        accuracy_alone: argmax of block t's logits on one draw of z ~ N(0, I), with no other block
            before it.
        paper_accuracy, paper_accuracy_std: by the paper's protocol, the head on z_T of the chain
            with noise in every step: mean and deviation over the samples; None without a head, the
            deviation also with one sample.
        paper_accuracy_last_block: argmax of the last block's logits in that chain.
        samples: how often the paper's protocol draws its noise.
        rows: rows of the data.
    """

    test_accuracy: float
    accuracy_per_block: list[float]
    accuracy_last_block: float
    accuracy_alone: list[float]
    paper_accuracy: float | None
    paper_accuracy_std: float | None
    paper_accuracy_last_block: float | None
    samples: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def head_warning(result: dict[str, Any]) -> str | None:
    """A warning where the head is more than a point below the last block of its own chain, else
    None.

    Args:
        result: `Evaluation.to_json`, of rows that were not trained on.
    """
    head, last = result["paper_accuracy"], result["paper_accuracy_last_block"]
    if head is None or head >= last - POINT:
        return None
    return (
        f"the head of the paper's protocol answers {head:.2%} right, the last block of the same "
        f"chain {last:.2%}: the head needs more steps; the answer does not depend on it"
    )


def evaluate(
    model: Model, x: Any, y: Tensor, *, samples: int = SAMPLES, seed: int | None = None
) -> Evaluation:
    """Accuracies of `model` on (x, y). Labels are compared with answers and used for nothing else.

    Args:
        model: its answer is evaluated, and the paper's protocol where it has a head.
        x: the rows, as `Model.predict` takes them.
        y: (rows,) int64.
        samples: S, draws of the paper's protocol, at least 1; the answer has no noise.
        seed: of the draws; None is the model's own.

    Raises:
        ValueError: samples is below 1, there are no rows, or an argument does not fit.
    """
    x = model.format_of(x).array(x, "evaluate")
    if samples < 1 or len(x) == 0 or len(x) != len(y):
        raise ValueError(
            f"evaluate: samples must be at least 1 and x and y have the same rows, at least 1, got "
            f"{samples} samples, {len(x)} and {len(y)} rows"
        )
    was_training = model.blocks.training
    model.blocks.eval()  # running statistics: an answer must not change them
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
    }
    per_block = shares["chain"].tolist()
    head, last = shares.get("head"), shares.get("head_chain")
    return Evaluation(
        test_accuracy=shares["answer"].item(),
        accuracy_per_block=per_block,
        accuracy_last_block=per_block[-1],
        accuracy_alone=shares["alone"].tolist(),
        paper_accuracy=None if head is None else head.mean().item(),
        paper_accuracy_std=None if head is None or samples == 1 else head.std().item(),
        paper_accuracy_last_block=None if last is None else last.mean().item(),
        samples=samples,
        rows=len(x),
    )


def _count(
    model: Model, x: Array, y: Tensor, samples: int, seed: int | None, first_row: int
) -> dict[str, Tensor]:
    """Counts of correct rows, by name: of the answer (); of the blocks in its chain and alone, (T,)
    each; of the head and of the last block before it, (S,) each.
    """
    blocks, features = model.blocks, model.features(x, first_row)
    y = y.to(features.device)

    def right(logits: Tensor) -> Tensor:
        return (logits.argmax(-1) == y).sum(-1).cpu()

    chain = blocks.predict(features, noise=False, keep="all")
    with torch.no_grad():
        alone = blocks.forward(features, _z_0(model, len(x), seed, first_row))
    counts = {
        "answer": right(model.scores(chain.z[-1, 0, 0])),
        "chain": right(chain.logits[:, 0, 0]),
        "alone": right(alone),
    }
    if model.head is not None:
        noisy = blocks.predict(features, samples=samples, seed=seed, first_row=first_row)
        counts["head"] = right(model.read(noisy.z[:, 0]))
        counts["head_chain"] = right(noisy.logits[:, 0])
    return counts


def _z_0(model: Model, rows: int, seed: int | None, first_row: int) -> Tensor:
    """(B, D): z_0 of the first sample of a chain with noise."""
    own = model.blocks.seeds[:1] if seed is None else model.blocks.seeds.new_tensor([seed])
    at = (philox.STREAM_INFERENCE, 0, 0, philox.BLOCK_Z_0, rows, model.blocks.D)
    return philox.normal(own.to(model.device), *at, first_row=first_row)[0]
