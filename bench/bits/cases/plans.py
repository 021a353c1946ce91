"""The plans of the cases."""

from collections.abc import Callable
from typing import NamedTuple

import noprop_kernels as nk


class Sizes(NamedTuple):
    F: int
    D: int
    M: int
    hidden: int
    B: tuple[int, ...]
    seeds: tuple[int, ...]  # one replica each


SIZES = Sizes(F=70, D=5, M=6, hidden=37, B=(7, 130), seeds=(11, -12))
# interpreted and emulated kernels run thousands of times slower
SMALL = Sizes(F=7, D=5, M=6, hidden=9, B=(7,), seeds=(11,))


def norm(s: Sizes) -> nk.Plan:
    """Batch norm with and without an activation, a skip, concatenations."""
    norm = nk.BatchNorm(momentum=0.3)
    return nk.Plan(
        inputs={"x": (s.F,), "z": (s.D,)},
        layers={
            "h": nk.Dense(("z", "x"), s.hidden, norm=norm, activation="relu"),
            "left": nk.Dense("h", s.hidden, norm=nk.BatchNorm(eps=1e-3), add="h"),
            "right": nk.Dense(("h", "left"), s.hidden, activation="relu", add="left"),
            "logits": nk.Dense(("right", "x"), s.M),
        },
    )


def two_inputs(s: Sizes) -> nk.Plan:
    """A second input of the caller's, "t", that two layers read."""
    return nk.Plan(
        inputs={"t": (6,), "z": (s.D,), "x": (s.F,)},
        layers={
            "hx": nk.Dense(("x", "t"), s.hidden, activation="relu"),
            "hz": nk.Dense("z", 8),
            "f": nk.Dense(("hx", "hz", "t"), 11, activation="relu"),
            "logits": nk.Dense("f", s.M),
        },
    )


def added_input(s: Sizes) -> nk.Plan:
    """The inputs themselves are added."""
    return nk.Plan(
        inputs={"x": (s.F,), "z": (s.D,)},
        layers={
            "h": nk.Dense(("z", "x"), s.F, activation="relu", add="x"),
            "u": nk.Dense("h", s.D, norm=nk.BatchNorm(), add="z"),
            "logits": nk.Dense(("u", "h"), s.M),
        },
    )


def gelu(s: Sizes) -> nk.Plan:
    """An activation whose gradient reads what stood before it, with and without norm and skip."""
    return nk.Plan(
        inputs={"x": (s.F,), "z": (s.D,)},
        layers={
            "h": nk.Dense(("z", "x"), s.hidden, activation="gelu"),
            "n": nk.Dense("h", s.hidden, norm=nk.BatchNorm(), activation="gelu", add="h"),
            "right": nk.Dense(("h", "n"), s.hidden, activation="gelu", add="n"),
            "logits": nk.Dense("right", s.M),
        },
    )


def images(s: Sizes) -> nk.Plan:
    """Convolutions with and without a pool, dropout, a skip."""
    return nk.Plan(
        inputs={"x": (2, 9, 8), "z": (s.D,)},
        layers={
            "c": nk.Conv2d("x", 4, activation="relu", pool=nk.MaxPool2d(), dropout=0.2),
            "d": nk.Conv2d("c", 4, 1, activation="relu", add="c"),
            "e": nk.Conv2d("d", 5, 2),
            "h": nk.Dense(("e", "z"), s.hidden, activation="relu"),
            "logits": nk.Dense("h", s.M),
        },
    )


def timed(s: Sizes) -> nk.Plan:
    """A block of CT and FM, which draw its input "t"."""
    return nk.plans.mlp(s.F, s.D, s.M, hidden=s.hidden, time=True)


PLANS: dict[str, Callable[[Sizes], nk.Plan]] = {
    "mlp": lambda s: nk.plans.mlp(s.F, s.D, s.M, hidden=s.hidden),
    "one_hot": lambda s: nk.plans.mlp(s.F, s.M, s.M, hidden=s.hidden),
    "norm": norm,
    "two_inputs": two_inputs,
    "added_input": added_input,
    "gelu": gelu,
    "images": images,
    "paper_dt": lambda s: nk.plans.paper_dt(s.F, s.D, s.M),
}
WIDE = ("paper_dt",)  # layers of up to 512, too slow for every case
