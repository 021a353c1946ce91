"""What a checkpoint has of a model; loading.py reads it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn, strided
from torch.nn.parameter import is_lazy

from . import checkpoint, json_records, network_records, part_records, sampling, variants
from .json_records import Json
from .modules.blocks import ModuleBlocks
from .normalisation import Normalisation

if TYPE_CHECKING:
    from .model import Model


def content_of(model: "Model", training: Json | None) -> tuple[Json, int]:
    """The record beside the tensors, and its format, of checkpoint.FORMATS.

    Args:
        training: the trainer's own record.
    """
    blocks = model.blocks
    if isinstance(blocks, ModuleBlocks):
        layers = {"networks": network_records.networks_to_json(blocks)}
    else:
        layers = {"plan": json_records.plan_to_json(blocks.plan)}
    content = {
        "model": {
            **layers,
            "goal": variants.goal_to_json(blocks.goal),
            "order": list(model.held),
            **({"seeds": model.seeds} if part_records.is_apart(model) else {}),
            **({} if model.replicas == 1 else {"replicas": model.replicas}),
            **sampling.samplers_to_json(model.goal, model.sampler, model.paper_sampler),
            "normalisation": None
            if model.normalize is None
            else Normalisation.of(model.normalize).to_json(),
            "inputs": None if model.inputs is None else model.inputs.to_json(),
            "class_names": None if model.classes_ is None else list(model.classes_),
            "encoder": model.encoder is not None,
            **part_records.parts_to_json(model),
            "optimizers": {
                name: json_records.optimizer_to_json(part.optimizer)
                for name, part in ({"blocks": blocks} | model.optimized).items()
                if not isinstance(part, ModuleBlocks)  # which has torch's, made by code
            },
            "precision": {
                name: part.precision for name, part in ({"blocks": blocks} | model.learners).items()
            },
            "classes": blocks.M,
            "embed_dim": blocks.D,
        },
        "versions": model.versions(),
        "training": training,
    }
    third = part_records.is_apart(model) or "shares" in (training or {})
    if third or isinstance(blocks, ModuleBlocks):
        return content, checkpoint.FORMATS[2]
    return content, checkpoint.FORMATS[0 if part_records.has_first_form(model) else 1]


def tensors_of(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """`Model.tensors` of a model's parts."""
    values, seen = {}, set()
    for part, module in parts.items():
        for name, value in module.state_dict().items():
            values[f"{part}.{name}"] = value = _savable(f"{part}.{name}", value)
            memory = value.untyped_storage().data_ptr()
            if value.numel() and memory in seen:
                values[f"{part}.{name}"] = value.detach().clone()
            seen.add(memory)
    return values


def _savable(name: str, value: Any) -> Tensor:
    """`value` of a state_dict, after checking that a checkpoint can hold it."""
    plain = isinstance(value, Tensor) and not is_lazy(value)
    if not plain or value.layout != strided or value.is_quantized:
        raise ValueError(
            f"save: {name} must be a dense tensor, which a checkpoint can hold, got "
            f"{type(value).__name__}"
        )
    return value
