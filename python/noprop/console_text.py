"""Text for people: the table of a result, the sizes and the description of a run."""

import math
from pathlib import Path
from typing import Any

import torch

import noprop_kernels as nk
from noprop_kernels.backends.cpu import backend as cpu

from . import evaluation
from .errors import train_extra
from .model import Model
from .units import units_from_json

with train_extra():
    from rich.console import Console
    from rich.table import Table

Json = dict[str, Any]
FLOAT = 4  # bytes
ALREADY = ("kind", "gamma")  # of a goal, shown by themselves
MANY_STEPS = 1 << 30  # more than the steps that any call packs rows for


def say(console: Console, line: str) -> None:
    """Prints a line without wrapping it."""
    console.print(line, highlight=False, soft_wrap=True)


def show_result(console: Console, result: Json) -> None:
    """Prints the accuracy after each block and of each block alone, or by the steps of the sampler;
    of the answer, and of the paper's protocol."""
    of_blocks = result["accuracy_per_block"] is not None
    console.print(blocks_table(result) if of_blocks else steps_table(result))
    if by_seed := result.get("by_seed"):
        console.print(seeds_table(by_seed))
    lines = [
        f"test accuracy:                {result['test_accuracy']:.2%}"
        f"{over_seeds(result, 'test_accuracy')}"
    ]
    if not of_blocks:
        by_t = " ".join(f"{accuracy:.1%}" for accuracy in result["accuracy_by_t"])
        lines.append(f"on the way, at t = .1, .2, .. 1: {by_t}")
    if "val_accuracy" in result:
        lines.append(
            f"accuracy on held-out rows:    {result['val_accuracy']:.2%}"
            f"{over_seeds(result, 'val_accuracy')}"
        )
    if result["paper_accuracy"] is not None:
        lines.append(
            f"the paper's protocol:         {result['paper_accuracy']:.2%}"
            f"{over_seeds(result, 'paper_accuracy')}{deviation(result)}"
        )
        if warning := evaluation.head_warning(result):
            lines.append(f"warning: {warning}")
    lines.append(
        f"{result['train_seconds']:.1f} s of training, "
        f"{result['samples_per_second']:,.0f} samples/s, "
        f"{result['eval_seconds']:.1f} s of evaluation, "
        f"{result['parameters']:,} parameters{' of each seed' if by_seed else ''}, "
        f"backend {result['backend']}"
    )
    console.print("\n".join(lines), highlight=False)


def say_test(console: Console, model: Model, samples: int) -> None:
    """Says what a test of a CT or FM does, since it takes a while."""
    if model.variant.sampled:
        draws = "a draw" if samples == 1 else f"{samples} draws"
        say(console, f"the test: up to {max(evaluation.STEPS):,} steps of the sampler, {draws}")


def blocks_table(result: Json) -> Table:
    table = Table(title=f"{Path(result['data']).stem}: test accuracy of the blocks{means(result)}")
    table.add_column("block", justify="right")
    table.add_column("after it in the chain", justify="right")
    table.add_column("alone, from pure noise", justify="right")
    columns = ("accuracy_per_block", "accuracy_alone")
    accuracies = zip(*(result[name] for name in columns), strict=True)
    for t, row in enumerate(accuracies, 1):
        table.add_row(str(t), *(f"{accuracy:.2%}" for accuracy in row))
    return table


def steps_table(result: Json) -> Table:
    table = Table(
        title=f"{Path(result['data']).stem}: test accuracy by the sampler's steps{means(result)}"
    )
    table.add_column("steps", justify="right")
    table.add_column("without noise", justify="right")
    table.add_column("with noise", justify="right")
    noisy = result["accuracy_by_steps_with_noise"]
    for steps, accuracy in result["accuracy_by_steps"].items():
        drawn = f"{noisy[steps]:.2%}" if steps in noisy else ""
        table.add_row(steps, f"{accuracy:.2%}", drawn)
    return table


def seeds_table(by_seed: list[Json]) -> Table:
    """A row for each seed; the paper's protocol with its deviation over the draws."""
    table = Table(title="each seed")
    names = {"test_accuracy": "answer", "paper_accuracy": "the paper's protocol"}
    names["val_accuracy"] = "answer on held-out rows"
    present = [name for name in names if by_seed[0].get(name) is not None]
    table.add_column("seed", justify="right")
    for name in present:
        table.add_column(names[name], justify="right")
    for record in by_seed:
        texts = {name: f"{record[name]:.2%}" for name in present}
        if (std := record["paper_accuracy_std"]) is not None:
            texts["paper_accuracy"] += f" +- {std:.2%}"
        table.add_row(str(record["seed"]), *texts.values())
    return table


def means(result: Json) -> str:
    """What the figures of a table are, where there are several seeds."""
    return f", the mean of {len(result['by_seed'])} seeds" if result.get("by_seed") else ""


def over_seeds(result: Json, name: str) -> str:
    """The deviation of a figure over the seeds, where there are several."""
    if name not in result.get("std_over_seeds", {}):
        return ""
    return f" +- {result['std_over_seeds'][name]:.2%} over {len(result['by_seed'])} seeds"


def deviation(result: Json) -> str:
    """The deviation over the draws of the noise, where there are several."""
    std, samples = result["paper_accuracy_std"], result["samples"]
    draws = "1 draw" if samples == 1 else f"{samples} draws"
    of_fm = result.get("variant") == "fm"
    in_steps = result.get("sampler") in (None, "ancestral")  # None of DT
    how = "noise in every step" if in_steps else "z_0 drawn"
    drawn = f"  ({how}, {'nearest embedding' if of_fm else 'head on z_T'}, {draws})"
    if std is None:
        return drawn
    joint = "," if result.get("by_seed") else ""
    return f"{joint} +- {std:.2%}{' over draws' if joint else ''}{drawn}"


def sizes(model: Model, batch_size: int) -> Json:
    """Parameters of a replica, and bytes of memory for training by part."""
    blocks, R = model.blocks, model.replicas
    assert isinstance(blocks, nk.DenoisingBlocks)  # as every run's
    plan, parameters, slices = blocks.plan, model.num_parameters(), len(blocks)
    backend = model.versions()["backend"]
    at_once = blocks.blocks_per_launch if backend == "triton" else torch.get_num_threads()
    workers = min(at_once or slices, slices)
    moments = sum(
        math.prod(value.shape)
        for part in model.optimized.values()
        for name, value in part.named_buffers()
        if name.endswith(("_m", "_v"))
    )
    widths = sum(plan.widths[name] for name in plan.layers)
    activations = FLOAT * batch_size * widths * workers
    workspace = None
    if backend == "cpu":
        T, D, precision = blocks.T, blocks.D, blocks.precision
        each = cpu.workspace_bytes(plan, T, batch_size, D, MANY_STEPS, precision)
        rows = R * cpu.packed_bytes(plan, T, batch_size, MANY_STEPS, precision)
        workspace = max(0, each * workers + rows - activations)
    return {
        "parameters": parameters // R,
        "parameters_per_block": plan.num_parameters(),
        "bytes": {
            "weights": FLOAT * parameters,
            "gradients": 0,
            "moments": FLOAT * moments,
            "activations": activations,
            "workspace": workspace,
        },
        "workers": workers,
    }


def show_plan(console: Console, model: Model, batch_size: int, data_bytes: int) -> None:
    """The output of `--dry-run`: parameters, bytes and the backend, with the reasons."""
    size, T, R = sizes(model, batch_size), model.blocks.T, model.replicas
    workers = size["workers"]
    console.print(
        f"{f'{R} models of ' if R > 1 else ''}{T} block{'s' if T > 1 else ''} of "
        f"{size['parameters_per_block']:,} parameters, "
        f"{R * size['parameters']:,} in all{beside(model)}",
        highlight=False,
    )
    notes = {
        "gradients": "  (the update runs inside the weight gradient)",
        "activations": f"  (of the {workers} blocks that run at a time)" if R * T > 1 else "",
        "workspace": "  (the rest of the kernels' own memory)",
    }
    for name, count in {**size["bytes"], "data": data_bytes}.items():
        number = "not known" if count is None else f"{count:,} bytes"
        console.print(f"  {name:<12}{number:>20}{notes.get(name, '')}", highlight=False)
    console.print(nk.explain(model.blocks, batch=batch_size), highlight=False)


def beside(model: Model) -> str:
    """What a count of parameters has beside the blocks."""
    learned = model.shared is not None and model.shared.learns
    names = {"the head": model.head is not None, "what all share and learn": learned}
    parts = [name for name, there in names.items() if there]
    return f", {' and '.join(parts)} too" if parts else ""


def show_info(console: Console, content: Json) -> None:
    """Describes a run from its record alone."""
    model = content["model"]
    training = content.get("training") or {}
    table = Table(show_header=False, box=None)
    rows: Json = {
        **goal_rows(model["goal"]),
        "order of t": " ".join(map(str, model["order"])),
        **{
            name.replace("_", " "): ", ".join(f"{key} {it}" for key, it in model[name].items())
            for name in ("sampler", "paper_sampler")
            if name in model
        },
        **parts_rows(model),
        "classes": model["classes"],
        "class names": " ".join(model.get("class_names") or []),
    }
    for name, layer in model["plan"]["layers"]:
        values = {key: value for key, value in layer.items() if key != "kind" and value is not None}
        rows[f"layer {name}"] = ", ".join(f"{key} {value}" for key, value in values.items())
    settings = training.get("settings", {})
    if settings.get("seeds"):
        settings = settings | {"seeds": ", ".join(map(str, settings["seeds"]))}
    rows |= {name: it for name, it in settings.items() if name not in rows and it is not None}
    if progress := training.get("progress"):
        rows["epochs done"] = progress["epoch"]
        rows["train seconds"] = f"{progress['seconds']:.1f}"
    rows |= shares_rows(training.get("shares") or [], content["versions"])
    result = training.get("result") or {}
    for name in ("test_accuracy", "paper_accuracy", "paper_accuracy_std", "val_accuracy"):
        if result.get(name) is not None:
            rows[name.replace("_", " ")] = f"{result[name]:.2%}{over_seeds(result, name)}"
    rows |= {f"version of {name}": value for name, value in content["versions"].items()}
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table, highlight=False)


def shares_rows(shares: list[Json], versions: Json) -> Json:
    """The life of each share of the units, where a run has several, or not all units."""
    rows: Json = {}
    for share in shares:
        progress, others = share["progress"], share["versions"] or {}
        about = [f"{progress['epoch']} of {share['epochs']} epochs"]
        if steps := progress["block_steps"] + progress["head_steps"]:
            about.append(f"{steps} steps of the next")
        about += [f"seed {share['seeds'][0]}", f"{progress['seconds']:.1f} s of training"]
        about += [f"{name} {it}" for name, it in others.items() if versions.get(name) != it]
        rows[str(units_from_json(share["units"]))] = ", ".join(about)
    return rows


def parts_rows(model: Json) -> Json:
    """Embeddings and head, where their record has more than whether there is a head."""
    rows: Json = {}
    if embedding := model.get("embedding"):
        about = [f"{embedding['kind']}, {model['embed_dim']} wide"]
        if embedding["learned"]:
            about.append("learned")
        if embedding["detach_target"]:
            about.append("the target a constant")
        if embedding["prototypes"] is not None:
            about.append(f"at first training rows {' '.join(map(str, embedding['prototypes']))}")
        rows["embedding"] = ", ".join(about)
    if isinstance(head := model.get("head"), dict):
        sigma = f", sigma {head['sigma']:g}" if head["kind"] == "radial" else ""
        rows["head"] = f"{head['kind']}{sigma}"
    return rows


def goal_rows(goal: Json) -> Json:
    """The variant and its schedule, from a goal's record."""
    if goal["kind"] == "DT":
        return {
            "variant": f"DT, T = {len(goal['alpha_bar']) - 1}, eta = {goal['eta']}",
            "schedule": " ".join(f"{value:.4f}" for value in goal["alpha_bar"]),
        }
    about = ", ".join(f"{key} = {value}" for key, value in goal.items() if key not in ALREADY)
    rows = {"variant": f"{goal['kind']}, one block of all t, {about}"}
    if isinstance(gamma := goal.get("gamma"), dict):
        rows["gamma"] = (
            f"learned by a network of {gamma['hidden']} from {gamma['gamma_1']} at t = 0 and "
            f"{gamma['gamma_0']} at t = 1"
        )
    elif gamma is not None:
        rows["gamma"] = " ".join(f"{value:.4f}" for value in gamma)
    return rows
