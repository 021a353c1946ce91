"""Threads that share a slice's work, where they outnumber the slices, or its steps, where they do
not divide them evenly: the same bits as one.
"""

from types import ModuleType

import pytest
import torch

from noprop_kernels import functional, plans
from noprop_kernels.backends.cpu import extension
from noprop_kernels.optimizers import AdamW
from noprop_kernels.plan import BatchNorm, Dense, Plan
from support.calls import clone_call, make_train_call
from support.compare import results

PLANS = {
    "mlp": plans.mlp(301, 5, 6, hidden=67),
    "norm and skips": Plan(
        inputs={"x": (97,), "z": (5,)},
        layers={
            "h": Dense(("z", "x"), 97, activation="relu", add="x"),
            "left": Dense("h", 97, norm=BatchNorm(), add="h"),
            "right": Dense(("h", "left"), 97, activation="relu", norm=BatchNorm(), add="left"),
            "g": Dense("left", 97, activation="gelu", norm=BatchNorm(), add="h"),
            "logits": Dense(("right", "g", "x"), 6),
        },
    ),
}


# every team in every mode, and every two of either, of a plan and of a precision
TEAMS = [
    ([*PLANS][t % 2 ^ m % 2], *team, mode, ("float32", "bfloat16")[t // 2 ^ m // 2])
    for t, team in enumerate(((1, 2), (1, 5), (2, 4), (2, 7)))
    for m, mode in enumerate(("update", "gather", "extras", "grads"))
]


@pytest.mark.parametrize("plan, n, threads, mode, precision", TEAMS)
def test_a_team_gives_the_bits_of_one_thread(
    kernels: ModuleType, plan: str, n: int, threads: int, mode: str, precision: str, monkeypatch
) -> None:
    B, K = 131, 1 if mode in ("extras", "grads") else 3
    call = make_train_call(
        PLANS[plan], n + 1, n, B, K, optimizer=None if mode == "grads" else AdamW(), seed=threads,
        extras=mode == "extras", grads=mode == "grads", gather=mode == "gather",
    )  # fmt: skip
    call.slices.precision = precision
    alone = clone_call(call)
    monkeypatch.setattr(extension, "threads", lambda: threads)
    assert kernels.team_size(PLANS[plan], n, B) >= min(2, threads // n)
    kernels.train(call)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    assert kernels.team_size(PLANS[plan], n, B) == 1
    kernels.train(alone)
    assert torch.equal(call.out.applied, alone.out.applied)
    for (name, got), (_, expected) in zip(results(call), results(alone), strict=True):
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("n, threads", [(3, 2), (4, 3), (5, 4), (9, 8)])
@pytest.mark.parametrize("mode", ["update", "gather"])
def test_slices_in_several_tasks_have_the_bits_of_one(
    kernels: ModuleType, mode: str, n: int, threads: int, monkeypatch
) -> None:
    """Where threads cannot have as many slices each, they take turns at a slice's steps."""
    plan = PLANS["norm and skips"]
    call = make_train_call(
        plan, n + 1, n, 131, 9, optimizer=AdamW(), seed=threads, gather=mode == "gather"
    )
    alone = clone_call(call)
    monkeypatch.setattr(extension, "threads", lambda: threads)
    assert kernels.team_size(plan, n, 131) == 1
    kernels.train(call)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    kernels.train(alone)
    assert call.out.applied.all()
    for (name, got), (_, expected) in zip(results(call), results(alone), strict=True):
        assert torch.equal(got, expected), name


def test_a_team_stops_at_a_loss_that_is_not_finite(kernels: ModuleType, monkeypatch) -> None:
    call = make_train_call(PLANS["mlp"], 1, 1, 131, 2, optimizer=AdamW())
    call.slices.params["hx.weight"][0, 66, 300] = torch.nan
    before = clone_call(call)
    monkeypatch.setattr(extension, "threads", lambda: 4)
    kernels.train(call)
    assert not call.out.applied.any()
    assert torch.equal(call.slices.draws, before.slices.draws + 2)
    for name, value in call.slices.params.items():
        assert torch.equal(value.nan_to_num(7), before.slices.params[name].nan_to_num(7)), name


@pytest.mark.parametrize("head", functional.HEADS)
@pytest.mark.parametrize("embedded", [False, True])
def test_threads_share_the_rows_of_noise_and_loss(
    kernels: ModuleType, head: str, embedded: bool, monkeypatch
) -> None:
    """With the bits of one thread, and every row's own level, weight and noise."""
    B, M = 131, 501
    rng = torch.Generator().manual_seed(1)
    y = torch.randint(M, (B,), generator=rng)
    logits, signal, noise, weight = (
        torch.randn(shape, generator=rng) for shape in ((B, M), (B,), (B,), (B,))
    )
    W_embed = torch.randn(M, 300, generator=rng) if embedded else None
    flow = 0.0 if head == "cross_entropy" else 1.0

    def run(threads: int) -> list[torch.Tensor]:
        monkeypatch.setattr(extension, "threads", lambda: threads)
        options = {"num_classes": M, "sigma": 0.5, "seed": 3, "first_row": 7}
        z, eps = functional.add_noise(y, signal, noise, W_embed=W_embed, **options)
        given = logits.clone().requires_grad_()
        W = None if head == "cross_entropy" else W_embed
        error = functional.denoising_loss(
            given, y, weight, W_embed=W, head=head, flow=flow, eps=eps if flow else None
        )
        error.sum().backward()
        return [z, eps, error.detach(), given.grad]

    for got, expected in zip(run(5), run(1), strict=True):
        assert torch.equal(got, expected)
