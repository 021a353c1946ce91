"""Small objects and batches for the tests of the public layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import noprop_kernels as nk

F, D, M, T, B = 7, 5, 5, 3, 6

NORM = nk.BatchNorm(momentum=0.3)
PLANS = {
    "mlp": nk.plans.mlp(F, D, M, hidden=6),
    "norm": nk.Plan(
        inputs={"x": (F,), "z": (D,)},
        layers={
            "hx": nk.Dense("x", 6, norm=NORM, activation="relu"),
            "hz": nk.Dense(("z", "hx"), 6, norm=NORM, add="hx"),
            "logits": nk.Dense(("hz", "x"), M),
        },
    ),
    "gelu": nk.Plan(
        inputs={"x": (F,), "z": (D,)},
        layers={
            "hx": nk.Dense("x", 6, norm=NORM, activation="gelu"),
            "hz": nk.Dense(("z", "hx"), 6, activation="gelu", add="hx"),
            "logits": nk.Dense("hz", M),
        },
    ),
    "two_inputs": nk.Plan(
        inputs={"x": (F,), "z": (D,), "t": (4,)},
        layers={
            "h": nk.Dense(("x", "t", "z"), 6, activation="relu"),
            "logits": nk.Dense("h", M),
        },
    ),
}
# every kind, convolutions read by each; odd sizes, so that pools drop pixels
IMAGE = (2, 12, 11)
IMAGES = nk.Plan(
    inputs={"x": IMAGE, "z": (D,)},
    layers={
        "c1": nk.Conv2d("x", 6, activation="relu", pool=nk.MaxPool2d(), dropout=0.2),
        "c2": nk.Conv2d("c1", 5, 2, activation="relu", dropout=0.3),
        "c3": nk.Conv2d("c2", 5, 1, add="c2"),
        "hx": nk.Dense("c3", 6, norm=NORM),
        "hz": nk.Dense("z", 6, norm=NORM, activation="relu", add="hx"),
        "logits": nk.Dense(("hz", "c1", "c3"), M),
    },
)
GOAL = nk.DT(nk.NoiseSchedule.cosine(T))


def make(plan: str = "mlp", **options: Any) -> nk.DenoisingBlocks:
    return nk.DenoisingBlocks(PLANS[plan], GOAL, **options)


def make_images(**options: Any) -> nk.DenoisingBlocks:
    return nk.DenoisingBlocks(IMAGES, GOAL, **options)


def images(rows: int = B, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, *IMAGE, generator=generator)
    return x, torch.randint(M, (rows,), generator=generator)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def batch(rows: int = B, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, F, generator=generator)
    return x, torch.randint(M, (rows,), generator=generator)


def data(rows: int = 20) -> tuple[Tensor, Tensor]:
    return batch(rows, seed=2)


def indices(*shape: int, rows: int = 20) -> Tensor:
    return torch.randint(rows, shape, generator=torch.Generator().manual_seed(3))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def of_slices(state: Mapping[str, Tensor], index: list[int]) -> dict[str, Tensor]:
    """The entries of some slices."""
    return {name: value[index] for name, value in state.items() if name != "W_embed"}


def assert_same(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """Equal bit for bit."""
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


def assert_close(got: Tensor, want: Tensor, name: str = "") -> None:
    """Equal up to another order of sums in float32, in units of the largest entry."""
    assert got.shape == want.shape, name
    error = (got.detach() - want.detach()).abs().max()
    assert error <= 4e-6 * want.detach().abs().max(), f"{name}: max error {error:.3e}"
