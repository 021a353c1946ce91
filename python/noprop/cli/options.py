"""Options of several commands, and the names that they accept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

DATA = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
VARIANTS = ("dt", "ct", "fm")
PRESETS = ("mlp", "paper")
EMBEDDINGS = ("one-hot", "learned", "prototype")
HEADS = ("none", "paper", "softmax", "radial")
SCHEDULES = ("linear", "learned")
INITIAL = ("orthogonal", "normal")
ORDERS = ("paper", "all-t", "sampled")
SAMPLERS = ("ancestral", "ddim", "euler", "heun", "rk4")
OPTIMIZERS = ("adamw", "adam")
LR_SCHEDULES = ("constant", "cosine")
AUGMENTATIONS = ("none", "crop-flip")
PRECISIONS = ("float32", "bfloat16")
NONFINITE = ("stop", "skip")
ENGINES = ("ray", "slurm")
DEVICES = ("auto", "cpu", "cuda", "cuda:N")
BACKENDS = ("cpu", "triton", "cuda", "reference")
FORMATS = ("csv", "jsonl")
LOGS = ("csv", "tensorboard")


def path(text: str) -> Path:
    """A path with ~ expanded: shells do not expand it in --out=~/runs."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise typer.BadParameter(f"{text}: {error}") from error


def one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise typer.BadParameter(
            f"{value!r} is not available, there is: {', '.join(known)}", param_hint=option
        )


def choice(known: tuple[str, ...], help: str, **more: Any) -> Any:
    """An option of these names alone, which stand in its help in the place of {}."""

    def check(param: typer.CallbackParam, value: str | list[str] | None) -> str | list[str] | None:
        for each in [value] if isinstance(value, str) else value or ():
            one_of(param.opts[0], each, known)
        return value

    return typer.Option(help=help.format(names(known)), callback=check, **more)


def at(metavar: str, help: str | None = None, *names: str) -> Any:
    """An option that is a path."""
    return typer.Option(*names, metavar=metavar, parser=path, help=help)


@contextmanager
def refused(option: str | None = None) -> Iterator[None]:
    """Wraps the use of an option's value, or of several: what does not fit is a usage error."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def names(known: tuple[str, ...]) -> str:
    return f"One of: {', '.join(known)}."


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.", parser=path)]
DataAgain = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DATA", help="Where the run's data are now, if they were moved."
    ),
]
Labels = Annotated[Path | None, at("FILE", "File of the labels, where the rows have none.")]
DataDir = Annotated[
    Path | None, at("FOLDER", "Folder of the data files; default NOPROP_DATA, else a cache folder.")
]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; default all.")]
Backend = Annotated[str | None, typer.Option(help=f"Force a backend: {', '.join(BACKENDS)}.")]
OnDevice = Annotated[
    str, typer.Option(help=f"{names(DEVICES)} auto: a GPU that the kernels run on.")
]
Replica = Annotated[
    int | None,
    typer.Option(min=0, help="Which model of a run with --seeds, by its place among them, from 0."),
]
OfUnits = Annotated[str, typer.Option("--block", metavar="LIST", help="Which: 4, or 3,7-9,head.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON line last, on stdout.")]
