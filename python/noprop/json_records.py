"""Plans, goals and optimizers to JSON and back: the description of a saved model."""

from dataclasses import asdict, is_dataclass
from typing import Any, get_args, get_origin

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.goal import Goal
from noprop_kernels.optimizers import OPTIMIZERS, Optimizer
from noprop_kernels.plan import BatchNorm, Conv2d, Dense, Layer, MaxPool2d, Plan

from .errors import InputError
from .sampling import Sampler

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


def goal_to_json(goal: Goal) -> Json:
    if isinstance(goal, nk.DT):
        return {"kind": "DT", "eta": goal.eta, "alpha_bar": goal.schedule.alpha_bar.tolist()}
    if isinstance(goal, nk.FM):
        return {"kind": "FM", "sigma": goal.sigma, "stratified": goal.stratified}
    assert isinstance(goal, nk.CT)  # as Model's goals are
    return {
        "kind": "CT",
        "eta": goal.eta,
        "gamma": gamma_to_json(goal.schedule),
        "weight": goal.weight,
        "stratified": goal.stratified,
    }


def goal_from_json(record: Json) -> nk.DT | nk.CT | nk.FM:
    kind = record.get("kind")
    if kind == "DT":
        alpha_bar = _numbers(record, "alpha_bar")
        return nk.DT(nk.NoiseSchedule(alpha_bar), eta=field(record, "eta", float))
    if kind == "FM":
        return nk.FM(field(record, "sigma", float), field(record, "stratified", bool))
    if kind != "CT":
        raise InputError(f"a saved goal is of kind {kind!r}, this version knows DT, CT and FM")
    return nk.CT(
        gamma_from_json(record),
        field(record, "eta", float),
        field(record, "weight", object),
        field(record, "stratified", bool),
    )


def gamma_to_json(schedule: object) -> list[float] | Json:
    """The values of a fixed schedule, or how a learned one began."""
    if isinstance(schedule, nk.GammaNetwork):
        return {"kind": "network", **asdict(schedule)}
    assert isinstance(schedule, nk.Gamma)  # by CT, whose blocks have no values of a learned one
    return schedule.values.tolist()


def gamma_from_json(record: Json) -> nk.Gamma | nk.GammaNetwork:
    saved = record.get("gamma")
    if not isinstance(saved, dict):
        return nk.Gamma(_numbers(record, "gamma"))
    if (kind := saved.get("kind")) != "network":
        raise InputError(f"a saved gamma is of kind {kind!r}, this version knows network")
    numbers = (field(saved, name, float) for name in ("gamma_0", "gamma_1"))
    return nk.GammaNetwork(field(saved, "hidden", int), *numbers)


def _numbers(record: Json, name: str) -> Tensor:
    return torch.tensor(field(record, name, list), dtype=torch.float64, device="cpu")


# of every DT, as its first versions wrote it and older readers expect it
CHAIN = {"kind": "ancestral", "equation": "arXiv:2503.24322v2, eq. 3", "from": "N(0, I)"}


def samplers_to_json(goal: object, answer: Sampler, paper: Sampler) -> Json:
    if isinstance(goal, nk.DT):
        return {"sampler": CHAIN}
    return {"sampler": answer._asdict(), "paper_sampler": paper._asdict()}


def samplers_from_json(goal: object, record: Json) -> dict[str, Sampler]:
    """The samplers of a saved model, as arguments of `Model`.

    Raises:
        InputError: one is missing or cannot be read, or is not a DT's.
    """
    if isinstance(goal, nk.DT):
        if field(record, "sampler", dict) != CHAIN:
            raise InputError(f"a saved model must have the sampler {CHAIN}")
        return {}
    samplers = {}
    for name in ("sampler", "paper_sampler"):
        saved = field(record, name, dict)
        samplers[name] = Sampler(field(saved, "kind", str), field(saved, "steps", int))
    return samplers


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
