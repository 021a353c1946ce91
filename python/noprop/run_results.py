"""What `--json` prints of a run: of a tested one its figures, else what there is to tell."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from . import seeds
from .building import Split
from .evaluation import Evaluation
from .json_records import Json

if TYPE_CHECKING:
    from .runs import Run


def summary(run: "Run", evaluations: list[Evaluation], split: Split, eval_seconds: float) -> Json:
    blocks, several = run.model.blocks, run.settings.seeds
    seconds = sum(share.progress.seconds for share in run.shares)
    epochs = sum(share.progress.epoch * len(share.units) for share in run.shares)
    trained = len(split.x) * epochs / len(run.model.units)
    records = [figures(run, one, split, replica) for replica, one in enumerate(evaluations)]
    return {
        **(records[0] if several is None else seeds.summary(several, records)),
        "train_seconds": seconds,
        "eval_seconds": eval_seconds,
        "samples_per_second": trained / seconds if seconds else 0.0,
        "parameters": run.model.num_parameters() // run.model.replicas,
        "parameters_per_block": blocks.plan.num_parameters(),
        "train_rows": len(split.x),
        **circumstances(run),
    }


def state(run: "Run") -> Json:
    """What there is to tell of a run that cannot be tested: everything that `--json` prints."""
    return {
        "units": list(run.model.units),
        "missing": list(run.missing),
        "shares": [share.to_json() for share in run.shares],
        "train_seconds": sum(share.progress.seconds for share in run.shares),
        "parameters": run.model.num_parameters(),
        "parameters_per_block": run.model.blocks.plan.num_parameters(),
        **circumstances(run),
    }


def figures(run: "Run", evaluation: Evaluation, split: Split, replica: int) -> Json:
    """What a seed's model has of its own."""
    blocks, head = run.model.blocks, run.model.head
    found = {
        **evaluation.to_json(),
        "block_updates": int(blocks.updates[replica * blocks.T]),
        "head_updates": 0 if head is None else int(head.updates[replica]),
    }
    if split.x_val is not None:
        found["val_accuracy"] = run.watch(split, replica=replica)[1]
    return found


def circumstances(run: "Run") -> Json:
    """How a run was trained, where, and by which versions."""
    return {
        "threads": torch.get_num_threads(),
        **asdict(run.settings),
        **run.model.versions(),
        "run": str(run.folder),
    }
