"""Shared by several commands: the device, the data of a run, the JSON line."""

import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import typer

from noprop_kernels import DenoisingBlocks, Plan
from noprop_kernels.backends import dispatch

from .. import apart, choices, console_text, data, presets, strict_json
from ..building import Split, build, head_trouble
from ..data import Published
from ..datasets.dataset import Dataset
from ..defaults import LEAST_WEIGHT_DECAY, default_epochs, default_weight_decay
from ..devices import Device, pick_device
from ..directions import decay_settings
from ..errors import InputError, notice, train_extra
from ..model import Model
from ..runs import Run
from ..settings import Settings
from ..units import Units
from .options import refused

with train_extra():
    from rich.console import Console


def place_of(
    options: SimpleNamespace,
    plan: Plan | None = None,
    *,
    sampled: bool = False,
    head: str | None = None,
) -> Device:
    """The device for a plan that --device and --backend ask for; sets --threads.

    Args:
        options: device, backend and threads.
        plan, sampled, head: as of `pick_device`.

    Raises:
        typer.BadParameter: there is none.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.backend is not None:
        with refused():
            dispatch.check_name("--backend", options.backend)
    with refused("--device"):
        return pick_device(options.device, options.backend, plan, sampled=sampled, head=head)


def placed(options: SimpleNamespace, model: Model) -> Device:
    """Moves a model to its device, and says so where that leaves a GPU aside."""
    head = None if model.head is None else model.head.kind
    assert isinstance(model.blocks, DenoisingBlocks)  # as every run's
    place = place_of(options, model.blocks.plan, sampled=model.goal.timed, head=head)
    if place.aside is not None:
        notice(place.aside)
    model.to(place.device)
    return place


def on_command_line(options: SimpleNamespace, name: str) -> bool:
    source = options.context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_meaning(options: SimpleNamespace) -> None:
    """
    Raises:
        typer.BadParameter: an option was given that the preset, the variant or another choice has
            not.
    """
    if options.preset != "mlp" and on_command_line(options, "hidden"):
        raise typer.BadParameter("only preset mlp has it", param_hint="--hidden")
    chosen = chosen_of(options)
    for name in choices.OWN:
        if on_command_line(options, name) and (reason := choices.missing(name, chosen)):
            raise typer.BadParameter(reason, param_hint=option_of(name))
    if reason := head_trouble(**chosen):
        raise typer.BadParameter(reason, param_hint="--head")
    if options.seeds is not None and (
        reason := choices.one_seed(options.embedding, chosen["schedule"])
    ):
        raise typer.BadParameter(f"{reason}: run each with --seed", param_hint="--seeds")


def parsed_units(option: str, text: str) -> Units:
    """
    Raises:
        typer.BadParameter: these are no units.
    """
    with refused(option):
        return Units.parse(text)


def check_units(option: str, units: Units, settings: Settings) -> None:
    """
    Raises:
        typer.BadParameter: a run of these settings has no such units, or cannot train them apart.
    """
    with refused(option):
        apart.check_units(settings, units)


def chosen_of(options: SimpleNamespace) -> dict[str, Any]:
    """The values of the options on which others depend: those given, then the preset's, then the
    defaults."""
    preset = presets.settings(options.preset, options.data, options.variant)
    schedule = options.schedule
    if schedule is None and options.variant in choices.owners("variant", "schedule"):
        schedule = "linear"
    head = options.head
    if not on_command_line(options, "head"):
        head = preset.get("head", head)
        if head == "none" and choices.needs_head(options.embedding, schedule):
            head = "softmax"
    return {
        "variant": options.variant,
        "embedding": options.embedding,
        "schedule": schedule,
        "head": head,
    }


def check_replica(replica: int | None, seeds: list[int], folder: Path) -> int:
    """The replica that is asked for, which must be named where a run has several.

    Raises:
        typer.BadParameter: it is not named, or there is none such.
    """
    if replica is None and len(seeds) == 1:
        return 0
    if replica is None or replica >= len(seeds):
        raise typer.BadParameter(
            f"{folder} has the models 0..{len(seeds) - 1}, of the seeds "
            f"{', '.join(map(str, seeds))}: name one, got {replica}",
            param_hint="--replica",
        )
    return replica


def option_of(name: str) -> str:
    """The option of a setting."""
    return f"--{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def settings_of(
    options: SimpleNamespace, rows: int, split: Split | None, channels: int
) -> Settings:
    """The settings of a new run: options that were given, then the preset's, then the defaults for
    these training rows.

    Args:
        options: of the command line.
        rows: the number of training rows.
        split: the data; None where they are not read.
        channels: of x.
    """
    asked = {item.name: getattr(options, item.name) for item in fields(Settings)}
    preset = presets.settings(options.preset, options.data, options.variant)
    chosen = chosen_of(options)
    preset = choices.defaults(chosen) | preset
    asked |= {name: it for name, it in preset.items() if not on_command_line(options, name)}
    asked |= chosen
    asked["data"] = absolute(options.data)
    asked["labels"] = None if options.labels is None else str(options.labels.absolute())
    if asked["epochs"] is None:
        asked["epochs"] = default_epochs(rows, asked["batch_size"])
    if asked["weight_decay"] is None:
        if asked["optimizer"] == "adam":
            asked["weight_decay"] = LEAST_WEIGHT_DECAY
        elif split is None or asked["early_weight_decay"] is not None:
            asked["weight_decay"] = default_weight_decay(rows)
        else:
            asked |= decay_settings(split.x, channels)
    return Settings(**asked)


def built(
    settings: Settings,
    content: Dataset | Published,
    split: Split | None,
    backend: str | None,
    units: Units | None,
) -> Model:
    """As `building.build`, with its ValueError as a typer.BadParameter."""
    with refused():
        return build(settings, content, split, backend, units)


def absolute(name: str) -> str:
    """The name of data, or the absolute path of a file or folder."""
    return name if name in data.NAMES else str(Path(name).expanduser().absolute())


def load_data(settings: Settings | SimpleNamespace, data_dir: Path | None) -> Dataset:
    return data.load(
        absolute(settings.data),
        data_dir,
        notice,
        label=settings.label,
        labels=settings.labels,
    )


def data_of(run: Run, options: SimpleNamespace, *, moved: bool) -> tuple[Dataset, Split]:
    """The data on which a run was started.

    Args:
        run: its record of the data's place is updated from the options.
        options: data, labels and data_dir as they are now, or None.
        moved: whether options.data was asked for.

    Raises:
        InputError: the data are missing, or are not those of the run.
    """
    if moved:
        run.settings = replace(run.settings, data=absolute(options.data))
    if options.labels is not None:
        run.settings = replace(run.settings, labels=str(options.labels.absolute()))
    if options.data_dir is not None:
        run.data_dir = options.data_dir.absolute()
    try:
        content = load_data(run.settings, run.data_dir)
    except InputError as error:
        raise InputError(f"{error} (--data names the place of data that were moved)") from error
    if not content.matches(run.fingerprint):
        raise InputError(f"the data are not those that {run.folder} was trained on")
    return content, Split.of(content, run.settings.val_fraction)


def show_result(screen: Console, result: dict[str, Any], as_json: bool) -> None:
    console_text.show_result(screen, result)
    if as_json:
        print_json(result)


def print_json(value: dict[str, Any]) -> None:
    """One line on stdout."""
    sys.stdout.write(strict_json.dumps(value) + "\n")
    sys.stdout.flush()
