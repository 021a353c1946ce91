"""Slices as torch.nn modules: shared with the stack, or apart and without this library."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from support.blocks import B, D, T, assert_same, batch, make, of_slices, snapshot

LOAD = """
import sys, torch
block, x, z, want = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(block(x, z), want)
assert not any(name.startswith("noprop") for name in sys.modules)
"""


@pytest.mark.parametrize("plan", ["mlp", "norm", "gelu", "two_inputs"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_block_computes_what_forward_does(backend, plan, training):
    x, y = batch()
    inputs = {"x": x} | ({"t": torch.randn(B, 4)} if plan == "two_inputs" else {})
    blocks = make(plan, seed=[0, 1])
    blocks.train_step(inputs, y)
    blocks.train(training)
    z = blocks.add_noise(y)
    for r, t in [(0, 1), (0, 3), (1, 2)]:
        i = r * T + t - 1
        block = blocks.block(t, replica=r)
        assert block.training is training
        by_name = inputs | {"z": z[i]}
        want = block(*(by_name[name] for name in blocks.plan.inputs))
        got = blocks(inputs, z[[t - 1, T + t - 1]], blocks=t)[r]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_it_is_made_of_torchs_own_parts():
    block = make("norm").block(2)
    assert isinstance(block, fx.GraphModule)
    assert {type(m) for m in block.modules()} - {type(block)} == {nn.Linear, nn.BatchNorm1d}
    names = {name for name in block.state_dict() if "num_batches" not in name}
    plan = make("norm").plan
    assert names == set(plan.parameters()) | set(plan.statistics())


def test_what_one_trains_the_other_has(backend):
    x, y = batch()
    blocks = make("norm")
    block = blocks.block(2).train()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    before = snapshot(blocks)
    block(x, torch.zeros(B, D)).square().mean().backward()
    optimizer.step()
    after = snapshot(blocks)
    others = of_slices(after, [0, 2])
    assert_same(others, of_slices(before, [0, 2]))
    for name in ("hx.weight", "logits.bias", "hz.norm.weight", "hx.norm.running_mean"):
        assert not torch.equal(after[name][1], before[name][1]), name
    blocks.train_step(x, y)
    for name, value in block.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, blocks.state_dict()[name][1]), name
            assert not torch.equal(value, after[name][1]) or "bias" in name, name


@pytest.mark.parametrize("kind", ["plain", "foreach", "fused"])
def test_torchs_optimizers_on_a_shared_block(kind):
    x, _ = batch()
    blocks = make()
    module, block = blocks.to_modules()[1], blocks.block(2)
    for trained in (module, block):
        options = {} if kind == "plain" else {kind: True}
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.01, **options)
        for _ in range(3):
            optimizer.zero_grad()
            trained(x, torch.ones(B, D)).square().mean().backward()
            optimizer.step()
    for name, value in module.state_dict().items():
        assert torch.equal(blocks.state_dict()[name][1], value), name


def test_a_shared_blocks_graph_notices_a_step(backend):
    x, y = batch()
    blocks = make()
    out = blocks.block(2)(x, torch.ones(B, D))
    blocks.train_step(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_modules_apart_are_copies_and_load_back(backend):
    x, y = batch()
    blocks, other = make("norm", seed=[0, 1]), make("norm", seed=[5, 6])
    blocks.train_step(x, y)
    modules = blocks.to_modules()
    assert len(modules) == 2 * T
    before = snapshot(blocks)
    with torch.no_grad():
        for parameter in modules[0].parameters():
            parameter.add_(1)
    assert_same(snapshot(blocks), before)
    other.load_modules(blocks.to_modules())
    names = [*blocks.plan.parameters(), *blocks.plan.statistics()]
    for name in names:
        assert torch.equal(other.state_dict()[name], before[name]), name
    assert other.updates.eq(0).all() and other.seeds.unique().tolist() == [5, 6]
    blocks.load_modules(modules)
    assert torch.equal(blocks.hx.bias[0], before["hx.bias"][0] + 1)


def test_modules_that_do_not_fit():
    blocks = make()
    before = snapshot(blocks)
    modules = blocks.to_modules()
    for given, text in [
        (modules[:2], "blocks must be 3 modules, one per slice, got 2"),
        (modules[:2] + make("norm").to_modules()[:1], "hz.weight must have shape"),
        (modules[:2] + [nn.Linear(2, 2)], "hx.weight must be a tensor, got NoneType"),
    ]:
        with pytest.raises(ValueError, match=f"load_modules: {text}"):
            blocks.load_modules(given)
    assert_same(snapshot(blocks), before)
    with pytest.raises(ValueError, match=r"replica must be in \[0, 1\), got 1"):
        blocks.block(1, replica=1)
    with pytest.raises(ValueError, match="must be distinct t in 1..3"):
        blocks.block(4)
    with pytest.raises(ValueError, match=r"must be among \[1, 2\], held, got \[3\]"):
        make(held=[1, 2]).block(3)


def test_a_copied_block_runs_without_the_library(tmp_path: Path):
    x, _ = batch()
    block = make("norm").to_modules()[1].eval()
    z = torch.zeros(B, D)
    want = block(x, z).detach()
    assert torch.equal(pickle.loads(pickle.dumps(block))(x, z), want)
    torch.save((block, x, z, want), tmp_path / "block.pt")
    assert (tmp_path / "block.pt").stat().st_size < 50_000
    command = [sys.executable, "-I", "-c", LOAD, str(tmp_path / "block.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
