"""Accuracy of the answer, of each block in the chain and alone, and of the paper's protocol.

`accuracy_per_block` is block t's answer in the chain without noise, `accuracy_alone` the same
block's answer from pure noise. Where the two are alike, the chain adds nothing to a single block.
CT and FM have one block: in their place are `accuracy_by_steps` of the sampler, and
`accuracy_by_t` on its way. Where the former do not grow, one step would do.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import philox

from .inference import in_parts
from .inputs import Array
from .model import Model

SAMPLES = 5  # the paper's runs of inference
ROWS_AT_ONCE = 512
STEPS = (1, 2, 5, 10, 100, 1000)  # of the sampler of a CT or FM, without noise
NOISY_STEPS = (100, 1000)
TENTHS = 10  # of t; they divide STEPS_ON_THE_WAY
STEPS_ON_THE_WAY = 100
POINT = 0.01  # a head may be this much below its last block


@dataclass(frozen=True)
class Evaluation:
    """Accuracies as fractions.

    Attributes:
        test_accuracy: the answer's, as `Model.predict` gives it: the chain without noise.
        accuracy_per_block: argmax of block t's logits after t blocks of that chain; None of CT and
            FM, as the next two.
        accuracy_last_block: the last of accuracy_per_block, that of the answer's probabilities.
        accuracy_alone: argmax of block t's logits on one draw of z ~ N(0, I), with no other block
            before it.
        paper_accuracy, paper_accuracy_std: by the paper's protocol, the head on the last z of the
            chain with noise in every step, of FM the nearest embedding: mean and deviation over the
            samples; None where DT and CT have no head, the deviation also with one sample.
        paper_accuracy_last_block: argmax of the last logits in that chain; None of FM, where they
            are a velocity.
        samples: how often the paper's protocol draws its noise.
        rows: rows of the data.
        accuracy_by_steps: of CT and FM, the answer's with other numbers of steps, by their number.
        accuracy_by_steps_with_noise: the same of the sampler of the paper's protocol, the mean over
            the samples.
        accuracy_by_t: of CT and FM, the likeliest class given z_t of the chain without noise, at
            t = 0.1, 0.2, .. 1.
    """

    test_accuracy: float
    accuracy_per_block: list[float] | None
    accuracy_last_block: float | None
    accuracy_alone: list[float] | None
    paper_accuracy: float | None
    paper_accuracy_std: float | None
    paper_accuracy_last_block: float | None
    samples: int
    rows: int
    accuracy_by_steps: dict[int, float] | None = None
    accuracy_by_steps_with_noise: dict[int, float] | None = None
    accuracy_by_t: list[float] | None = None

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        for name in ("accuracy_by_steps", "accuracy_by_steps_with_noise"):
            if record[name] is not None:  # JSON's keys are texts
                record[name] = {str(steps): share for steps, share in record[name].items()}
        return record


def head_warning(result: dict[str, Any]) -> str | None:
    """A warning where the head is more than a point below the last block of its own chain, else
    None.

    Args:
        result: `Evaluation.to_json`, of rows that were not trained on.
    """
    head, last = result["paper_accuracy"], result["paper_accuracy_last_block"]
    if head is None or last is None or head >= last - POINT:
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
        model: its answer is evaluated, and the paper's protocol where it has a head. Of several
            replicas `model.replica(r)` is one.
        x: the rows, as `Model.predict` takes them.
        y: (rows,) int64.
        samples: S, draws of the paper's protocol, at least 1; the answer has no noise.
        seed: of the draws; None is the model's own.

    Raises:
        ValueError: samples is below 1, there are no rows, or an argument does not fit.
    """
    model.check_single("evaluate")
    model.check_whole("evaluate")
    seed = model.seeds[0] if seed is None else seed
    x = model.format_of(x).array(x, "evaluate")
    if samples < 1 or len(x) == 0 or len(x) != len(y):
        raise ValueError(
            f"evaluate: samples must be at least 1 and x and y have the same rows, at least 1, got "
            f"{samples} samples, {len(x)} and {len(y)} rows"
        )
    count = _count_sampled if model.variant.sampled else _count_blocks
    was_training = model.blocks.training
    model.blocks.eval()  # running statistics: an answer must not change them
    try:
        counts = [
            count(model, rows, y[first_row : first_row + len(rows)], samples, seed, first_row)
            for first_row, rows in in_parts(x, ROWS_AT_ONCE)
        ]
    finally:
        model.blocks.train(was_training)
    shares = {
        name: torch.stack([part[name] for part in counts]).sum(0).double() / len(x)
        for name in counts[0]
    }
    figures: dict[str, Any] = dict.fromkeys(
        ("accuracy_per_block", "accuracy_last_block", "accuracy_alone")
    )
    if "chain" in shares:
        per_block, alone = shares["chain"].tolist(), shares["alone"].tolist()
        figures = dict(zip(figures, (per_block, per_block[-1], alone), strict=True))
    else:
        noisy = shares["noisy"].mean(-1).tolist()
        figures["accuracy_by_steps"] = dict(zip(STEPS, shares["steps"].tolist(), strict=True))
        figures["accuracy_by_steps_with_noise"] = dict(zip(NOISY_STEPS, noisy, strict=True))
        figures["accuracy_by_t"] = shares["t"].tolist()
    paper, last = shares.get("paper"), shares.get("last")
    return Evaluation(
        test_accuracy=shares["answer"].item(),
        paper_accuracy=None if paper is None else paper.mean().item(),
        paper_accuracy_std=None if paper is None or samples == 1 else paper.std().item(),
        paper_accuracy_last_block=None if last is None else last.mean().item(),
        samples=samples,
        rows=len(x),
        **figures,
    )


def _count_blocks(
    model: Model, x: Array, y: Tensor, samples: int, seed: int, first_row: int
) -> dict[str, Tensor]:
    """Counts of correct rows of a DT, by name: of the answer (); of the blocks in its chain and
    alone, (T,) each; of the head and of the last block before it, (S,) each.
    """
    blocks, features = model.blocks, model.features(x, first_row)
    y = y.to(features.device)
    chain = blocks.predict(features, noise=False, keep="all")
    with torch.no_grad():
        alone = blocks.forward(features, drawn_z_0(model, len(x), seed, first_row))
    counts = {
        "answer": _right(model.scores(chain.z[-1, 0, 0]), y),
        "chain": _right(chain.logits[:, 0, 0], y),
        "alone": _right(alone, y),
    }
    if model.reads:
        noisy = blocks.predict(features, samples=samples, seed=seed, first_row=first_row)
        counts["paper"] = _right(model.read(noisy.z[:, 0]), y)
        counts["last"] = _right(noisy.logits[:, 0], y)
    return counts


def _count_sampled(
    model: Model, x: Array, y: Tensor, samples: int, seed: int, first_row: int
) -> dict[str, Tensor]:
    """Counts of correct rows of a CT or FM, by name: of the answer (); by the steps of its sampler,
    (len(STEPS),); on its way, (TENTHS,); with noise (len(NOISY_STEPS), S); and of the paper's
    protocol, and of the last logits before it, (S,) each.
    """
    blocks, features = model.blocks, model.features(x, first_row)
    y = y.to(features.device)
    quiet, paper = model.sampler, model.paper_sampler

    def chain(kind: str, steps: int, **options: Any) -> nk.Prediction:
        return blocks.predict(features, sampler=kind, steps=steps, **options)

    def by_steps(steps: int) -> Tensor:
        z = chain(quiet.kind, steps, noise=False).z[0, 0]
        return _right(model.scores(z), y)

    way = chain(quiet.kind, STEPS_ON_THE_WAY, noise=False, keep=TENTHS).z[:, 0, 0]
    tenths = [model.scores(z, (i + 1) / TENTHS) for i, z in enumerate(way)]
    draws = {"samples": samples, "seed": seed, "first_row": first_row}
    noisy = {steps: chain(paper.kind, steps, **draws) for steps in NOISY_STEPS}
    counts = {
        "answer": by_steps(quiet.steps),
        "steps": torch.stack([by_steps(steps) for steps in STEPS]),
        "t": torch.stack([_right(scores, y) for scores in tenths]),
        "noisy": torch.stack([_right(model.scores(each.z[:, 0]), y) for each in noisy.values()]),
    }
    if model.reads:
        known = noisy.get(paper.steps)
        last = chain(paper.kind, paper.steps, **draws) if known is None else known
        counts["paper"] = _right(model.read(last.z[:, 0]), y)
        if model.variant.softmax:
            counts["last"] = _right(last.logits[:, 0], y)
    return counts


def _right(logits: Tensor, y: Tensor) -> Tensor:
    """How often the argmax of (..., B, M) is y."""
    return (logits.argmax(-1) == y).sum(-1).cpu()


def drawn_z_0(model: Model, rows: int, seed: int, first_row: int) -> Tensor:
    """(B, D): z_0 of the first sample of a chain with noise."""
    own = model.blocks.seeds.new_tensor([seed])
    at = (philox.STREAM_INFERENCE, 0, 0, philox.BLOCK_Z_0, rows, model.blocks.D)
    return philox.normal(own.to(model.device), *at, first_row=first_row)[0]
