"""What a saved model has of networks of one's own: all but their code, which loading is given."""

from typing import Any

from torch import Tensor

from noprop_kernels.goal import Goal

from .errors import InputError
from .json_records import Json, field
from .modules.blocks import ModuleBlocks
from .variants import goal_to_json


def networks_to_json(blocks: ModuleBlocks) -> Json:
    return {
        "kinds": sorted({type(network).__name__ for network in blocks.networks}),
        "x_shape": None if blocks.x_shape is None else list(blocks.x_shape),
        "time_width": blocks.time_width,
        "encoder": type(blocks.encoders[0]).__name__ if len(blocks.encoders) else None,
        "share_encoder": blocks.share_encoder,
        "optimizer": None if blocks.optimizer is None else blocks.optimizer.kind,
    }


def loaded_networks(
    record: Json, goal: Goal, tensors: dict[str, Tensor], blocks: object
) -> ModuleBlocks:
    """`blocks`, which a caller of `load` has given, with the saved state.

    Raises:
        InputError: it is none, or not like the saved one; then it has not changed.
    """
    saved = field(record, "networks", dict)
    if not isinstance(blocks, ModuleBlocks):
        kinds = ", ".join(map(str, field(saved, "kinds", list)))
        raise InputError(
            f"this model has networks of its own ({kinds}), whose code is not saved: give "
            "blocks=, a noprop.ModuleBlocks made as the saved one was"
        )
    sizes = {"classes": blocks.M, "embed_dim": blocks.D, "precision": blocks.precision}
    own: dict[str, Any] = {"goal": goal_to_json(blocks.goal), **sizes, "replicas": blocks.replicas}
    precision = field(record, "precision", dict).get("blocks")
    then = {"replicas": 1} | record | {"goal": goal_to_json(goal), "precision": precision}
    own |= networks_to_json(blocks)
    then |= saved
    for name, value in own.items():
        if then.get(name) != value:
            raise InputError(
                f"this model was saved with the blocks' {name} {then.get(name)}, got blocks= with "
                f"{value}"
            )
    given = {
        name.removeprefix("blocks."): value
        for name, value in tensors.items()
        if name.startswith("blocks.")
    }
    try:
        if field(record, "order", list):  # a head alone was saved without blocks
            blocks.load_state_dict(given)
    except ValueError as error:
        raise InputError(f"this model's blocks are not like blocks=: {error}") from error
    return blocks
