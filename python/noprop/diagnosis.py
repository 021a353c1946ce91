"""What each block of a DT does for the answer, and which blocks hurt it.

A block has a task of its own, so that its health can be told without the others: its error on
noised labels, beside the error with which its training ended. What it does in the chain is told by
the chain without it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

import noprop_kernels as nk

from . import metrics
from .building import Split
from .calibration import bins_of, calibration_error
from .epochs import Progress
from .merging import check_apart
from .model import Model
from .runs import Run
from .shares import cut
from .training import fit
from .transplant import untrained
from .units import Units

ROWS = 1000  # of the data that are looked at, evenly spread
SIGNS = 4.0  # standard errors beyond which a difference counts
WORSE = 1.2  # an error beyond so many times that of training counts
DEAD = 0.5  # a share of dead units beyond which they count
TIMED_SECONDS = 0.5  # of steps that are timed to tell the cost of a repair

Json = dict[str, Any]


@dataclass(frozen=True)
class BlockHealth:
    """What is found of a block; None where it cannot be told.

    Attributes:
        t: of the block.
        error: its mean |u_hat - u_y|^2 on z_{t-1} ~ q(z_{t-1} | y), of training rows.
        error_deviation: the standard error of this mean.
        trained_error: the same in the last epoch of its training, by metrics.jsonl.
        accuracy: argmax of its logits after it in the chain without noise.
        alone: the same from one draw of z ~ N(0, I).
        without: the accuracy of the answer without this block, in whose place the chain has the
            u_hat of the block before it, or before the first the mean of the embeddings.
        gain: the accuracy of the answer less `without`.
        gain_deviation: the standard error of that difference, row by row.
        calibration: the expected calibration error of its probabilities in the chain.
        dead, hidden: units after a ReLU that are 0 for all rows, of so many.
        not_finite: numbers of its parameters and statistics that are NaN or infinite.
        seconds: that a repair of it would take here, by the pace of some steps.
        reasons: why it hurts; none where it does not.
    """

    t: int
    error: float | None
    error_deviation: float | None
    trained_error: float | None
    accuracy: float | None
    alone: float | None
    without: float | None
    gain: float | None
    gain_deviation: float | None
    calibration: float | None
    dead: int
    hidden: int
    not_finite: int
    seconds: float | None
    reasons: list[str]


@dataclass(frozen=True)
class Diagnosis:
    """Of a run.

    Attributes:
        blocks: of each block that it has.
        accuracy: of the answer on the rows; None where blocks are missing.
        rows: looked at: held out where there are such, else of the training's.
        train_seconds: of the run.
    """

    blocks: list[BlockHealth]
    accuracy: float | None
    rows: int
    train_seconds: float

    @property
    def hurt(self) -> Units:
        """The blocks that hurt."""
        return Units.of(block.t for block in self.blocks if block.reasons)

    def to_json(self) -> Json:
        return asdict(self) | {"hurt": list(self.hurt)}


def diagnose(run: Run, split: Split) -> Diagnosis:
    """Looks at each block that a run has; nothing changes.

    Raises:
        InputError: the run has no blocks that can be told apart.
    """
    check_apart(run)
    model, ended = run.model, trained_errors(run)
    rows, y = some(split.x, split.y)
    watched, labels = rows, y
    if split.x_val is not None and split.y_val is not None:
        watched, labels = some(split.x_val, split.y_val)
    was_training = model.blocks.training
    model.blocks.eval()  # running statistics: nothing may change
    try:
        found = {t: own_task(model, t, rows, y) for t in model.held}
        chain = None if model.missing else Chain(model, watched, labels)
        noise = torch.randn(
            len(watched), model.blocks.D, generator=torch.Generator("cpu").manual_seed(0),
            dtype=torch.float32, device="cpu",
        )  # fmt: skip
        alone = accuracies_alone(model, watched, labels, noise)
    finally:
        model.blocks.train(was_training)
    health = []
    for i, t in enumerate(model.held):
        facts = found[t] | {"trained_error": ended.get(t), "alone": alone[i]}
        facts |= chain_facts(chain, t)
        seconds = cost(run, Units.of([t]), split) if i == 0 else health[0].seconds
        health.append(BlockHealth(t=t, **facts, seconds=seconds, reasons=reasons(facts)))
    return Diagnosis(
        health,
        None if chain is None else chain.right.double().mean().item(),
        len(watched),
        sum(share.progress.seconds for share in run.shares),
    )


def some(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """At most ROWS rows, evenly spread: files may be sorted."""
    chosen = torch.arange(0, len(x), -(-len(x) // ROWS), dtype=torch.int64, device="cpu")
    return x[chosen], y[chosen]


def trained_errors(run: Run) -> dict[int, float | None]:
    """The error of each block in the last epoch of its training that metrics.jsonl has."""
    errors: dict[int, float | None] = {}
    for line in metrics.read(run.folder):
        known = line.get("error")
        units = line.get("units", range(1, run.model.blocks.T + 1))
        if isinstance(known, list) and isinstance(units, list | range):
            errors |= dict(zip((t for t in units if isinstance(t, int)), known, strict=False))
    return errors


def embeddings(model: Model) -> Tensor:
    """(M, D)."""
    if model.W_embed is not None:
        return model.W_embed
    return torch.eye(model.blocks.M, dtype=torch.float32, device=model.device)


def own_task(model: Model, t: int, rows: Tensor, y: Tensor) -> Json:
    """What a block tells by itself."""
    blocks, W = model.blocks, embeddings(model)
    assert isinstance(blocks, nk.DenoisingBlocks)  # as every run's are
    x, labels = model.features(rows), y.to(model.device)
    tensors = [value[model.held.index(t)] for value in numbers(blocks)]
    not_finite = sum(int((~value.isfinite()).sum()) for value in tensors)
    with torch.no_grad():
        z = blocks.add_noise(labels, blocks=t)
        probs = blocks.forward(x, z, blocks=t)[0].softmax(-1)
        errors = (probs @ W - W[labels]).square().sum(-1).double()
        active = Active(blocks.block(t))
        given = {name: z[0] if name == "z" else x for name in blocks.plan.inputs}
        active.run(*given.values())
    return {
        "error": finite(errors.mean().item()),
        "error_deviation": finite(errors.std().item() / math.sqrt(len(errors))),
        "dead": active.dead,
        "hidden": active.hidden,
        "not_finite": not_finite,
    }


def numbers(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    """Parameters and running statistics, slices first."""
    names = {*blocks.plan.parameters(), *blocks.plan.statistics()}
    return [value for name, value in blocks.state_dict().items() if name in names]


class Active(fx.Interpreter):
    """Counts the units after each ReLU of a block; of a convolution a unit is a channel."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.dead = self.hidden = 0

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_function(target, args, kwargs)
        if target is torch.relu:
            over = [axis for axis in range(result.ndim) if axis != 1]
            alive = (result != 0).sum(over) > 0
            self.hidden += alive.numel()
            self.dead += int((~alive).sum())
        return result


def accuracies_alone(model: Model, rows: Tensor, y: Tensor, noise: Tensor) -> list[float]:
    """Of each block's logits from pure noise."""
    with torch.no_grad():
        logits = model.blocks.forward(model.features(rows), noise.to(model.device))
    return (logits.argmax(-1) == y.to(model.device)).double().mean(-1).tolist()


class Chain:
    """The chain without noise, and the chain without each block.

    Attributes:
        logits: (B, M) of each block in the whole chain.
        right: (B,) bool, whether the answer is.
        right_without: of each block the same without it.
    """

    def __init__(self, model: Model, rows: Tensor, y: Tensor) -> None:
        self.model, self.y = model, y.to(model.device)
        self.x, self.W = model.features(rows), embeddings(model)
        table = model.blocks.goal.table("ancestral", model.blocks.T)
        self.a, self.b = table.a.tolist(), table.b.tolist()
        mean = self.W.mean(0).expand(len(self.x), -1)
        self.z, self.u_hat, self.logits = [torch.zeros_like(mean)], [mean], []
        for t in model.held:
            logits, u_hat = self.answer(t, self.z[-1])
            self.logits.append(logits)
            self.u_hat.append(u_hat)
            self.z.append(self.step(t, u_hat, self.z[-1]))
        self.right = self.rightness(self.z[-1])
        self.right_without = {t: self.rightness(self.without(t)) for t in model.held}

    def answer(self, t: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and u_hat of block t."""
        with torch.no_grad():
            logits = self.model.blocks.forward(self.x, z, blocks=t)[0]
        return logits, logits.softmax(-1) @ self.W

    def step(self, t: int, u_hat: Tensor, z: Tensor) -> Tensor:
        return self.a[t - 1] * u_hat + self.b[t - 1] * z

    def without(self, t: int) -> Tensor:
        """The last z where the u_hat before block t stands in its place."""
        z = self.step(t, self.u_hat[t - 1], self.z[t - 1])
        for later in range(t + 1, self.model.blocks.T + 1):
            z = self.step(later, self.answer(later, z)[1], z)
        return z

    def rightness(self, z: Tensor) -> Tensor:
        return self.model.scores(z).argmax(-1) == self.y


def chain_facts(chain: Chain | None, t: int) -> Json:
    """What a block does in the chain; None without a whole one."""
    if chain is None:
        names = ("accuracy", "without", "gain", "gain_deviation", "calibration")
        return dict.fromkeys(names)
    logits, rows = chain.logits[t - 1], len(chain.y)
    right, without = chain.right, chain.right_without[t]
    better, worse = int((right & ~without).sum()), int((without & ~right).sum())
    return {
        "accuracy": (logits.argmax(-1) == chain.y).double().mean().item(),
        "without": without.double().mean().item(),
        "gain": (better - worse) / rows,
        "gain_deviation": math.sqrt(better + worse) / rows,
        "calibration": calibration(logits.softmax(-1), chain.y),
    }


def calibration(probs: Tensor, y: Tensor) -> float | None:
    """The expected calibration error; None where a probability is not finite."""
    confidence, guess = probs.double().max(-1)
    if not bool(confidence.isfinite().all()):
        return None
    return calibration_error(bins_of(confidence, guess == y))


def reasons(facts: Json) -> list[str]:
    """Why a block hurts."""
    found = []
    if facts["not_finite"]:
        found.append(f"{facts['not_finite']:,} of its numbers are not finite")
    error, trained = facts["error"], facts["trained_error"]
    if error is not None and trained is not None:
        if error > WORSE * trained + SIGNS * facts["error_deviation"]:
            found.append(f"its error is {error:.3g}, where its training ended with {trained:.3g}")
    gain = facts["gain"]
    if gain is not None and gain < -SIGNS * facts["gain_deviation"]:
        found.append(f"without it {-gain:.2%} more of the rows are answered right")
    if facts["hidden"] and facts["dead"] > DEAD * facts["hidden"]:
        found.append(f"{facts['dead']} of its {facts['hidden']} hidden units are dead")
    return found


def cost(run: Run, units: Units, split: Split) -> float | None:
    """Seconds of a repair here, by the pace of some steps after the first call; None where there
    are too few to tell."""
    ((share,), _) = cut(run.shares, units)
    model = untrained(run.model, run.model.head, units, share.seeds[0]).to(run.model.device)
    at: list[tuple[int, float]] = []

    def on_call(progress: Progress, samples: int) -> None:
        at.append((progress.epoch * steps + progress.block_steps, progress.seconds))

    steps = -(-len(split.x) // run.settings.batch_size)
    fit(
        model,
        split.x,
        run.labels(split.y),
        **run.fit_options(replace(share, progress=Progress())),
        nonfinite="skip",
        stop=lambda: len(at) > 1 and at[-1][1] - at[0][1] > TIMED_SECONDS,
        on_call=on_call,
        say=ignore,
    )
    if len(at) < 2:
        return None
    pace = (at[-1][1] - at[0][1]) / (at[-1][0] - at[0][0])
    return pace * steps * share.progress.epoch


ignore: Callable[[str], None] = lambda line: None  # noqa: E731


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summary(blocks: Sequence[BlockHealth]) -> list[str]:
    """A line for each block that hurts."""
    return [f"block {block.t}: {'; '.join(block.reasons)}" for block in blocks if block.reasons]
