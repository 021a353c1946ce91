"""Batches of few rows and chains that threads share: the bits of any other batch and thread."""

from types import ModuleType

import pytest
import torch

from noprop_kernels import plans
from noprop_kernels.backends.chain_calls import PredictCall
from noprop_kernels.backends.cpu import extension
from noprop_kernels.plan import BatchNorm, Dense, Plan
from support.calls import clone_call
from support.chains import make_predict_call

OUTPUTS = ("logits", "u_hat", "z")
SHAPES = {  # widths on both sides of every vector's, of pairs and of the four inputs of a square
    "mlp": plans.mlp(301, 5, 6, hidden=67),
    "wide": plans.mlp(64, 10, 40, hidden=128),
    "skips": Plan(
        inputs={"x": (97,), "z": (5,)},
        layers={
            "h": Dense(("z", "x"), 97, activation="relu", add="x"),
            "left": Dense("h", 97, norm=BatchNorm(), add="h"),
            "right": Dense(("h", "left"), 3, activation="relu", norm=BatchNorm()),
            "g": Dense("left", 33, activation="gelu"),
            "logits": Dense(("right", "g", "x"), 6),
        },
    ),
}


def rows_of(whole: PredictCall, first: int, rows: int) -> PredictCall:
    """The same call for some of its rows, with outputs that hold NaN."""
    part = clone_call(whole)
    part.first_row = whole.first_row + first
    part.inputs = {
        name: x[:, first : first + rows].contiguous() for name, x in whole.inputs.items()
    }
    for field in OUTPUTS:
        shape = getattr(whole, field).shape
        setattr(part, field, torch.full((*shape[:3], rows, shape[4]), torch.nan))
    return part


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("plan", SHAPES)
def test_rows_in_batches_of_every_small_size(
    kernels: ModuleType, plan: str, precision: str
) -> None:
    whole = make_predict_call(SHAPES[plan], 1, 3, 153, 1, first_row=11)
    whole.slices.precision = precision
    kernels.predict(whole)
    for rows in range(1, 18):
        for first in range(0, 153, rows) if rows == 1 else (0, 7, 153 - rows):
            part = rows_of(whole, first, rows)
            kernels.predict(part)
            for field in OUTPUTS:
                expected = getattr(whole, field)[:, :, :, first : first + rows]
                assert expected.isfinite().all()
                assert torch.equal(getattr(part, field), expected), (field, first, rows)


# every batch with every crew, and every two of either, of what is kept and of a precision
CREWS = [
    (B, *crew, bool(b % 2 ^ c % 2), ("float32", "bfloat16")[b // 2 ^ c // 2])
    for b, B in enumerate((1, 3, 40, 131))
    for c, crew in enumerate(((1, 2), (1, 5), (2, 4), (2, 7)))
]


@pytest.mark.parametrize("B, R, threads, keep_all, precision", CREWS)
def test_a_crew_gives_the_bits_of_one_thread(
    kernels: ModuleType, B: int, R: int, threads: int, keep_all: bool, precision: str, monkeypatch
) -> None:
    plan = plans.mlp(301, 5, 6, hidden=300)
    crew = make_predict_call(plan, R, 3, B, 1, keep_all=keep_all, seed=B)
    crew.slices.precision = precision
    alone = clone_call(crew)
    monkeypatch.setattr(extension, "threads", lambda: threads)
    chains = R * (2 if B > 128 else 1)
    if chains < threads:
        assert kernels.crew_size(plan, chains, min(B, 128)) >= min(2, threads // chains)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    assert kernels.crew_size(plan, chains, min(B, 128)) == 1
    kernels.predict(alone)
    monkeypatch.setattr(extension, "threads", lambda: threads)
    for _ in range(10):
        for field in OUTPUTS:
            getattr(crew, field).fill_(torch.nan)
        kernels.predict(crew)
        for field in OUTPUTS:
            assert torch.equal(getattr(crew, field), getattr(alone, field)), field
