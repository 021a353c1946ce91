"""A run of digits that is trained in a moment, as its workers see it."""

from pathlib import Path

import torch

from noprop import data
from noprop.building import Split, build
from noprop.engines.job import Job, arrays_of
from noprop.engines.work import Work
from noprop.runs import Run
from noprop.settings import Settings
from noprop.shares import Share

SETTINGS = Settings(
    data="digits", hidden=8, T=3, head="softmax", epochs=3, batch_size=256, weight_decay=1e-3
)


class Problem:
    """One run, trained undisturbed or by workers.

    Attributes:
        settings, content, split: of the run.
        place: a folder.
    """

    def __init__(self, place: Path, settings: Settings = SETTINGS) -> None:
        self.settings, self.place = settings, place
        self.content = data.load("digits")
        self.split = Split.of(self.content, 0)

    def run(self, name: str) -> Run:
        """A new one."""
        model = build(self.settings, self.content, self.split, None)
        share = Share(model.units, self.settings.each_seed, self.settings.epochs)
        return Run(
            self.place / name, self.settings, model, [share], self.content.fingerprint(), None
        )

    def undisturbed(self) -> Run:
        run = self.run("undisturbed")
        run.train(
            self.split,
            run.shares[0],
            stop=lambda: False,
            on_call=lambda samples: None,
            on_epoch=lambda epoch, accuracy: None,
            say=lambda line: None,
        )
        return run

    def job(self, checkpoint_seconds: float = 0.0) -> Job:
        return Job.of(
            self.run("run"),
            self.content,
            self.split,
            self.place / "store",
            checkpoint_seconds=checkpoint_seconds,
        )

    def work(self, checkpoint_seconds: float = 0.0) -> Work:
        return Work(self.job(checkpoint_seconds), arrays_of(self.split))


def same_bits(one: Run, other: Run) -> bool:
    a, b = one.model.tensors(), other.model.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
