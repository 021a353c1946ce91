"""The options of noprop train. Nothing here imports torch, so that --help is there at once."""

from pathlib import Path
from typing import Annotated

import typer

from ..defaults import LR
from .guard import execute
from .options import (
    AUGMENTATIONS,
    DATA,
    EMBEDDINGS,
    ENGINES,
    HEADS,
    INITIAL,
    LOGS,
    LR_SCHEDULES,
    NONFINITE,
    OPTIMIZERS,
    ORDERS,
    PRECISIONS,
    PRESETS,
    SAMPLERS,
    SCHEDULES,
    VARIANTS,
    AsJson,
    Backend,
    DataDir,
    Labels,
    OnDevice,
    Threads,
    at,
    choice,
    names,
)


def train(
    context: typer.Context,
    data: Annotated[
        str, typer.Option(metavar="DATA", help=f"{', '.join(DATA)}, or your own file or folder.")
    ] = "digits",
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME|INDEX", help="Column or array of the labels in your own file."),
    ] = None,
    labels: Labels = None,
    data_dir: DataDir = None,
    variant: Annotated[
        str, choice(VARIANTS, "{} dt has T blocks, ct and fm one block of all t.")
    ] = "dt",
    preset: Annotated[
        str,
        choice(
            PRESETS,
            "{} paper: the paper's convolutions, for images, and its settings for --data (table 4) "
            "where an option does not give others.",
        ),
    ] = "mlp",
    embedding: Annotated[
        str,
        choice(
            EMBEDDINGS,
            "Of labels. {} learned, and prototype, which begins as a training row of each class, "
            "are trained with the blocks.",
        ),
    ] = "one-hot",
    embed_dim: Annotated[
        int | None, typer.Option(min=1, help="Width of learned embeddings; default 20.")
    ] = None,
    embed_init: Annotated[
        str | None,
        choice(
            INITIAL,
            "Of learned embeddings. {} Default: orthogonal, which is normal where there are more "
            "classes than dimensions.",
        ),
    ] = None,
    embed_scale: Annotated[
        float | None,
        typer.Option(help="Factor of the first learned or prototype embeddings; default 1."),
    ] = None,
    detach_target: Annotated[
        bool | None,
        typer.Option(
            "--detach-target",
            help="The squared error's target teaches the embeddings nothing; the paper's does.",
        ),
    ] = None,
    order: Annotated[
        str | None,
        choice(ORDERS, "Of dt's blocks where embeddings are learned. {} Default: paper."),
    ] = None,
    head: Annotated[
        str,
        choice(
            HEADS,
            "What the paper's protocol reads. {} paper: softmax, as in its tables. Default: "
            "softmax where embeddings or gamma are learned, else none.",
        ),
    ] = "none",
    head_sigma: Annotated[
        float | None, typer.Option(help="Of the head radial, above 0; default 1.")
    ] = None,
    hidden: Annotated[
        int, typer.Option(min=1, help="Width of the hidden layers, of preset mlp alone.")
    ] = 256,
    T: Annotated[
        int | None, typer.Option("--T", min=1, help="Number of blocks, of dt; default 10.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="In all; by default enough for the rows, at least 20.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    optimizer: Annotated[
        str, choice(OPTIMIZERS, "{} Weight decay of adam is part of the gradient.")
    ] = "adamw",
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of the optimizer.")] = LR,
    lr_schedule: Annotated[
        str, choice(LR_SCHEDULES, "cosine, to 0 over all epochs, or constant, as in the paper.")
    ] = "cosine",
    weight_decay: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="By default of adamw the stronger the fewer rows, of adam 0.001, the paper's.",
        ),
    ] = None,
    early_weight_decay: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Of the blocks in the first half of the epochs. By default stronger than the "
            "later one where x varies in many directions and that one is the default too.",
        ),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(help="The paper's loss weight, above 0; default 0.1 of dt, 1 of ct."),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of ct: snr, the paper's (default), uniform, or min-snr:K, K the most that SNR "
            "counts.",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        choice(
            SCHEDULES,
            "Of ct: gamma between its ends. {} Default: linear. learned: a network of t and both "
            "ends are trained with the block.",
        ),
    ] = None,
    gamma_hidden: Annotated[
        int | None, typer.Option(min=1, help="Width of a learned schedule; default 1024.")
    ] = None,
    gamma_0: Annotated[
        float | None,
        typer.Option(help="Of ct: gamma, that is -log SNR, at the label's end; default -3."),
    ] = None,
    gamma_1: Annotated[
        float | None, typer.Option(help="Of ct: gamma at the noise's end; default 6.")
    ] = None,
    stratified: Annotated[
        bool | None,
        typer.Option("--stratified", help="Of ct and fm: the t of a batch spread evenly."),
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Of fm: deviation around the path; default 0.")
    ] = None,
    sampler: Annotated[
        str | None,
        choice(
            SAMPLERS, "Of ct and fm. {} Default: ancestral of ct (without noise ddim), euler of fm."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of ct's and fm's sampler; default 20 of the answer, 1000 of the paper's way.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, noise and order.")] = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of several models, trained at once: 0-2 or 0,3,7. Each is as with --seed alone; "
            "results have their mean and deviation.",
        ),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of training rows held out.")
    ] = 0.0,
    precision: Annotated[str, choice(PRECISIONS, "Of the products' operands. {}")] = "float32",
    augment: Annotated[
        str,
        choice(
            AUGMENTATIONS,
            "Of training images. {} crop-flip: shifted by up to 4 pixels, mirrored half of the "
            "time.",
        ),
    ] = "none",
    threads: Threads = None,
    backend: Backend = None,
    device: OnDevice = "auto",
    blocks_per_launch: Annotated[
        int | None, typer.Option(min=1, help="That a GPU trains at once; fewer need less memory.")
    ] = None,
    out: Annotated[
        Path | None, at("FOLDER", "Folder of the run; default a new one in runs.")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Train these alone, and the head where it is named: 3,7-9,head. They have the "
            "bits of training with the others, and noprop merge puts runs together.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help=f"Train the blocks in other processes, with the same bits. {names(ENGINES)}"
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of ray's cluster, or auto; default a Ray of this machine alone. Of slurm local: "
            "tasks are processes of this machine."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Of ray at most so many, default one a node; tasks of slurm."),
    ] = None,
    store: Annotated[
        Path | None,
        at("FOLDER", "Where workers keep checkpoints, a folder that all reach; default in RUN."),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(help="Of all workers; default the best that they have in common at first."),
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Take workers too whose bits may differ.")
    ] = False,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="An option of sbatch, like time=120; several times."
        ),
    ] = None,
    resume: Annotated[Path | None, at("RUN", "Go on with a run, bit for bit.")] = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Save so often; what is newer a crash loses.")
    ] = 30.0,
    on_nonfinite: Annotated[
        str | None,
        choice(
            NONFINITE,
            "What to do where a loss is NaN or infinite. {} Default: stop, of --seeds skip.",
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        choice(
            LOGS,
            "Write losses and figures of steps and epochs into logs in the run's folder. {} It may "
            "be given twice; a resumed run goes on with its logs.",
            metavar="KIND",
        ),
    ] = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: print sizes and backend.")
    ] = False,
) -> None:
    """Train a network, test it once, and show what each block adds."""
    execute("train", locals())
