"""`noprop train --device cuda`: its run, its checkpoints, and the way to the CPU and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import noprop
import noprop_kernels as nk
from noprop import checkpoint, cli
from noprop_kernels.backends import dispatch

pytestmark = pytest.mark.gpu
if reason := dispatch.triton_gap(torch.device("cuda")):
    pytest.skip(reason, allow_module_level=True)

SMALL = ["--hidden", "32", "--T", "4", "--batch-size", "64", "--lr-schedule", "constant"]
SMALL += ["--head", "paper"]


def rows(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Clouds of bytes that overlap, so that accuracies are not 1."""
    y = random.integers(0, 5, count)
    x = 100 + 40 * np.eye(5, 12)[y] + random.normal(0, 30, (count, 12))
    return np.clip(x, 0, 255).astype(np.uint8), y


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    random = np.random.default_rng(0)
    (x, y), (x_test, y_test) = rows(1000, random), rows(1000, random)
    np.savez("clouds.npz", x=x, y=y, x_test=x_test, y_test=y_test)
    return "clouds.npz"


def call(*args: object, code: int = 0) -> dict:
    result = CliRunner().invoke(cli.app, [*map(str, args), "--json"])
    assert result.exit_code == code, result.output
    outcome = json.loads(result.stdout) if code == 0 else {}
    return outcome | {"stderr": result.stderr}


def tensors(run: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(Path(run))[1]


def deviation(accuracy: float, count: int) -> float:
    return 4 * (accuracy * (1 - accuracy) / count) ** 0.5


def test_auto_takes_the_gpu_and_answers_as_the_cpu(data: str) -> None:
    train = ["train", "--data", data, *SMALL, "--epochs", 8, "--out"]
    ours, theirs = call(*train, "gpu"), call(*train, "cpu", "--device", "cpu")
    name = torch.cuda.get_device_name()
    assert (ours["device"], ours["backend"]) == (name, "triton")
    assert f"on cuda:{torch.cuda.current_device()} ({name}), backend triton" in ours["stderr"]
    for key in ("test_accuracy", "accuracy_no_noise", "accuracy_last_block"):
        assert abs(ours[key] - theirs[key]) <= deviation(theirs[key], 1000), key
    gpu, cpu = tensors("gpu"), tensors("cpu")
    assert gpu.keys() == cpu.keys()
    for name, value in gpu.items():
        assert (value.shape, value.dtype) == (cpu[name].shape, cpu[name].dtype)
    for name in ("blocks.updates", "blocks.draws", "head.updates", "head.draws"):
        assert torch.equal(gpu[name], cpu[name]), name


@pytest.mark.parametrize("first, second", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_the_other_device(data: str, first: str, second: str) -> None:
    train = ["train", "--data", data, *SMALL, "--device", first, "--out"]
    call(*train, "moved", "--epochs", 4)
    moved = call("train", "--resume", "moved", "--epochs", 8, "--device", second)
    lines = [line for line in moved["stderr"].splitlines() if "warning" in line]
    assert len(lines) == 1 and lines[0].count(torch.cuda.get_device_name()) == 1
    assert "the algorithm is the same; from here on the bits may differ" in lines[0]
    straight = call(*train, "straight", "--epochs", 8)
    for key in ("test_accuracy", "accuracy_no_noise"):
        assert abs(moved[key] - straight[key]) <= deviation(straight[key], 1000), key
    assert moved["block_updates"] == straight["block_updates"]


def test_stopped_and_gone_on_with_it_has_the_same_bits(data: str, monkeypatch) -> None:
    train = ["train", "--data", data, *SMALL, "--device", "cuda", "--out"]
    call(*train, "straight", "--epochs", 4)
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    call(*train, "halves", "--epochs", 2)
    call("train", "--resume", "halves", "--epochs", 4, "--blocks-per-launch", 3)
    straight, halves = tensors("straight"), tensors("halves")
    assert all(torch.equal(value, halves[name]) for name, value in straight.items())


def test_a_saved_model_predicts_on_either(data: str) -> None:
    call("train", "--data", data, *SMALL, "--epochs", 2, "--device", "cuda", "--out", "run")
    x = torch.from_numpy(rows(100, np.random.default_rng(1))[0])
    on_gpu, on_cpu = noprop.load("run").to("cuda").predict(x), noprop.load("run").predict(x)
    torch.testing.assert_close(on_gpu.probs.cpu(), on_cpu.probs, rtol=1e-3, atol=1e-4)
    assert call("eval", "run")["device"] == torch.cuda.get_device_name()


def test_a_gpu_that_is_not_there(data: str) -> None:
    count = torch.cuda.device_count()
    outcome = call("train", "--data", data, "--device", f"cuda:{count}", code=2)["stderr"]
    assert f"no GPU cuda:{count}" in outcome


def test_a_call_of_the_loop_synchronises_once(monkeypatch) -> None:
    """By torch's own watch: nothing but the read of the losses waits."""
    goal = nk.DT(nk.NoiseSchedule.cosine(3))
    blocks = nk.DenoisingBlocks(nk.plans.mlp(12, 5, 5, hidden=32), goal)
    model = noprop.Model(blocks, nk.OutputHead(5, 5, goal=goal)).to("cuda")
    x, y = (torch.from_numpy(value) for value in rows(640, np.random.default_rng(2)))
    noprop.fit(model, x, y, epochs=3, batch_size=64)  # compiles and captures
    for part in (model.blocks, model.head):

        def watched(*args, train_steps=part.train_steps, **options):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return train_steps(*args, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(part, "train_steps", watched)
    noprop.fit(model, x, y, epochs=2, batch_size=64)


def test_data_that_are_there_already() -> None:
    x, y = (torch.from_numpy(value) for value in rows(300, np.random.default_rng(2)))
    goal = nk.DT(nk.NoiseSchedule.cosine(2))
    states = []
    for device in ("cpu", "cuda"):
        blocks = nk.DenoisingBlocks(nk.plans.mlp(12, 5, 5, hidden=32), goal)
        model = noprop.Model(blocks, nk.OutputHead(5, 5, goal=goal)).to("cuda")
        noprop.fit(model, x.to(device), y.to(device), epochs=2, batch_size=64)
        assert model.normalize is not None and model.normalize[0].device.type == "cpu"
        states.append(model.tensors())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_no_memory_for_the_data_is_told() -> None:
    goal = nk.DT(nk.NoiseSchedule.cosine(2))
    blocks = nk.DenoisingBlocks(nk.plans.mlp(1000, 5, 5, hidden=8), goal)
    model = noprop.Model(blocks, nk.OutputHead(5, 5, goal=goal)).to("cuda")
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(64 * 2**20 / total)
    try:
        x = torch.zeros(40_000, 1000)  # 160 MB
        with pytest.raises(MemoryError, match="for the 160,320,000 bytes of the data"):
            noprop.fit(model, x, torch.zeros(40_000, dtype=torch.int64), epochs=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert model.blocks.updates.tolist() == [0, 0]
