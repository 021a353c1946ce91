"""The gain from denoising: `python -m bench local [--data mnist] [--epochs 10] [--quick]`.

The same network on the same batches, learning rates and first weights, with three local losses:

    denoising      NoProp-DT's squared error of u_hat, of x and z_{t-1}
    cross_entropy  -log softmax(logits)[y], of x and the same z_{t-1}
    classifier     -log softmax(logits)[y], of x alone: z is 0, and no block is part of a chain

The first two answer after every block of the chain without noise; blocks of the third each by
themselves, and by the mean of the probabilities of blocks 1 to t.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop.batching import Batches
from noprop.building import Split, build
from noprop.datasets.dataset import Dataset
from noprop.loop import learning_rates
from noprop.settings import Settings
from noprop_kernels import philox
from noprop_kernels.goal import Levels

from ..machine import host
from ..report.cells import aligned
from ..report.lines import Line
from ..report.whole_rows import local_rows
from ..suites import command
from . import training_options

STEPS_A_CALL = 64
ROWS_AT_ONCE = 1000


class CrossEntropy(nk.DT):
    """NoProp-DT's noisy embeddings, under the cross-entropy of the label."""

    head = "cross_entropy"

    def levels(self, t: Tensor) -> Levels:
        levels = super().levels(t)
        return replace(levels, weight=torch.ones_like(levels.weight))


class Classifier(CrossEntropy):
    """The same without an embedding to read: z is 0."""

    def levels(self, t: Tensor) -> Levels:
        levels = super().levels(t)
        nothing = torch.zeros_like(levels.signal)
        return replace(levels, signal=nothing, noise=nothing)


GOALS = {"denoising": nk.DT, "cross_entropy": CrossEntropy, "classifier": Classifier}


class Contender:
    """Blocks under one of the losses."""

    def __init__(self, name: str, content: Dataset, settings: Settings) -> None:
        self.name, self.content, self.settings = name, content, settings
        # the trainer's own; the chain is NoProp-DT's whatever the loss of the blocks
        self.model = build(settings, content, Split.of(content, 0.0), None)
        chain = self.model.blocks
        self.blocks = nk.DenoisingBlocks(
            chain.plan,
            GOALS[name](chain.goal.schedule, eta=settings.eta),
            optimizer=chain.optimizer,
            seed=settings.seed,
        )

    def epoch(self, number: int) -> float:
        """Seconds of one epoch."""
        s, begin, done = self.settings, time.perf_counter(), 0
        batches = Batches(len(self.content.x), s.batch_size, has_norm=False)
        order = philox.permutation(s.seed, number, len(self.content.x))
        while done < batches.steps:
            indices = batches.take(order, done, STEPS_A_CALL)
            first, total = number * batches.steps + done, s.epochs * batches.steps
            lr = learning_rates(s.lr, s.lr_schedule, first, len(indices), total)
            self.blocks.train_steps(
                self.content.x, self.content.y, indices, lr=lr, normalize=self.model.normalize
            )
            done += len(indices)
        return time.perf_counter() - begin

    @torch.no_grad()
    def accuracies(self) -> dict[str, list[float] | None]:
        """Accuracy on the test rows, by block."""
        trained = dict(self.blocks.named_parameters())
        for name, value in self.model.blocks.named_parameters():
            value.copy_(trained[name])
        x, y = self.model.features(self.content.x_test), self.content.y_test
        parts = [
            self.answers(rows) == labels
            for rows, labels in zip(x.split(ROWS_AT_ONCE), y.split(ROWS_AT_ONCE), strict=True)
        ]
        shares = torch.cat(parts, 2).double().mean(2)  # (kinds, T)
        mean = shares[1].tolist() if self.name == "classifier" else None
        return {"accuracy_per_block": shares[0].tolist(), "accuracy_of_mean": mean}

    def answers(self, x: Tensor) -> Tensor:
        """(1, T, B) classes after every block; of the classifier (2, T, B): alone, by the mean."""
        if self.name != "classifier":
            logits = self.model.blocks.predict(x, noise=False, keep="all").logits[:, 0, 0]
            return logits.argmax(2)[None]
        logits = self.blocks.forward(x, torch.zeros(len(x), self.blocks.D))
        means = logits.softmax(2).cumsum(0)
        return torch.stack([logits.argmax(2), means.argmax(2)])


def measure(content: Dataset, settings: Settings, threads: int) -> list[Line]:
    """Trains all three, epoch by epoch in turns; returns a line each."""
    torch.set_num_threads(threads)
    contenders = [Contender(name, content, settings) for name in GOALS]
    seconds: dict[str, float] = dict.fromkeys(GOALS, 0.0)
    for number in range(settings.epochs):
        for contender in contenders:
            seconds[contender.name] += contender.epoch(number)
    base = host.circumstances(settings.data, threads)
    base |= {"kind": "local", "maths": "adamw", "K": None, "settings": vars(settings)}
    return [
        base
        | contender.accuracies()
        | {"contender": contender.name, "seconds": seconds[contender.name]}
        for contender in contenders
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options, settings, content = training_options.parsed(
        training_options.parser("local", __doc__), arguments
    )
    lines = measure(content, settings, options.threads)
    print(aligned(local_rows(lines)))
    command.append(options.out, lines)
    return 0
