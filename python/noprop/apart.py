"""Units of a run in places of their own: a share of the blocks is trained by itself.

These are plain functions from folders to folders, for any scheduler: a share needs the data and
nothing of another share, and goes on in its folder after it was killed.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from . import checkpoint, choices, data
from .building import Split, build, units_of
from .epochs import Epoch
from .errors import InputError, notice
from .files import locked
from .merging import merge
from .runs import CHECKPOINT_SECONDS, Run
from .settings import Settings
from .shares import Share
from .units import Units

__all__ = ["merge", "train_share"]


def train_share(
    out: str | Path,
    settings: Settings,
    units: Iterable[int | str],
    *,
    data_dir: str | Path | None = None,
    backend: str | None = None,
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
    on_call: Callable[[int], None] = lambda samples: None,
    on_epoch: Callable[[Epoch, str], None] = lambda epoch, accuracy: None,
    say: Callable[[str], None] = notice,
    nonfinite: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Trains some units of a run of these settings, in a folder of their own.

    A folder that has them already is gone on with. Each unit has the bits of a run of all units,
    for one backend, build and instruction set.

    Args:
        out: the folder; `noprop merge` makes one run of several.
        settings: of the whole run.
        units: the t of the blocks, and "head".
        data_dir: folder of the data files; None: NOPROP_DATA, else a cache folder.
        backend: a backend to force.
        device: where the units are trained.
        stop, on_call, on_epoch, say, nonfinite, checkpoint_seconds: as of `Run.train`.

    Returns:
        The run, which is saved; its share is not finished where `stop` ended it.

    Raises:
        InputError: the settings allow no units, the folder holds another run or another process
            writes there, or the data are not there.
        NotFinite: a loss is not finite; the run is saved.
    """
    chosen, out = Units.of(units), Path(out)
    check_units(settings, chosen)
    folder = None if data_dir is None else Path(data_dir).absolute()
    content = data.load(settings.data, folder, say, label=settings.label, labels=settings.labels)
    split = Split.of(content, settings.val_fraction)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if (out / checkpoint.RECORD).exists():
            run = Run.load(out, backend)
            check_same(run, settings, chosen)
            if not content.matches(run.fingerprint):
                raise InputError(f"the data are not those that {out} was trained on")
        elif not checkpoint.is_unused(out):
            raise InputError(f"{out} is not an empty folder, and holds no run")
        else:
            model = build(settings, content, split, backend, chosen)
            shares = [Share(model.units, settings.each_seed, settings.epochs)]
            run = Run(out, settings, model, shares, content.fingerprint(), folder)
        run.model.to(device)
        for line in run.changes(run.shares):
            say(f"warning: {line}; from here on the bits may differ")
        for share in run.shares:
            run.train(
                split,
                share,
                stop=stop,
                on_call=on_call,
                on_epoch=on_epoch,
                say=say,
                nonfinite=nonfinite,
                checkpoint_seconds=checkpoint_seconds,
            )
    return run


def check_units(settings: Settings, units: Units) -> None:
    """
    Raises:
        InputError: a run of these settings has no such units, or cannot train them apart.
    """
    reason = choices.no_units(settings.variant, settings.embedding, settings.seeds is not None)
    every = units_of(settings)
    if reason is None and not units:
        reason = f"units must be some of {every}, got none"
    if reason is None and (strange := units - every):
        reason = f"the run has {every}, and not {strange}"
    if reason is not None:
        raise InputError(reason)


def check_same(run: Run, settings: Settings, units: Units) -> None:
    """
    Raises:
        InputError: the folder of a run holds other units, or one of other settings.
    """
    if run.model.units != units:
        raise InputError(f"{run.folder} holds {run.model.units}, and not {units}")
    asked = asdict(settings)
    for name, was in asdict(run.settings).items():
        if was != asked[name]:
            raise InputError(f"{run.folder} was begun with the {name} {was}, not {asked[name]}")
