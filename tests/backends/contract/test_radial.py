"""The radial head beside the reference, on the backends that have it: a call, a step, bits."""

import dataclasses
from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import Embedding, HeadCall, TrainCall
from noprop_kernels.backends.cpu import extension
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import SGD, AdamW
from support.calls import PLANS, clone_call, make_train_call, one_slice, one_step
from support.compare import assert_calls_match, assert_matches, run_three
from support.kernels import CPU, on
from support.parts import make_head

pytestmark = on(CPU)
FIELDS = ("loss", "error", "d_logits", "u_hat")
ROWS = ("error", "d_logits", "u_hat")


def check(kernels: ModuleType, call: HeadCall) -> None:
    terms = call.embedding.M + call.embedding.D
    made = run_three(kernels, "head", call)
    for name in FIELDS:
        assert_matches(*(getattr(each, name) for each in made), terms=terms, name=name)


@pytest.mark.parametrize("unit", [0.3, 1.0])
@pytest.mark.parametrize("D", [None, 2, 20, 100])
@pytest.mark.parametrize("M", [2, 10, 100])
@pytest.mark.parametrize("B", [1, 7, 33, 128])
def test_head(kernels: ModuleType, B: int, M: int, D: int | None, unit: float) -> None:
    """The radius is in units of an embedding's size, so that no r is far from 0."""
    check(kernels, make_head(B, M, D, "radial", radius=unit * (D or 1) ** 0.5))


@pytest.mark.parametrize("D", [None, 20])
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_logits_of_any_size(kernels: ModuleType, scale: float, D: int | None) -> None:
    """From all classes alike to one alone, whose embedding u_hat then is."""
    check(kernels, make_head(33, 10, D, "radial", scale=scale, radius=1.0))


def test_embeddings_that_are_near_each_other_and_far_from_0(kernels: ModuleType) -> None:
    """A sum of u_hat u_m alone would lose their distances."""
    call = make_head(33, 10, 20, "radial", radius=1.0)
    call.embedding = Embedding(call.embedding.W_embed + 100, 20)
    check(kernels, call)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("D", [None, 3])
def test_logits_that_are_not_finite_show_in_their_row_alone(
    kernels: ModuleType, value: float, D: int | None
) -> None:
    call = make_head(20, 10, D, "radial", radius=1.0)
    call.logits[1, 13, 4] = value
    for backend in (kernels, reference):
        backend.head(call)
        bad = ~call.error.isfinite()
        assert bad[1, 13] and bad.sum() == 1
        assert call.loss.isfinite().tolist() == [True, False]


def test_outputs_are_optional(kernels: ModuleType) -> None:
    call = make_head(7, 5, 3, "radial", radius=1.0)
    whole = clone_call(call)
    kernels.head(whole)
    for name in FIELDS:
        one = dataclasses.replace(call, **{**dict.fromkeys(FIELDS), name: getattr(call, name)})
        kernels.head(one)
        assert torch.equal(getattr(one, name), getattr(whole, name))


@pytest.mark.parametrize("D", [None, 70])
def test_neither_threads_nor_other_rows_change_a_bit(
    kernels: ModuleType, D: int | None, monkeypatch
) -> None:
    call = make_head(131, 50, D, "radial", radius=0.8)
    call.loss = None  # which would keep the rows together
    alone = clone_call(call)
    monkeypatch.setattr(extension, "threads", lambda: 2)
    kernels.head(call)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    kernels.head(alone)
    for first, last in ((0, 1), (1, 18), (18, 131)):
        part = clone_call(call)
        part.y, part.logits = part.y[:, :, first:last], part.logits[:, first:last].contiguous()
        part.objective.weight = part.objective.weight[:, :, first:last]
        for name in ROWS:
            setattr(part, name, torch.full_like(getattr(part, name)[:, first:last], torch.nan))
        kernels.head(part)
        for name in ROWS:
            assert torch.equal(getattr(part, name), getattr(call, name)[:, first:last]), name
    for name in ROWS:
        assert torch.equal(getattr(alone, name), getattr(call, name)), name


STEPS = {
    "one-hot": {"one_hot": True, "optimizer": SGD(momentum=0.9)},
    "embedding": {"optimizer": AdamW(weight_decay=0.1)},
    "per row": {"per_row": True, "optimizer": AdamW(), "first_row": 11, "rows": 300},
    "features of z": {"z_features": True, "D": 4, "optimizer": AdamW()},
    "gradients": {"grads": True},
}


@pytest.mark.parametrize("B", [7, 33, 130])
@pytest.mark.parametrize("plan", ["mlp", "branches", "one_layer"])
@pytest.mark.parametrize("variant", STEPS)
def test_step(kernels: ModuleType, variant: str, plan: str, B: int) -> None:
    call = make_step(plan, B, **STEPS[variant])
    assert_calls_match(*run_three(kernels, "train", call), terms=B + 64)


def make_step(plan: str, B: int, K: int = 1, M: int = 6, D: int = 5, **options) -> TrainCall:
    D, width = (M, M) if options.get("one_hot") else (options.pop("D", D), D)
    options = {"extras": K == 1, "D": D, "seed": B + 1} | options
    return make_train_call(
        PLANS[plan](17, width, M), 3, 2, B, K, head="radial", radius=0.7, **options
    )


@pytest.mark.parametrize("M, D", [(2, 2), (10, 20), (100, 100)])
def test_steps_of_more_classes(kernels: ModuleType, M: int, D: int) -> None:
    for B in (1, 128):
        call = make_step("one_layer", B, M=M, D=D, optimizer=SGD())
        assert_calls_match(*run_three(kernels, "train", call), terms=B + M + D)


def test_bits_of_a_step(kernels: ModuleType, monkeypatch) -> None:
    """Of any number of threads, of a slice alone, and of one step after the other."""
    call = make_step("branches", 70, K=3, optimizer=AdamW())
    threads, alone, single = (clone_call(call) for _ in range(3))
    monkeypatch.setattr(extension, "threads", lambda: 2)
    kernels.train(call)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    kernels.train(threads)
    for k in range(call.K):
        kernels.train(one_step(single, k, slice(None)))
    for i in range(2):
        for k in range(call.K):
            kernels.train(one_slice(alone, i, k))
    for other in (threads, alone, single):
        for group in ("params", "m", "v", "stats"):
            for name, value in getattr(call.slices, group).items():
                assert torch.equal(value, getattr(other.slices, group)[name]), name


def test_a_loss_that_is_not_finite_leaves_its_slice(kernels: ModuleType) -> None:
    call = make_step("mlp", 9, K=2, optimizer=AdamW())
    bad = call.slices.index[1]
    call.slices.params["logits.weight"][bad, 2, 2] = torch.nan
    before = clone_call(call)
    kernels.train(call)
    assert call.out.applied.tolist() == [[True, False]] * 2
    for name, value in call.slices.params.items():
        assert torch.equal(value[bad].nan_to_num(7), before.slices.params[name][bad].nan_to_num(7))


@pytest.mark.parametrize("radius", [0.0, -1.0, torch.nan])
def test_the_radius_is_above_0(kernels: ModuleType, radius: float) -> None:
    call = make_head(7, 5, 3, "radial", radius=radius)
    with pytest.raises(ValueError, match="head: radius must be above 0 with the radial head, got"):
        kernels.head(call)
    assert call.error.isnan().all()


def test_its_errors_are_above_those_of_the_bound(kernels: ModuleType) -> None:
    """One-hot, a probability of M = 10 classes is at most 1 / (1 + 9 / e)."""
    call = make_head(33, 10, None, "radial", scale=1e4, radius=1.0)
    call.y = call.logits.argmax(-1)[None]
    exact = clone_call(call, torch.float64)
    kernels.head(call)
    reference.head(exact)
    bound = torch.tensor(1 + 9 / torch.e).log()
    for error in (call.error, exact.error):
        torch.testing.assert_close(error.float(), bound.expand(2, 33), rtol=1e-6, atol=0)
