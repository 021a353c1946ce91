"""The variants of NoProp: their goals, and which settings of a run have a meaning for which."""

from dataclasses import dataclass
from typing import Any

import noprop_kernels as nk
from noprop_kernels.optimizers import Adam, AdamW, Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "adam": Adam}
MIN_SNR = "min-snr"


@dataclass(frozen=True)
class Variant:
    """A variant.

    Attributes:
        defaults: the settings that it has, and others have not, with their defaults; steps None
            are those of the answer and of the paper's protocol each.
        without_head: why it has no head with fixed embeddings, where it has none.
    """

    defaults: dict[str, Any]
    without_head: str | None = None


OF_CT = {"eta": 1.0, "weight": "snr", "gamma_0": -3.0, "gamma_1": 6.0, "sampler": "ancestral"}
SAMPLED = {"stratified": False, "steps": None}
VARIANTS = {
    "dt": Variant({"T": 10, "eta": 0.1, "order": "paper"}),
    "ct": Variant({**OF_CT, "schedule": "linear", **SAMPLED}),
    "fm": Variant(
        {"sigma": 0.0, "sampler": "euler", **SAMPLED},
        "the classes of an fm with fixed embeddings are read by the nearest embedding",
    ),
}


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


def goal_of(variant: str, **own: Any) -> nk.DT | nk.CT | nk.FM:
    """The goal of a variant.

    Args:
        variant: one of VARIANTS.
        own: its settings, by name; others are not looked at.

    Raises:
        ValueError: a setting does not fit.
    """
    if variant == "dt":
        return nk.DT(nk.NoiseSchedule.cosine(T=own["T"]), eta=own["eta"])
    if variant == "ct":
        ends = own["gamma_0"], own["gamma_1"]
        learned = own.get("schedule") == "learned"
        gamma = nk.GammaNetwork(own["gamma_hidden"], *ends) if learned else nk.Gamma.linear(*ends)
        return nk.CT(gamma, own["eta"], parse_weight(own["weight"]), own["stratified"])
    return nk.FM(own["sigma"], own["stratified"])


def optimizer_of(name: str, lr: float, weight_decay: float) -> Optimizer:
    """The optimizer of a run: adamw, or adam, whose weight decay is part of the gradient."""
    return OPTIMIZERS[name](lr=lr, weight_decay=weight_decay)
