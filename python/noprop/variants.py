"""The variants of NoProp: all that the trainer does differently for one than for another."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.goal import Goal
from noprop_kernels.optimizers import Adam, AdamW, Optimizer

from .errors import InputError
from .json_records import Json, field

OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "adam": Adam}
MIN_SNR = "min-snr"


def parse_weight(text: str) -> str | tuple[str, float]:
    """A CT's weight: snr, uniform, or min-snr:K.

    Raises:
        ValueError: it is none of these.
    """
    name, colon, k = text.partition(":")
    if text in ("snr", "uniform"):
        return text
    try:
        if name == MIN_SNR and colon:
            return MIN_SNR, float(k)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not available, there is: snr, uniform, {MIN_SNR}:K, K a number")


@dataclass(frozen=True)
class Variant:
    """A variant.

    Attributes:
        goal: the type of its goals.
        of_settings: a goal from a run's settings by name; others are not looked at.
        to_json, from_json: a goal as a saved model has it, beside its kind.
        last_signal: the signal of the last z, and its square.
        defaults: the settings that it has, and others have not, with their defaults; steps None
            are those of the answer and of the paper's protocol each.
        sampled: whether one block of all t answers by a sampler of so many steps, with the
            probabilities of the last one; else T blocks do in turn, with the later half's mean.
        softmax: whether a block has probabilities. A velocity has none: its classes are read by
            the nearest embedding to the last z, and by no head.
        without_head: why it has no head with fixed embeddings, where it has none.
    """

    goal: type[Goal]
    of_settings: Callable[[dict[str, Any]], Goal]
    to_json: Callable[[Any], Json]
    from_json: Callable[[Json], Goal]
    last_signal: Callable[[Any], tuple[float, float]]
    defaults: dict[str, Any]
    sampled: bool = True
    softmax: bool = True
    without_head: str | None = None


def dt_signal(goal: nk.DT) -> tuple[float, float]:
    # from float64, and not by way of a rounded root
    alpha_bar = float(goal.schedule.alpha_bar[-1])
    return alpha_bar**0.5, alpha_bar


def timed_signal(goal: nk.CT | nk.FM) -> tuple[float, float]:
    signal = goal.last().signal.item()
    return signal, signal**2


def ct_of(own: dict[str, Any]) -> nk.CT:
    ends = own["gamma_0"], own["gamma_1"]
    learned = own.get("schedule") == "learned"
    gamma = nk.GammaNetwork(own["gamma_hidden"], *ends) if learned else nk.Gamma.linear(*ends)
    return nk.CT(gamma, own["eta"], parse_weight(own["weight"]), own["stratified"])


def ct_to_json(goal: nk.CT) -> Json:
    gamma = goal.schedule
    if isinstance(gamma, nk.GammaNetwork):  # how it began
        saved: Any = {"kind": "network", **asdict(gamma)}
    else:
        assert isinstance(gamma, nk.Gamma)  # by CT, whose blocks have no values of a learned one
        saved = gamma.values.tolist()
    own = {"weight": goal.weight, "stratified": goal.stratified}
    return {"eta": goal.eta, "gamma": saved, **own}


def ct_from_json(record: Json) -> nk.CT:
    saved = record.get("gamma")
    if not isinstance(saved, dict):
        gamma = nk.Gamma(_numbers(record, "gamma"))
    elif (kind := saved.get("kind")) != "network":
        raise InputError(f"a saved gamma is of kind {kind!r}, this version knows network")
    else:
        ends = (field(saved, name, float) for name in ("gamma_0", "gamma_1"))
        gamma = nk.GammaNetwork(field(saved, "hidden", int), *ends)
    own = field(record, "eta", float), field(record, "weight", object)
    return nk.CT(gamma, *own, field(record, "stratified", bool))


def _numbers(record: Json, name: str) -> Tensor:
    return torch.tensor(field(record, name, list), dtype=torch.float64, device="cpu")


OF_CT = {"eta": 1.0, "weight": "snr", "gamma_0": -3.0, "gamma_1": 6.0, "sampler": "ancestral"}
SAMPLED = {"stratified": False, "steps": None}
VARIANTS = {
    "dt": Variant(
        nk.DT,
        lambda own: nk.DT(nk.NoiseSchedule.cosine(T=own["T"]), eta=own["eta"]),
        lambda goal: {"eta": goal.eta, "alpha_bar": goal.schedule.alpha_bar.tolist()},
        lambda record: nk.DT(
            nk.NoiseSchedule(_numbers(record, "alpha_bar")), field(record, "eta", float)
        ),
        dt_signal,
        {"T": 10, "eta": 0.1, "order": "paper"},
        sampled=False,
    ),
    "ct": Variant(
        *(nk.CT, ct_of, ct_to_json, ct_from_json, timed_signal),
        {**OF_CT, "schedule": "linear", **SAMPLED},
    ),
    "fm": Variant(
        nk.FM,
        lambda own: nk.FM(own["sigma"], own["stratified"]),
        lambda goal: {"sigma": goal.sigma, "stratified": goal.stratified},
        lambda record: nk.FM(field(record, "sigma", float), field(record, "stratified", bool)),
        timed_signal,
        {"sigma": 0.0, "sampler": "euler", **SAMPLED},
        softmax=False,
        without_head="the classes of an fm with fixed embeddings are read by the nearest embedding",
    ),
}


def variant_of(op: str, goal: Goal) -> Variant:
    """The variant of a goal, which may be of a subclass.

    Raises:
        ValueError: there is none.
    """
    for variant in VARIANTS.values():
        if isinstance(goal, variant.goal):
            return variant
    got = type(goal).__name__
    raise ValueError(f"{op}: blocks must have a DT, CT or FM as goal, got {got}")


def goal_to_json(goal: Goal) -> Json:
    """
    Raises:
        ValueError: it is of a class of the user's own, which would come back as another.
    """
    variant, name = variant_of("save", goal), type(goal).__name__
    if type(goal) is not variant.goal:
        raise ValueError(f"save: goal must be {variant.goal.__name__} itself, got {name}")
    return {"kind": name, **variant.to_json(goal)}


def goal_from_json(record: Json) -> Goal:
    """
    Raises:
        InputError: it is of a kind that this version does not know, or cannot be read.
    """
    for variant in VARIANTS.values():
        if record.get("kind") == variant.goal.__name__:
            return variant.from_json(record)
    raise InputError(
        f"a saved goal is of kind {record.get('kind')!r}, this version knows DT, CT and FM"
    )


def optimizer_of(name: str, lr: float, weight_decay: float) -> Optimizer:
    """The optimizer of a run: adamw, or adam, whose weight decay is part of the gradient."""
    return OPTIMIZERS[name](lr=lr, weight_decay=weight_decay)
