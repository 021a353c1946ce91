"""`noprop train` on the Triton backend: a run from its first step to its test, and onto the CPU's.

Triton's interpreter runs it on the CPU. With nothing looked at by the host the way is a GPU's but
for the launches.
"""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import noprop
from noprop import checkpoint, cli
from noprop.cli import train as command
from noprop_kernels.backends.gpu import checks

pytestmark = pytest.mark.triton

SMALL = ["--hidden", "5", "--T", "2", "--batch-size", "16", "--lr", "0.02"]
SMALL += ["--lr-schedule", "constant", "--seed", "3", "--head", "paper"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """20 rows, a batch and a short one, of three clouds; 8 for the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(command, "SAMPLES", 1)  # the interpreter is slow
    random = np.random.default_rng(0)

    def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = random.integers(0, 3, count)
        x = 60 + 90 * np.eye(3, 4)[y] + random.normal(0, 10, (count, 4))
        return x.astype(np.uint8), y

    (x, y), (x_test, y_test) = rows(20), rows(8)
    np.savez("small.npz", x=x, y=y, x_test=x_test, y_test=y_test)
    return "small.npz"


@pytest.fixture(params=["the host looks", "as on a GPU"])
def looks(request: pytest.FixtureRequest, kernels: ModuleType, monkeypatch) -> None:
    if request.param == "as on a GPU":
        as_on_a_gpu(kernels, monkeypatch)


def as_on_a_gpu(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "contents_are_checked", lambda device: False)


def call(*args: object) -> dict:
    result = CliRunner().invoke(cli.app, [*map(str, args), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) | {"stderr": result.stderr}


def tensors(run: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(Path(run))[1]


def assert_near(one: str, other: str) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-4, msg=name)
        else:
            assert torch.equal(value, b[name]), name


def test_a_run_is_the_cpu_s_up_to_rounding(data: str, looks: None) -> None:
    train = ["train", "--data", data, *SMALL, "--epochs", 2, "--device", "cpu"]
    ours = call(*train, "--backend", "triton", "--out", "triton")
    theirs = call(*train, "--backend", "cpu", "--out", "cpu")
    assert ours["backend"] == "triton" and ours["triton"] and ours["instruction_set"] is None
    assert "on cpu (backend triton), " in ours["stderr"]
    assert_near("triton", "cpu")
    assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.13)
    assert (ours["block_updates"], ours["head_updates"]) == (4, 8)


def test_a_run_goes_on_on_the_other_backend(data: str, kernels: ModuleType, monkeypatch) -> None:
    as_on_a_gpu(kernels, monkeypatch)
    train = ["train", "--data", data, *SMALL, "--device", "cpu"]
    for first, second in (("triton", "cpu"), ("cpu", "triton")):
        call(*train, "--epochs", 1, "--backend", first, "--out", first)
        outcome = call("train", "--resume", first, "--epochs", 2, "--backend", second)["stderr"]
        assert f"backend was {first}, is {second}; from here on the bits may differ" in outcome
    call(*train, "--epochs", 2, "--backend", "cpu", "--out", "straight")
    for name in ("triton", "cpu"):
        assert_near(name, "straight")


def test_stopped_and_gone_on_with_it_has_the_same_bits(
    data: str, kernels: ModuleType, monkeypatch
) -> None:
    as_on_a_gpu(kernels, monkeypatch)
    train = ["train", "--data", data, *SMALL, "--device", "cpu", "--backend", "triton"]
    call(*train, "--epochs", 2, "--out", "straight")
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    call(*train, "--epochs", 1, "--out", "halves")
    call("train", "--resume", "halves", "--epochs", 2, "--backend", "triton")
    straight, halves = tensors("straight"), tensors("halves")
    assert all(torch.equal(value, halves[name]) for name, value in straight.items())


def test_a_saved_model_predicts_on_either(data: str, kernels: ModuleType) -> None:
    call("train", "--data", data, *SMALL, "--epochs", 1, "--backend", "triton", "--out", "run")
    x = torch.randint(256, (9, 4), dtype=torch.uint8)
    ours, theirs = (noprop.load("run", backend=name).predict(x) for name in ("triton", "cpu"))
    torch.testing.assert_close(ours.probs, theirs.probs, rtol=1e-4, atol=1e-5)
    evaluated = call("eval", "run", "--backend", "triton")
    assert evaluated["backend"] == "triton"


def test_dry_run_counts_the_blocks_that_are_trained_at_once(data: str, kernels) -> None:
    train = ["train", "--data", data, *SMALL, "--device", "cpu", "--backend", "triton", "--dry-run"]
    outcome = [call(*train), call(*train, "--blocks-per-launch", 1)]
    assert [one["workers"] for one in outcome] == [2, 1]
    assert [one["bytes"]["activations"] for one in outcome] == [2 * 4 * 16 * 18, 4 * 16 * 18]


class Spoiler(torch.nn.Module):
    """An encoder whose features are not finite, which `fit` cannot see in its data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[5, 1] = torch.nan
        return x


def test_what_only_the_kernels_see_ends_the_epoch(kernels: ModuleType, monkeypatch) -> None:
    """No later call would raise the error of the very last one."""
    import noprop_kernels as nk

    as_on_a_gpu(kernels, monkeypatch)
    goal = nk.DT(nk.NoiseSchedule.cosine(1))
    options = {"goal": goal, "backend": "triton"}
    blocks = nk.DenoisingBlocks(nk.plans.mlp(4, 3, 3, hidden=4), **options)
    model = noprop.Model(blocks, nk.OutputHead(3, 3, **options), Spoiler())
    x, y = torch.rand(8, 4), torch.zeros(8, dtype=torch.int64)
    epochs: list = []
    with pytest.raises(
        ValueError, match="train_steps or gradients: in an earlier call inputs must be finite"
    ):
        noprop.fit(model, x, y, epochs=1, batch_size=8, on_epoch=epochs.append)
    assert not epochs and blocks.updates.tolist() == [0]
