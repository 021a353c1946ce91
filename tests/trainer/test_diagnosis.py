"""A block that hurts is found among others, and its repair gives the bits that it had."""

import json
from pathlib import Path

import pytest
import torch

from noprop import checkpoint, data, metrics
from noprop.building import Split
from noprop.diagnosis import Chain, calibration, diagnose, some, trained_errors
from noprop.runs import Run
from support.cli import QUICK, call, words
from support.units import damage

pytestmark = pytest.mark.usefixtures("alone")

ALL = [*QUICK, "--lr", 0.02, "--epochs", 8]


@pytest.fixture
def trained(toy_file):
    """A run of three blocks on the toy data."""
    call("train", "--data", toy_file, *ALL, "--out", "run")
    return Path("run")


def found_in(folder: Path, *options: object) -> dict:
    return json.loads(call("diagnose", folder, "--json", *options).stdout)


def split_of(run: Run) -> Split:
    return Split.of(data.load(run.settings.data, None), run.settings.val_fraction)


def test_a_damaged_block_is_found_and_gets_its_bits_back():
    """On the digits; the answer hardly tells that a block is damaged."""
    call("train", "--T", 4, "--hidden", 32, "--epochs", 12, "--out", "run")
    sha = checkpoint.load_content(Path("run"))["tensors"]["sha256"]
    assert found_in(Path("run"))["hurt"] == []
    damage(Path("run"), 2, scale=0.3)
    found = found_in(Path("run"))
    assert found["hurt"] == [2]
    sick = found["blocks"][1]
    assert sick["error"] > 3 * sick["trained_error"]
    text = words(call("diagnose", "run").stdout)
    assert "block 2: its error is" in text and "noprop repair run --block 2 trains it again" in text
    call("repair", "run", "--block", 2)
    assert checkpoint.load_content(Path("run"))["tensors"]["sha256"] == sha
    assert found_in(Path("run"))["hurt"] == []


def test_a_diagnosis_changes_nothing(trained):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    run = Run.load(trained)
    tensors = {name: value.clone() for name, value in run.model.tensors().items()}
    found = diagnose(run, split_of(run))
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    for name, value in run.model.tensors().items():
        assert torch.equal(value, tensors[name]), name
    assert found.rows == 130 and not found.hurt
    assert all(block.seconds is None or block.seconds > 0 for block in found.blocks)
    assert "no block hurts" in call("diagnose", trained).stdout


def test_statistics_of_batch_norm_stay(image_file):
    call(
        "train", "--data", image_file, "--preset", "paper", "--T", 2, "--epochs", 1, "--out", "run"
    )
    run = Run.load(Path("run"))
    tensors = {name: value.clone() for name, value in run.model.tensors().items()}
    blocks = diagnose(run, split_of(run)).blocks
    assert any(name.endswith("running_mean") for name in tensors)
    for name, value in run.model.tensors().items():
        assert torch.equal(value, tensors[name]), name
    assert run.model.blocks.training and all(block.hidden > 100 for block in blocks)


def test_the_last_block_hurts_the_answer(trained):
    """Without it the chain has the belief of the block before."""
    damage(trained, 3, scale=30.0)
    found = found_in(trained)
    last = found["blocks"][2]
    assert last["gain"] < 0 and last["without"] > found["accuracy"] + 0.2
    assert last["gain"] == pytest.approx(found["accuracy"] - last["without"], abs=1e-12)
    assert any("more of the rows are answered right" in reason for reason in last["reasons"])
    assert 3 in found["hurt"]


def test_numbers_that_are_not_finite(trained):
    run = Run.load(trained)
    with torch.no_grad():
        run.model.blocks.f.weight[0, 0, :5] = float("nan")
        run.model.blocks.f.weight_m[1] = float("inf")  # a moment: its block answers as before
    run.save()
    found = found_in(trained)
    assert [block["not_finite"] for block in found["blocks"]] == [5, 0, 0]
    assert found["blocks"][0]["error"] is None and found["blocks"][0]["calibration"] is None
    assert "5 of its numbers are not finite" in found["blocks"][0]["reasons"]


def test_dead_units(trained):
    """Counted after each ReLU: of hx, hz and f."""
    run = Run.load(trained)
    with torch.no_grad():
        run.model.blocks.hx.bias[1] = -1e3
        run.model.blocks.f.bias[1, :6] = -1e3
    run.save()
    blocks = found_in(trained)["blocks"]
    assert all(block["hidden"] == 24 for block in blocks)
    assert blocks[1]["dead"] >= 14 and max(blocks[0]["dead"], blocks[2]["dead"]) < 12
    assert any("hidden units are dead" in reason for reason in blocks[1]["reasons"])


def test_the_chain_is_that_of_the_answer(trained):
    run = Run.load(trained)
    rows, y = some(*(getattr(split_of(run), name) for name in ("x", "y")))
    chain = Chain(run.model, rows, y)
    answer = run.model.predict(rows)
    assert torch.allclose(run.model.scores(chain.z[-1]), answer.scores, atol=1e-5)
    assert torch.equal(chain.right, answer.labels == y)
    a, b = chain.a, chain.b
    z = a[0] * chain.W.mean(0) + 0 * chain.z[0]
    z = a[1] * chain.answer(2, z)[1] + b[1] * z
    z = a[2] * chain.answer(3, z)[1] + b[2] * z
    assert torch.allclose(chain.without(1), z, atol=1e-6)
    last = a[2] * chain.u_hat[2] + b[2] * chain.z[2]
    assert torch.allclose(chain.without(3), last, atol=1e-6)


def test_rows_that_are_held_out(toy_file):
    call("train", "--data", toy_file, *ALL, "--val-fraction", 0.25, "--out", "run")
    run = Run.load(Path("run"))
    held = split_of(run).x_val
    assert held is not None and found_in(Path("run"))["rows"] == len(held) < 40
    assert f"{len(held)} held-out rows" in call("diagnose", "run").stdout


def test_a_run_of_some_blocks(toy_file):
    call("train", "--data", toy_file, *ALL, "--blocks", "1,3", "--out", "part")
    damage(Path("part"), 3)
    found = found_in(Path("part"))
    assert found["accuracy"] is None and [block["t"] for block in found["blocks"]] == [1, 3]
    assert found["hurt"] == [3] and found["blocks"][0]["without"] is None
    assert found["blocks"][0]["alone"] > 0.5 and found["blocks"][0]["trained_error"] > 0


def test_errors_of_training_are_those_of_the_last_epoch(trained):
    run, lines = Run.load(trained), metrics.read(trained)
    assert trained_errors(run) == dict(zip((1, 2, 3), lines[-1]["error"], strict=True))
    metrics.append(trained, lines[-1] | {"epoch": 9, "units": [2, "head"], "error": [0.5]})
    assert trained_errors(run) == {1: lines[-1]["error"][0], 2: 0.5, 3: lines[-1]["error"][2]}


def test_calibration():
    """Two rows of confidence .9, of which one is right, and two of .6, of which both are."""
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    y = torch.tensor([0, 1, 1, 1])
    assert calibration(probs, y) == pytest.approx((2 * 0.4 + 2 * 0.4) / 4, abs=1e-6)
    assert calibration(probs * float("nan"), y) is None


def test_rows_are_spread(toy):
    x, y = some(torch.arange(2500)[:, None], torch.arange(2500))
    assert len(x) == 834 and y[-1] == 2499 and torch.equal(x[:, 0], y)


@pytest.mark.parametrize("options", [["--variant", "ct"], ["--seeds", "0,1"]], ids=str)
def test_runs_without_units(toy_file, options):
    quick = ["--hidden", 8, "--epochs", 1]
    call("train", "--data", toy_file, *quick, *options, "--out", "run")
    text = call("diagnose", "run", code=1).stderr
    assert "run has no units of its own" in text
