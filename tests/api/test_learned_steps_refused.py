"""What nk.Coupled refuses, before anything moves."""

import pytest
import torch

import noprop_kernels as nk
from support.blocks import B, M, assert_same, batch, snapshot
from support.learned import GOALS, WIDTH, make, make_plan


def test_the_order_paper_needs_its_t_and_the_others_have_none() -> None:
    x, y = batch()
    for goal, order, t, text in (
        ("dt", "paper", None, 't must be given in the order "paper"'),
        ("dt", "paper", 4, "t must be"),
        ("dt", "all-t", 1, "t must be None with order 'all-t'"),
        ("dt", "sampled", 1, "t must be None with order 'sampled'"),
        ("ct", "paper", 2, "t must be None with one block"),
    ):
        coupled = make(goal, order)
        before = snapshot(coupled)
        with pytest.raises(ValueError, match=text):
            coupled.step(x, y, t)
        assert_same(snapshot(coupled), before)


def refused_step(change: str) -> None:
    coupled, (x, y) = make("fm"), batch()
    if change == "optimizer":
        plain = nk.Shared(GOALS["fm"], nk.LearnedEmbedding(M, WIDTH), optimizer=None)
        blocks = nk.DenoisingBlocks(make_plan(True), GOALS["fm"], shared=plain)
        coupled = nk.Coupled(blocks, nk.OutputHead(WIDTH, M, goal=GOALS["fm"], shared=plain), plain)
    before = snapshot(coupled)
    try:
        if change == "eval":
            coupled.eval()
        if change == "lr":
            coupled.step(x, y, lr=torch.ones(1))
        elif change == "negative":
            coupled.step(x, y, lr=-1.0)
        elif change == "y":
            coupled.step(x, y[:3])
        elif change == "labels":
            coupled.step(x, y + M)
        elif change == "graph":
            coupled.step(x.clone().requires_grad_(), y)
        else:
            coupled.step(x, y)
    finally:
        assert_same(snapshot(coupled), before)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("optimizer", "optimizer must not be None"),
        ("eval", "mode must be that of train"),
        ("lr", "lr must be a number or None"),
        ("negative", "lr must be finite and at least 0"),
        ("y", "y must have shape"),
        ("labels", "labels must be in 0..4"),
        ("graph", "inputs must not require a gradient"),
    ],
)
def test_what_does_not_fit_moves_nothing(change: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        refused_step(change)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    dt, ct, fm = make("dt"), make("ct"), make("fm")
    fixed = make("fm", embedding=None)
    own = nk.DenoisingBlocks(make_plan(False, M), GOALS["dt"])
    held = nk.DenoisingBlocks(make_plan(False), GOALS["dt"], shared=dt.shared, held=[1])
    two = make("dt", embedding=None, seed=[1, 2])
    for make_it, text in (
        (lambda: nk.Coupled(dt.head, dt.head, dt.shared), "blocks must be DenoisingBlocks"),
        (lambda: nk.Coupled(dt.blocks, dt.blocks, dt.shared), "head must be an OutputHead or None"),
        (lambda: nk.Coupled(dt.blocks, dt.head, None), "shared must be a Shared"),
        (lambda: nk.Coupled(dt.blocks, dt.head, ct.shared), "blocks must be made with this shared"),
        (lambda: nk.Coupled(dt.blocks, make("dt").head, dt.shared), "head must be made with this"),
        (lambda: nk.Coupled(own, dt.head, dt.shared), "this shared=, got none"),
        (lambda: nk.Coupled(dt.blocks, None, dt.shared), "head must be an OutputHead under this"),
        (lambda: nk.Coupled(fm.blocks, None, fm.shared), "head must be an OutputHead under this"),
        (lambda: nk.Coupled(held, dt.head, dt.shared), "blocks must hold all of the 3 blocks"),
        (lambda: nk.Coupled(dt.blocks, dt.head, dt.shared, order="any"), "order must be one of"),
        (lambda: nk.Coupled(two.blocks, two.head, two.shared, order="sampled"), "with 2 replicas"),
        (
            lambda: nk.OutputHead(M, M, goal=GOALS["fm"], shared=fixed.shared),
            "goal must not be an FM",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            make_it()


def test_calls_that_would_leave_what_is_shared_behind_are_refused() -> None:
    X, Y = batch()
    rows = torch.arange(B)[None]
    for goal in ("dt", "ct"):
        coupled = make(goal)
        with pytest.raises(ValueError, match="shared must learn nothing.*take Coupled.step"):
            coupled.blocks.train_steps(X, Y, rows)
        with pytest.raises(ValueError, match="shared must learn nothing.*take Coupled.step"):
            coupled.head.train_steps(Y, rows, 1)
    fixed = make("dt", embedding=None)
    assert fixed.blocks.train_steps(X, Y, rows).shape == (1, 3)
    head = make("fm").head
    for call in (lambda: head.train_step(Y, 1), lambda: head.train_steps(Y, rows, 1)):
        with pytest.raises(ValueError, match="goal must not be an FM"):
            call()
