"""The shares of a run: units that have lived the same life so far, and are trained together.

A run that was trained as a whole has one share. Units that were trained elsewhere, again, or for
longer have others.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .epochs import Progress
from .errors import InputError
from .json_records import Json, is_a
from .json_records import field as entry
from .units import Units, units_from_json

OF_BLOCKS = ("loss_sum", "skipped", "seen")  # lists of a Progress with a number for each block
OF_HEAD = ("head_loss_sum", "head_skipped")


@dataclass
class Share:
    """Some units and their life.

    Attributes:
        units: of the share.
        seeds: of each replica: of the units' weights and noise, of the order of their rows, and of
            the augmentation.
        epochs: at their end, over which their learning rate falls.
        progress: how far they are.
        versions: those that trained them; None before that.
    """

    units: Units
    seeds: list[int]
    epochs: int
    progress: Progress = field(default_factory=Progress)
    versions: Json | None = None

    @property
    def finished(self) -> bool:
        return self.progress.epoch >= self.epochs

    def part(self, units: Units) -> "Share":
        """The share of some of its units, of one replica, with their part of the time."""
        done, count = self.progress, len(self.units)
        places = [self.units.blocks.index(t) for t in units.blocks]
        lists: dict[str, Any] = {
            name: [getattr(done, name)[i] for i in places] if getattr(done, name) else []
            for name in OF_BLOCKS
        }
        lists |= {name: list(getattr(done, name)) if units.head else [] for name in OF_HEAD}
        progress = replace(
            done,
            **lists,
            seconds=done.seconds * len(units) / count,
            epoch_seconds=done.epoch_seconds * len(units) / count,
            block_steps=done.block_steps if units.blocks else 0,
            head_steps=done.head_steps if units.head else 0,
        )
        return replace(self, units=units, seeds=list(self.seeds), progress=progress)

    def to_json(self) -> Json:
        return asdict(self) | {"units": list(self.units)}

    @classmethod
    def from_json(cls, record: Any) -> "Share":
        """
        Raises:
            InputError: it was not written by `to_json`.
        """
        if not isinstance(record, dict):
            raise InputError(f"a run's share must be a record, got {record!r}")
        seeds, epochs = entry(record, "seeds", list), entry(record, "epochs", int)
        if not all(is_a(seed, int) and seed >= 0 for seed in seeds) or len(seeds) != 1:
            raise InputError(f"the seeds of a run's share must be one number, got {seeds}")
        if epochs < 1:
            raise InputError(f"the epochs of a run's share must be at least 1, got {epochs}")
        share = cls(
            units_from_json(record.get("units")),
            seeds,
            epochs,
            progress_from_json(entry(record, "progress", dict)),
            None if record.get("versions") is None else entry(record, "versions", dict),
        )
        lengths = {name: len(share.units.blocks) for name in OF_BLOCKS} | dict.fromkeys(OF_HEAD, 1)
        for name, length in lengths.items():
            if len(getattr(share.progress, name)) not in (0, length):
                raise InputError(
                    f"a run's progress must have {length} of {name}, one for each of {share.units}"
                )
        return share


def joined(shares: Sequence[Share]) -> list[Share]:
    """The shares, by their first block; those of equal lives, which are between two epochs, as
    one."""
    groups: list[list[Share]] = []
    for share in shares:
        alike = [group for group in groups if _alike(group[0], share)]
        if alike:
            alike[0].append(share)
        else:
            groups.append([share])
    made = []
    for first, *others in groups:
        units, seconds = first.units, first.progress.seconds
        for other in others:
            units, seconds = units | other.units, seconds + other.progress.seconds
        if others:
            first = replace(first, units=units, progress=replace(first.progress, seconds=seconds))
        made.append(first)
    return sorted(made, key=lambda share: share.units.blocks or (1 << 16,))


def _alike(one: Share, other: Share) -> bool:
    def life(share: Share) -> tuple:
        return share.seeds, share.epochs, share.progress.epoch, share.versions

    def between_epochs(share: Share) -> bool:
        return replace(share.progress, epoch=0, seconds=0.0) == Progress()

    return between_epochs(one) and between_epochs(other) and life(one) == life(other)


def cut(shares: Sequence[Share], units: Units) -> tuple[list[Share], list[Share]]:
    """The shares of some units, and those of the others, cut where a share has both."""
    inside, outside = [], []
    for share in shares:
        for wanted, found in ((share.units & units, inside), (share.units - units, outside)):
            if wanted:
                found.append(share if wanted == share.units else share.part(wanted))
    return inside, outside


def progress_from_json(record: Json) -> Progress:
    """
    Raises:
        InputError: it was not written by `Progress.to_json`.
    """
    for name in ("head_loss_sum", "head_skipped"):  # early runs had a number, of the one head
        if name in record and not isinstance(record[name], list):
            record = record | {name: [record[name]]}
    for name, value in record.items():
        default = getattr(Progress(), name, None)
        values = value if isinstance(value, list) else [value]
        kind = int if isinstance(default, int) else float
        fits = all(is_a(number, kind) and number >= 0 for number in values)
        if default is None or isinstance(value, list) != isinstance(default, list) or not fits:
            raise InputError(f"a run's progress must count from 0 on, got {name} {value!r}")
    return Progress(**record)
