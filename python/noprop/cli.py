"""The command line: noprop train, eval and info. Usage errors exit with 2, others 1, Ctrl-C 130."""

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from noprop_kernels import BackendError, dispatch

from . import __version__, checkpoint, data, report
from .data import Dataset
from .devices import NAMES, Device, pick_device
from .errors import InputError, train_extra
from .evaluation import SAMPLES
from .progress import display
from .runs import Run, Settings, Split, build, stop_on_interrupt
from .training import LR_SCHEDULES, Progress

with train_extra():
    import typer
    from rich.console import Console

VARIANTS = ("dt",)
PRESETS = ("mlp",)
EPOCHS = {"digits": 100}  # where --epochs is not given
OTHER_EPOCHS = 20
INTERRUPTED = 130
LESS_MEMORY = (
    "noprop: a smaller --batch-size needs less memory; so does --blocks-per-launch on a GPU, with "
    "the same result, with which --resume goes on"
)
FIXED = (
    *("data", "variant", "preset", "hidden", "T", "batch_size", "lr", "weight_decay", "eta"),
    *("lr_schedule", "seed", "val_fraction"),
)  # what a resumed run cannot change

app = typer.Typer(
    help="Trains NoProp networks: every block by its own loss (arXiv:2503.24322v2).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the data files; default NOPROP_DATA, else a cache folder."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")]
Backend = Annotated[str | None, typer.Option(help="Force a backend: cpu, triton or reference.")]
OnDevice = Annotated[
    str, typer.Option(help=f"One of: {', '.join(NAMES)}. auto: a GPU that the kernels run on.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON line last, on stdout.")]


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns what a user can mend into one line on stderr and an exit status."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (InputError, BackendError, ImportError, OSError) as error:
            typer.echo(f"noprop: error: {error}", err=True)
            raise typer.Exit(1) from None
        except (MemoryError, torch.OutOfMemoryError) as error:
            typer.echo(f"noprop: error: {error}\n{LESS_MEMORY}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("noprop: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None

    return run


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"noprop {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    pass


@app.command()
@plain_errors
def train(
    context: typer.Context,
    data_name: Annotated[
        str, typer.Option("--data", help=f"{', '.join(data.NAMES)}, or FILE.npz with x and y.")
    ] = "digits",
    data_dir: DataDir = None,
    variant: Annotated[str, typer.Option(help=f"One of: {', '.join(VARIANTS)}.")] = "dt",
    preset: Annotated[str, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = "mlp",
    hidden: Annotated[int, typer.Option(min=1, help="Width of the hidden layers.")] = 256,
    T: Annotated[int, typer.Option("--T", min=1, help="Number of blocks.")] = 10,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="In all; default 100 for digits, else 20.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of AdamW.")] = 1e-3,
    lr_schedule: Annotated[
        str, typer.Option(help="cosine, to 0 over all epochs, or constant, as in the paper.")
    ] = "cosine",
    weight_decay: Annotated[float, typer.Option(min=0)] = 1e-3,
    eta: Annotated[float, typer.Option(help="The paper's loss weight, above 0.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of weights, noise and order.")] = 0,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of training rows held out.")
    ] = 0.0,
    precision: Annotated[
        str, typer.Option(help="Of the products' operands: float32 or bfloat16.")
    ] = "float32",
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
    blocks_per_launch: Annotated[
        int | None, typer.Option(min=1, help="That a GPU trains at once; fewer need less memory.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default a new one in runs.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run, bit for bit.")
    ] = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: print sizes and backend.")
    ] = False,
) -> None:
    """Train a network, test it once, and show what each block adds."""
    console = Console(stderr=as_json)
    if not data_name.endswith(".npz"):
        one_of("--data", data_name, (*data.NAMES, "FILE.npz"))
    one_of("--variant", variant, VARIANTS)
    one_of("--preset", preset, PRESETS)
    place = checked_device(device, backend)
    one_of("--lr-schedule", lr_schedule, LR_SCHEDULES)
    one_of("--precision", precision, ("float32", "bfloat16"))
    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(
        data=data_name,
        variant=variant,
        preset=preset,
        hidden=hidden,
        T=T,
        epochs=epochs or EPOCHS.get(data_name, OTHER_EPOCHS),
        batch_size=batch_size,
        lr=lr,
        lr_schedule=lr_schedule,
        weight_decay=weight_decay,
        eta=eta,
        seed=seed,
        val_fraction=val_fraction,
        precision=precision,
    )
    if resume is not None:
        if out is not None:
            raise typer.BadParameter("--resume goes on in its own folder: leave --out away")
        run = resumed(context, resume, settings, epochs, backend, place)
        content, split = data_of(run, data_dir)
    else:
        run, content, split = new_run(free_folder(out, settings), settings, data_dir, backend)
        run.model.to(place.device)
    run.model.blocks.blocks_per_launch = blocks_per_launch
    where = place.told(run.model)  # raises where no backend runs, before anything is written
    if dry_run:
        report.say(console, where)
        size = report.sizes(run.model, run.settings.batch_size)
        report.show_plan(console, run.model, run.settings.batch_size, split.x.nbytes)
        if as_json:
            typer.echo(json.dumps({**asdict(run.settings), **run.model.versions(), **size}))
        return

    report.say(console, f"{run.settings.data}: {len(split.x)} rows, into {run.folder}, {where}")
    rows = len(split.x)
    done = run.progress.epoch * rows + run.progress.block_steps * run.settings.batch_size
    shown = display(console, epochs=run.settings.epochs, rows=rows, done=done)
    with stop_on_interrupt() as stop, shown as display_:
        finished = run.train(split, stop=stop, on_call=display_.advance, on_epoch=display_.epoch)
    if not finished:
        typer.echo(
            f"noprop: interrupted in epoch {run.progress.epoch + 1} and saved; "
            f"go on with: noprop train --resume {run.folder}",
            err=True,
        )
        raise typer.Exit(INTERRUPTED)
    run.result = run.test(content, split, SAMPLES)
    run.save()
    finish(console, run.result, as_json)


@app.command("eval")
@plain_errors
def evaluate_run(
    folder: RunArgument,
    samples: Annotated[int, typer.Option(min=1, help="Draws of the chain.")] = SAMPLES,
    data_dir: DataDir = None,
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Test a run again, by the paper's protocol; the run stays as it is."""
    console = Console(stderr=as_json)
    if threads is not None:
        torch.set_num_threads(threads)
    place = checked_device(device, backend)
    run, _ = Run.load(folder, backend, place.device)
    content, split = data_of(run, data_dir)
    where = place.told(run.model)
    report.say(console, f"{run.settings.data}: {len(content.x_test)} rows, {where}")
    finish(console, run.test(content, split, samples), as_json)


@app.command()
@plain_errors
def info(folder: RunArgument, as_json: AsJson = False) -> None:
    """Show what a run is: plan, schedule, settings, versions and accuracy."""
    content = checkpoint.load_content(folder)
    report.show_info(Console(stderr=as_json), content)
    if as_json:
        typer.echo(json.dumps(content))


def one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise typer.BadParameter(
            f"{value!r} is not available, there is: {', '.join(known)}", param_hint=option
        )


def checked_backend(name: str | None) -> str | None:
    if name is not None:
        try:
            dispatch.check_name("--backend", name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    return name


def checked_device(name: str, backend: str | None) -> Device:
    checked_backend(backend)
    try:
        return pick_device(name, backend)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from error


def free_folder(out: Path | None, settings: Settings) -> Path:
    """`out`, if it is free, or a new name in runs; makes nothing."""
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise typer.BadParameter(
                f"{out} is not an empty folder: go on with --resume {out}, or name another",
                param_hint="--out",
            )
        return out
    stem = f"{Path(settings.data).stem}-{settings.variant}-{settings.preset}"
    return next(p for i in itertools.count(1) if not (p := Path("runs", f"{stem}-{i}")).exists())


def load_data(name: str, folder: Path | None) -> Dataset:
    return data.load(name, folder, say=lambda line: typer.echo(f"noprop: {line}", err=True))


def new_run(
    out: Path, settings: Settings, data_dir: Path | None, backend: str | None
) -> tuple[Run, Dataset, Split]:
    content = load_data(settings.data, data_dir)
    split = Split.of(content, settings.val_fraction)
    try:
        model = build(settings, content, split, backend)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return Run(out, settings, model, Progress(), content.fingerprint()), content, split


def resumed(
    context: typer.Context,
    folder: Path,
    settings: Settings,
    epochs: int | None,
    backend: str | None,
    place: Device,
) -> Run:
    """The run in `folder`, once no option on the command line contradicts it."""
    run, changes = Run.load(folder, backend, place.device)
    for name in FIXED:
        parameter = "data_name" if name == "data" else name
        source = context.get_parameter_source(parameter)
        was, asked = getattr(run.settings, name), getattr(settings, name)
        if source is not None and source.name == "COMMANDLINE" and was != asked:
            option = name if len(name) == 1 else name.replace("_", "-")
            raise typer.BadParameter(
                f"{folder} was begun with {was}, and a run that goes on cannot change it",
                param_hint=f"--{option}",
            )
    for line in changes:
        typer.echo(f"noprop: warning: {line}; from here on the bits may differ", err=True)
    if epochs is not None and epochs != run.settings.epochs:
        if run.settings.lr_schedule == "cosine":
            raise typer.BadParameter(
                f"{folder} was begun with {run.settings.epochs} epochs and a cosine learning rate, "
                "which is 0 at their end",
                param_hint="--epochs",
            )
        run.settings = replace(run.settings, epochs=epochs)
    return run


def data_of(run: Run, data_dir: Path | None) -> tuple[Dataset, Split]:
    content = load_data(run.settings.data, data_dir)
    if content.fingerprint() != run.fingerprint:
        raise InputError(f"the data are not those that {run.folder} was trained on")
    return content, Split.of(content, run.settings.val_fraction)


def finish(console: Console, result: dict[str, Any], as_json: bool) -> None:
    report.show_result(console, result)
    if as_json:
        typer.echo(json.dumps(result))
