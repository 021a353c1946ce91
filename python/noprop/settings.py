"""The settings of a run."""

from dataclasses import dataclass, fields
from typing import get_type_hints

from . import choices, seeds
from .defaults import LR
from .errors import InputError
from .json_records import Json, is_a

AT_FIRST = {  # of runs that did not record them
    **{"precision": "float32", "head": "paper", "label": None, "labels": None},
    **{"embedding": "one-hot", "augment": "none", "optimizer": "adamw", "seeds": None},
    "early_weight_decay": None,
    **{name: None for name in choices.OWN if name not in ("T", "eta")},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run; together with the data they fix every bit of the result.

    `data` and `labels` are names, or absolute paths: a run is found from every folder. `label` says
    where a table has its labels, as `noprop.data.load` has it. What a variant, an embedding, a head
    or a schedule has not is None (`choices.OWN`); so are steps by default, and an early weight
    decay that is the later one. A run has either one seed or several.
    """

    data: str = "digits"
    label: str | None = None
    labels: str | None = None
    variant: str = "dt"
    preset: str = "mlp"
    embedding: str = "one-hot"
    head: str = "none"
    hidden: int = 256
    T: int | None = 10
    epochs: int
    batch_size: int = 128
    lr: float = LR
    lr_schedule: str = "cosine"
    weight_decay: float
    early_weight_decay: float | None = None
    eta: float | None = 0.1
    seed: int | None = 0
    seeds: tuple[int, ...] | None = None
    val_fraction: float = 0.0
    precision: str = "float32"
    augment: str = "none"
    optimizer: str = "adamw"
    weight: str | None = None
    gamma_0: float | None = None
    gamma_1: float | None = None
    stratified: bool | None = None
    sigma: float | None = None
    sampler: str | None = None
    steps: int | None = None
    schedule: str | None = None
    gamma_hidden: int | None = None
    embed_dim: int | None = None
    embed_init: str | None = None
    embed_scale: float | None = None
    detach_target: bool | None = None
    head_sigma: float | None = None
    order: str | None = None

    @classmethod
    def from_json(cls, record: Json) -> "Settings":
        """
        Raises:
            InputError: a setting is missing, unknown or of another kind.
        """
        record = AT_FIRST | record
        if isinstance(record["seeds"], list):
            record["seeds"] = tuple(record["seeds"])
        names = {item.name for item in fields(cls)}
        if record.keys() != names:
            raise InputError(f"the run's settings must be {sorted(names)}, got {sorted(record)}")
        for name, kind in get_type_hints(cls).items():
            if not is_a(record[name], kind):
                raise InputError(f"the run's {name} must be {kind}, got {record[name]!r}")
        if record["epochs"] < 1 or record["batch_size"] < 1:
            raise InputError("the run's epochs and batch_size must be at least 1")
        settings = cls(**record)
        settings.check_seeds()
        return settings

    def check_seeds(self) -> None:
        """
        Raises:
            InputError: there are not one seed or several.
        """
        try:
            if (self.seed is None) == (self.seeds is None):
                raise ValueError("it must have one seed or several")
            if self.seeds is not None and not all(is_a(seed, int) for seed in self.seeds):
                raise ValueError("its seeds must be whole numbers")
            if self.seeds is not None:
                seeds.check(self.seeds)
        except ValueError as error:
            got = f"{self.seed} and {self.seeds}"
            raise InputError(f"the run's seed and seeds do not fit: {error}, got {got}") from error

    @property
    def each_seed(self) -> list[int]:
        """The seed of each replica."""
        if self.seeds is not None:
            return list(self.seeds)
        assert self.seed is not None  # by check_seeds
        return [self.seed]


# a resumed run may change these; data and labels are checked by their content
MOVABLE = ("data", "labels")
CHANGEABLE = ("epochs",)
FIXED = tuple(item.name for item in fields(Settings) if item.name not in (*MOVABLE, *CHANGEABLE))
