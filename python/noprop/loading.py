"""Loads a model from its checkpoint, and checks all that a saved model carries before building
it."""

from pathlib import Path

from torch import Tensor, nn

import noprop_kernels as nk

from . import checkpoint, json_records, network_records, part_records, sampling, variants
from .errors import InputError
from .inputs import InputFormat
from .json_records import Json, field
from .model import Model
from .modules.blocks import ModuleBlocks
from .normalisation import Normalisation


def load(
    folder: str | Path,
    encoder: nn.Module | None = None,
    *,
    blocks: ModuleBlocks | None = None,
    backend: str | None = None,
) -> Model:
    """Loads a model that `save` wrote, ready to predict or to train further.

    Args:
        folder: the run's folder.
        encoder: a module like the saved one; it receives the saved weights.
        blocks: of a model of networks of one's own a ModuleBlocks like the saved one; it receives
            the saved state, its optimizers' too, and becomes the model's.
        backend: a backend to force.

    Raises:
        InputError: a file is missing or corrupt, or the model does not carry its plan, schedule,
            order of t, sampler or normalisation.
        ImportError: safetensors is not installed.
    """
    content, tensors = checkpoint.load(Path(folder))
    return from_checkpoint(content, tensors, encoder, blocks=blocks, backend=backend)


def from_checkpoint(
    content: Json,
    tensors: dict[str, Tensor],
    encoder: nn.Module | None = None,
    *,
    blocks: ModuleBlocks | None = None,
    backend: str | None = None,
) -> Model:
    """The model of a loaded checkpoint. Arguments and errors as `load`."""
    record = field(content, "model", dict)
    try:
        plan = None
        if "networks" not in record:
            plan = json_records.plan_from_json(field(record, "plan", dict))
            if blocks is not None:
                raise InputError("this model was saved with layers of this library: give no blocks")
        goal = variants.goal_from_json(field(record, "goal", dict))
        optimizers = field(record, "optimizers", dict)
        precision = {"blocks": "float32", "head": "float32"} | record.get("precision", {})
        samplers = sampling.samplers_from_json(goal, record)
        held, every = field(record, "order", list), range(1, goal.T + 1)
        if held != sorted(set(held)) or not all(t in every for t in held):
            raise InputError(f"a saved model must have blocks 1..{goal.T}, or some, in this order")
        # the first seed of each replica is that of inference, where none is saved
        seeds = record.get("seeds", tensors[_seeds_of(held)][:: len(held) or 1].tolist())
        if not all(json_records.is_a(seed, int) and 0 <= seed < 1 << 63 for seed in seeds):
            raise InputError(f"a saved model must have seeds from 0 on, got {seeds}")
        if "normalisation" not in record:
            raise InputError("a saved model must carry its normalisation, got nothing")
        json_records.check_sizes(record, plan, len(held), tensors)
        normal, inputs = record["normalisation"], record.get("inputs")
        names = record.get("class_names")  # early models did not carry them
        shared = part_records.shared_from_json(record, goal, tensors)
        embedding = tensors.get("blocks.W_embed")
        if plan is None:
            made = network_records.loaded_networks(record, goal, tensors, blocks)
        else:
            made = nk.DenoisingBlocks(
                plan,
                goal,
                embedding=embedding,
                shared=shared,
                optimizer=json_records.optimizer_from_json(optimizers.get("blocks")),
                seed=seeds,
                held=held or every[:1],
                precision=precision["blocks"],
                backend=backend,
            )
        head, kind = None, part_records.head_from_json(record)
        if kind is not None:
            head = nk.OutputHead(
                field(record, "embed_dim", int),
                field(record, "classes", int),
                goal=goal,
                embedding=embedding,
                shared=shared,
                **kind,
                optimizer=json_records.optimizer_from_json(optimizers.get("head")),
                seed=tensors["head.seeds"].tolist(),
                precision=precision["head"],
                backend=backend,
            )
            head.load_state_dict(_part(tensors, "head."))
        if held and isinstance(made, nk.DenoisingBlocks):
            # each block has the seed that it was trained by
            made.seeds.copy_(tensors["blocks.seeds"])
            made.load_state_dict(_part(tensors, "blocks."))
        if shared is not None:
            shared.load_state_dict(_part(tensors, "shared."))
        if field(record, "encoder", bool):
            if encoder is None:
                raise InputError("this model was saved with an encoder: give one like it")
            encoder.load_state_dict(_part(tensors, "encoder."))
        elif encoder is not None:
            raise InputError("this model was saved without an encoder: give none")
        return Model(
            made,
            head,
            encoder,
            normalize=None if normal is None else Normalisation.from_json(normal),
            classes=names,
            inputs=None if inputs is None else InputFormat.from_json(inputs),
            prototypes=part_records.prototypes_from_json(record),
            seeds=seeds,
            alone=not held,
            **samplers,
        )
    except InputError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise InputError(f"this is no model that this version can load: {error}") from error


def _seeds_of(held: list[int]) -> str:
    return "blocks.seeds" if held else "head.seeds"


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
