"""The time of a repair is measured beside a run's, and its bits are compared."""

import importlib.util
import json

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)
if not all(map(importlib.util.find_spec, ("typer", "rich"))):
    pytest.skip("the trainer needs its extra", allow_module_level=True)

from bench.problem.twin import Mismatch
from bench.whole import repair


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("preset", ["mlp", "paper"])
def test_a_run_and_a_repair_are_timed(tmp_path, capsys, monkeypatch, preset):
    monkeypatch.setattr(repair, "QUICK_ROWS", 256)
    out = tmp_path / "lines.jsonl"
    options = ["--quick", "--epochs", "1", "--T", "3", "--block", "2", "--preset", preset]
    assert repair.main([*options, "--threads", "1", "--out", str(out)]) == 0
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["kind"] == "repair" and line["shape"] == f"synthetic-{preset}"
    assert line["block"] == 2 and line["settings"]["epochs"] == 1 and line["threads"] == 1
    (whole,), (block,) = line["whole_seconds"], line["repair_seconds"]
    assert whole > 0 and block > 0 and line["ratio"] == block / whole
    shown = capsys.readouterr().out
    assert f"{line['ratio']:.3f}" in shown and f"synthetic-{preset}" in shown


def test_other_bits_are_an_error(monkeypatch):
    content = repair.synthetic(256)
    settings = repair.settings_of("synthetic", "mlp", 2, 1, 0, 256)
    own = repair.retrain
    monkeypatch.setattr(repair, "retrain", lambda *args: own(*args, seed=1))
    with pytest.raises(Mismatch, match="block 2 has other bits after its repair"):
        repair.measure(content, settings, 1, 2, 1)


def test_what_does_not_fit(capsys):
    for options, says in (
        (["--block", "11"], "--block must be at most 10, got 11"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--data", "nothing"], "nothing"),
    ):
        with pytest.raises(SystemExit):
            repair.main(options)
        assert says in capsys.readouterr().err
