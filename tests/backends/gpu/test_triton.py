"""The Triton backend on a GPU: no waiting, graphs, launches, memory, deferred errors."""

from functools import partial

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels import tuning
from noprop_kernels.backends import dispatch
from support import on_gpu
from support.on_gpu import PLANS, B, F, M, T, data, indices, same

pytestmark = pytest.mark.gpu
if reason := dispatch.triton_gap(torch.device("cuda")):
    pytest.skip(reason, allow_module_level=True)

make = partial(on_gpu.make, "triton")


@pytest.mark.parametrize("plan", PLANS)
def test_replayed_steps_are_single_steps(plan: str) -> None:
    X, Y = data()
    single, replayed = make(plan), make(plan)
    for seed in range(4):  # plain launches, a capture, two replays
        rows = indices(5, seed)
        losses = replayed.train_steps(X, Y, rows)
        one_by_one = torch.stack([single.train_step(X[i], Y[i]).loss for i in rows])
        assert torch.equal(losses, one_by_one)
    assert same(single, replayed)


def test_long_calls_and_groups_of_slices_change_no_bit() -> None:
    X, Y = data()
    whole, parts, grouped = make(), make(), make(blocks_per_launch=2)
    rows = indices(70)
    losses = whole.train_steps(X, Y, rows)
    assert torch.equal(torch.cat([parts.train_steps(X, Y, r) for r in rows.split(9)]), losses)
    assert torch.equal(grouped.train_steps(X, Y, rows), losses)
    assert same(whole, parts) and same(whole, grouped)


def test_launches_change_no_bit_and_tuning_leaves_no_trace() -> None:
    X, Y = data()
    static, others = make(precision="tf32"), make(precision="tf32")
    before = {name: value.clone() for name, value in others.state_dict().items()}
    chosen = tuning.tune(others, X[:B], Y[:B], repeats=3)
    assert all(torch.equal(value, before[name]) for name, value in others.state_dict().items())
    choices = (chosen, tuning.Launches(pdl=False), tuning.Launches())
    for seed, choice in enumerate(choices):
        for _ in range(3):  # plain launches, a capture, a replay
            rows = indices(4, seed)
            with tuning.use(choice):
                losses = others.train_steps(X, Y, rows)
            assert torch.equal(losses, static.train_steps(X, Y, rows)), choice
    assert same(static, others)


def test_a_step_waits_for_nothing() -> None:
    X, Y = data()
    blocks = make()
    blocks.train_step(X[:B], Y[:B])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for lr in (1e-3, 2e-3):
            blocks.train_step(X[:B], Y[:B], lr=lr)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("op", ["train", "forward", "predict", "add_noise"])
def test_check_waits_and_tells(op: str) -> None:
    X, Y = data()
    blocks, x, y = make(), X[:B].clone(), Y[:B].clone()
    x[3, 2], y[5] = torch.nan, M
    calls = {
        "train": lambda: blocks.train_step(x, Y[:B]),
        "forward": lambda: blocks(x, torch.zeros(B, M, device="cuda")),
        "predict": lambda: blocks.predict(x),
        "add_noise": lambda: blocks.add_noise(y),
    }
    calls[op]()
    make().check()
    with pytest.raises(ValueError, match=f"{op}: in an earlier call"):
        blocks.check()
    blocks.check()
    assert blocks.updates.tolist() == [0] * T


def test_check_of_the_device_is_of_functions_too() -> None:
    y = torch.tensor([0, M], device="cuda")
    nk.functional.add_noise(y, 0.5, 0.5, seed=1, num_classes=M)
    with pytest.raises(ValueError, match="add_noise: in an earlier call labels"):
        nk.check_device("cuda")
    nk.check_device()


def test_check_sees_what_the_caller_s_graph_met() -> None:
    X, Y = data()
    blocks, x, y = make(), X[:B].clone(), Y[:B].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        blocks.train_step(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        blocks.train_step(x, y)
    graph.replay()
    blocks.check()
    y[0] = M
    graph.replay()
    with pytest.raises(ValueError, match="train_steps or gradients: in an earlier call labels"):
        blocks.check()


def test_no_memory_changes_nothing() -> None:
    X, Y = data()
    plan = nk.plans.mlp(F, M, M, hidden=64)
    blocks, small = make(plan), make(plan, blocks_per_launch=1)
    rows = torch.randint(500, (2, 200_000), device="cuda")
    before = {name: value.clone() for name, value in blocks.state_dict().items()}
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    used = torch.cuda.memory_reserved()
    # three slices' workspace takes 963 MiB, one slice's 346
    torch.cuda.set_per_process_memory_fraction((used + 600 * 2**20) / total)
    try:
        with pytest.raises(
            MemoryError, match="train_steps: no memory on cuda.*blocks_per_launch below"
        ):
            blocks.train_steps(X, Y, rows)
        small.train_steps(X, Y, rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for name, value in blocks.state_dict().items():
        assert torch.equal(value, before[name]), name
    blocks.train_steps(X, Y, rows)
    assert same(blocks, small)


def test_tensors_on_another_device_are_named() -> None:
    X, Y = data()
    blocks = make()
    for call, name in [
        (lambda: blocks.train_step(X[:B].cpu(), Y[:B]), "x"),
        (lambda: blocks.train_steps(X, Y, indices(1).cpu()), "indices"),
        (lambda: blocks.predict(X.cpu()), "x"),
    ]:
        with pytest.raises(ValueError, match=f"{name} must be on cuda:0, got cpu"):
            call()
