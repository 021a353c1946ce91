"""The commands and their options. Nothing here imports torch, so that --help is there at once."""

from importlib import metadata
from pathlib import Path
from typing import Annotated

from ..errors import train_extra

with train_extra():
    import typer

    from .guard import execute
from .options import (
    FORMATS,
    AsJson,
    Backend,
    DataAgain,
    DataDir,
    Labels,
    OfUnits,
    OnDevice,
    Replica,
    RunArgument,
    Threads,
    at,
    names,
    path,
)
from .train_command import train

app = typer.Typer(
    help="Trains NoProp networks: every block by its own loss (arXiv:2503.24322v2).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"noprop {version()}")
        raise typer.Exit


def version() -> str:
    try:
        return metadata.version("noprop-kernels")
    except metadata.PackageNotFoundError:  # a source folder on the path
        from noprop_kernels import __version__

        return __version__


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    pass


app.command()(train)


@app.command("eval")
def evaluate(
    folder: RunArgument,
    data: DataAgain = None,
    labels: Labels = None,
    samples: Annotated[int, typer.Option(min=1, help="Draws of the noise.")] = 5,
    data_dir: DataDir = None,
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Test a run again, without changing it."""
    execute("evaluate", locals())


@app.command()
def report(
    folder: RunArgument,
    data: DataAgain = None,
    labels: Labels = None,
    out: Annotated[Path | None, at("FILE", "Default: report.html in the run's folder.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Test again, with so many draws of the noise; default: the run's own test."
        ),
    ] = None,
    replica: Replica = None,
    data_dir: DataDir = None,
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
) -> None:
    """Write one HTML page about a run: losses, accuracies, confusion, calibration, ways of z_t."""
    execute("report", locals())


@app.command()
def predict(
    folder: RunArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", parser=path, help="Rows like the training data's.")
    ],
    out: Annotated[Path | None, at("FILE", "Default: stdout.")] = None,
    format: Annotated[
        str | None, typer.Option(help=f"{names(FORMATS)} Default: by --out's ending, else csv.")
    ] = None,
    replica: Replica = None,
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
) -> None:
    """Classes and their probabilities for the rows of a file, in its order."""
    execute("predict", locals())


@app.command()
def export(
    folder: RunArgument,
    onnx: Annotated[Path | None, at("FILE")] = None,
    torch: Annotated[Path | None, at("FILE", "For torch.export.load, without noprop.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of ct's and fm's sampler, at most 100; default the answer's own, 20."
        ),
    ] = None,
    replica: Replica = None,
) -> None:
    """Write a run's model to a file that runs without this library."""
    execute("export", locals())


@app.command()
def split(
    folder: RunArgument,
    out: Annotated[Path, at("FOLDER", "Folder of the new run.")],
    replica: Replica = None,
) -> None:
    """Make one of a run's several models a run of its own, as if it had been trained alone."""
    execute("split", locals())


@app.command()
def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", parser=path, help="Folders of the runs.")
    ],
    out: Annotated[Path, at("FOLDER", "Folder of the new run.")],
    as_json: AsJson = False,
) -> None:
    """Make one run of several that have trained its units apart."""
    execute("merge", locals())


@app.command()
def diagnose(
    folder: RunArgument,
    data: DataAgain = None,
    labels: Labels = None,
    data_dir: DataDir = None,
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Tell what each block of a run does, and which ones hurt, without changing it."""
    execute("diagnose", locals())


@app.command()
def repair(
    folder: RunArgument,
    block: OfUnits,
    data: DataAgain = None,
    labels: Labels = None,
    data_dir: DataDir = None,
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Train some blocks of a run again, to the bits that they had; no other block changes."""
    execute("repair", locals())


@app.command()
def replace(
    folder: RunArgument,
    block: OfUnits,
    fresh: Annotated[
        int | None, typer.Option(min=0, metavar="SEED", help="Train new ones with this seed.")
    ] = None,
    source: Annotated[Path | None, at("RUN", "Take those of another run.", "--from")] = None,
    data: DataAgain = None,
    labels: Labels = None,
    data_dir: DataDir = None,
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Put others in the place of some blocks of a run; no other block changes."""
    execute("replace", locals())


@app.command()
def info(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", parser=path, help="Folder of the run; none: this machine."),
    ] = None,
    plot: Annotated[
        Path | None,
        at("FILE", "Draw the run's learned schedule after several epochs: .svg, .png or .pdf."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a run; without one, describe the build and the backends that run here."""
    execute("info", locals())
