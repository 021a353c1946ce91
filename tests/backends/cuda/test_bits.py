"""No bit depends on groups, thread blocks, shared memory, launches or the order of threads."""

from types import ModuleType

import pytest
import torch

from noprop_kernels import settings
from noprop_kernels.backends.calls import TrainCall
from noprop_kernels.backends.cuda import placement, program
from noprop_kernels.backends.cuda.placement import Layout
from noprop_kernels.optimizers import AdamW
from support.calls import PLANS, clone_call, make_train_call
from support.chains import make_predict_call
from support.compare import assert_same

pytestmark = pytest.mark.cuda_host
LAYOUTS = [(1, 1), (1, 3), (1, 16), (2, 1), (2, 5), (3, 5)]
LAYOUTS += [(1, 8, True), (2, 5, True), (3, 6, True)]  # clusters, once more than fit together


def make(plan: str = "branches", precision: str = "bfloat16", **options) -> TrainCall:
    made = PLANS[plan](70, 5, 6)
    options = {"optimizer": AdamW(), "gather": True, "flow": 1.0, "head": "linear"} | options
    call = make_train_call(made, 4, 3, 37, 3, **options)
    call.slices.precision = precision
    return call


def run(kernels: ModuleType, call: TrainCall) -> TrainCall:
    call = clone_call(call)
    kernels.train(call)
    return call


def same(one: TrainCall, other: TrainCall) -> None:
    assert_same(one.slices, other.slices)
    assert_same(one.out, other.out)


@pytest.mark.parametrize("plan, precision", [("branches", "bfloat16"), ("mlp", "float32")])
def test_groups_and_thread_blocks(
    kernels: ModuleType, monkeypatch, plan: str, precision: str
) -> None:
    call = make(plan, precision)
    asked = []
    results = []
    for layout in LAYOUTS:

        def fixed(*sizes, layout=layout) -> Layout:
            asked.append(layout)
            return Layout(*layout)

        monkeypatch.setattr(placement, "layout", fixed)
        results.append(run(kernels, call))
    assert asked == LAYOUTS
    assert results[0].out.applied.all()
    for other in results[1:]:
        same(results[0], other)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_the_order_in_which_threads_run(kernels: ModuleType, monkeypatch, precision: str) -> None:
    call = make("branches", precision)
    first = run(kernels, call)
    for clusters in ("0", "1"):
        monkeypatch.setenv(settings.CLUSTERS, clusters)
        for seed in ("1", "2", "3"):
            monkeypatch.setenv("NOPROP_HOST_SEED", seed)
            same(first, run(kernels, call))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_steps_of_a_launch(kernels: ModuleType, monkeypatch, steps: int) -> None:
    call = make()
    whole = run(kernels, call)
    monkeypatch.setattr(kernels, "STEPS", steps)
    same(whole, run(kernels, call))


def test_moments_in_shared_memory(kernels: ModuleType, monkeypatch) -> None:
    """Those of most tiles of a thread block, of some, of all, of none."""
    call, kept, results = make("mlp", "float32"), [], []
    keep = placement.keep_moments

    def watched(*arguments) -> int:
        kept.append(keep(*arguments))
        return kept[-1]

    monkeypatch.setattr(placement, "keep_moments", watched)
    for blocks, room in ((1, 5 * 8192), (1, 3 * 8192), (2, 5 * 8192), (1, 0)):
        monkeypatch.setattr(placement, "layout", lambda *sizes, b=blocks: Layout(1, b))
        monkeypatch.setattr(program, "room_for_state", lambda *which, room=room: room)
        results.append(run(kernels, call))
    assert kept == [5 * 8192, 3 * 8192, 5 * 8192, 0]
    for other in results[1:]:
        same(results[0], other)


def test_a_chain_s_thread_blocks(kernels: ModuleType, monkeypatch) -> None:
    call = make_predict_call(PLANS["branches"](9, 5, 6), 2, 3, 40, 2, keep_all=True)
    results = []
    for layout in [(1, 1), (2, 1), (2, 7), (2, 7, True)]:
        monkeypatch.setattr(placement, "layout", lambda *sizes, layout=layout: Layout(*layout))
        made = clone_call(call)
        kernels.predict(made)
        results.append(made)
    for other in results[1:]:
        for name in ("logits", "u_hat", "z"):
            assert torch.equal(getattr(other, name), getattr(results[0], name)), name
