"""Plans and optimizers to JSON and back: the description of a saved model."""

from dataclasses import asdict, is_dataclass
from typing import Any, get_args, get_origin

from torch import Tensor

from noprop_kernels.optimizers import OPTIMIZERS, Optimizer
from noprop_kernels.plan import BatchNorm, Conv2d, Dense, Layer, MaxPool2d, Plan

from .errors import InputError

Json = dict[str, Any]


def field(record: Json, name: str, kind: type) -> Any:
    """record[name], after checking that it exists and has this type.

    Raises:
        InputError: it is missing, or has another type.
    """
    value = record.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        got = "nothing" if value is None else type(value).__name__
        raise InputError(f"a saved model must carry its {name} ({kind.__name__}), got {got}")
    return value


def is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value has a field's type; an int is accepted for a float."""
    kinds = tuple(get_origin(each) or each for each in get_args(kind) or (kind,))
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def check_sizes(record: Json, plan: Plan | None, held: int, tensors: dict[str, Tensor]) -> None:
    """Checks that the tensors have the sizes that a saved model of so many blocks names, before
    memory for it is allocated, and that counters are not negative; networks of one's own have no
    plan.

    Raises:
        InputError: one does not fit.
    """
    R = field({"replicas": 1} | record, "replicas", int)  # recorded where there are several
    shapes = {} if plan is None else plan.parameters() | plan.statistics()
    sizes = {f"blocks.{name}": (R * held, *shape) for name, shape in shapes.items() if held}
    if record.get("head", True):  # the only head of early versions
        sizes["head.logits.weight"] = (
            R,
            field(record, "classes", int),
            field(record, "embed_dim", int),
        )
    for name, size in sizes.items():
        if name not in tensors or tuple(tensors[name].shape) != size:
            got = list(tensors[name].shape) if name in tensors else "nothing"
            raise InputError(f"a saved model must have {name} {list(size)}, got {got}")
    for name, tensor in tensors.items():
        if name.endswith((".updates", ".draws")) and (tensor < 0).any():
            raise InputError(f"a saved model must have {name} from 0 on, got {int(tensor.min())}")


def layer_to_json(layer: Layer) -> Json:
    assert is_dataclass(layer) and not isinstance(layer, type)  # as every kind is
    return {"kind": type(layer).__name__, **asdict(layer)}


def plan_to_json(plan: Plan) -> Json:
    layers = [[name, layer_to_json(layer)] for name, layer in plan.layers.items()]
    inputs = [[name, list(shape)] for name, shape in plan.inputs.items()]
    return {"inputs": inputs, "layers": layers}  # lists of pairs, since the order matters


KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Dense, Conv2d)}
PARTS: dict[str, Any] = {"norm": BatchNorm, "pool": MaxPool2d}  # of a layer


def plan_from_json(record: Json) -> Plan:
    layers = {}
    for name, values in field(record, "layers", list):
        values = dict(values)
        kind = values.pop("kind", None)
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise InputError(
                f"a saved plan has a layer of kind {kind!r}, this version knows {known}"
            )
        sources = values.pop("inputs")
        for part, made in PARTS.items():
            if values.get(part) is not None:
                values[part] = made(**values[part])
        sources = sources if isinstance(sources, str) else tuple(sources)
        layers[name] = KINDS[kind](sources, **values)
    inputs = {name: tuple(shape) for name, shape in field(record, "inputs", list)}
    return Plan(inputs, layers)


def optimizer_to_json(optimizer: Optimizer | None) -> Json | None:
    return None if optimizer is None else {"kind": optimizer.kind, **asdict(optimizer)}


def optimizer_from_json(record: Json | None) -> Optimizer | None:
    if record is None:
        return None
    values: Json = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    kind = values.pop("kind", None)
    if kind not in OPTIMIZERS:
        raise InputError(f"a saved optimizer is of kind {kind!r}, known are {list(OPTIMIZERS)}")
    return OPTIMIZERS[kind](**values)
