"""A mistake in a run is one line: losses, memory, false records, faults of our own."""

import copy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noprop import checkpoint, cli, metrics, runs
from support.cli import QUICK, call, words

pytestmark = pytest.mark.usefixtures("alone")


def test_a_loss_that_is_not_finite_stops_a_saved_run(toy_file):
    arguments = ("train", "--data", toy_file, *QUICK, "--epochs", 3, "--lr", 1e30)
    text = call(*arguments, "--out", "run", code=1).stderr
    assert text.count("noprop: error:") == 1 and "epoch 1" in text
    assert "--resume run --on-nonfinite skip" in text
    record = checkpoint.load_content(Path("run"))
    assert record["training"]["progress"]["block_steps"] > 0
    call("train", "--resume", "run", "--on-nonfinite", "skip")
    for name in (checkpoint.RECORD, metrics.NAME):
        text = Path("run", name).read_text()
        assert "NaN" not in text and "Infinity" not in text
    assert len(metrics.read(Path("run"))) == 3


@pytest.mark.parametrize("threads", [0, 1025, 2**40, 10**30])
def test_threads_that_no_machine_has_are_refused(toy_file, threads):
    arguments = ("train", "--data", toy_file, *QUICK, "--threads", threads, "--out", "run")
    assert "'--threads'" in words(call(*arguments, code=2).stderr)
    assert not Path("run").exists()


def test_the_last_net_is_one_line_with_the_place_of_the_traceback(toy_file, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(runs.Run, "watch", lambda *_: 1 / 0)
    text = call("train", "--data", toy_file, *QUICK, "--epochs", 1, code=1).stderr
    assert text.count("\n") == 1
    assert "noprop: error: ZeroDivisionError: division by zero; this is a fault of noprop" in text
    place = Path(text.split("traceback is in ")[1].strip())
    assert place.parent == tmp_path and "1 / 0" in place.read_text()


def test_memory_that_is_not_there_is_one_line(toy_file, monkeypatch):
    text = call("train", "--data", toy_file, "--hidden", 10**7, "--out", "run", code=1).stderr
    assert "noprop: error: no memory for 10 blocks of" in text and "--batch-size" in text
    text = call("train", "--data", toy_file, "--hidden", 10**12, "--out", "run", code=2).stderr
    assert "features must be an integer of at most 2147483647" in words(text)
    assert not Path("run").exists()

    def refuse(*_):
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\nx"
        )

    monkeypatch.setattr(runs.Run, "watch", refuse)
    text = call("train", "--data", toy_file, *QUICK, "--epochs", 1, code=1).stderr
    assert "can't allocate memory: you tried" in text and "--batch-size" in text
    assert "a fault of noprop" not in text


LIES = [
    lambda training: training["progress"].update(epoch=-1),
    lambda training: training["progress"].update(block_steps="x"),
    lambda training: training["progress"].update(epoch=1.5),
    lambda training: training["progress"].update(unknown=1),
    lambda training: training["progress"].update(loss_sum=3),
    lambda training: training["settings"].update(epochs=0),
    lambda training: training["settings"].update(hidden="x"),
    lambda training: training["settings"].update(lr=None),
    lambda training: training["settings"].update(seed=True),
    lambda training: training["settings"].update(unknown=1),
    lambda training: training.update(settings=None),
    lambda training: training.update(data_sha256=3),
    lambda training: training.update(data_dir=3),
]


def test_records_that_lie_are_one_line(run):
    content, tensors = checkpoint.load(run)
    for change in LIES:
        lying = copy.deepcopy(content)
        change(lying["training"])
        checkpoint.save(run, lying, tensors)
        for command in (["eval", run], ["train", "--resume", run, "--epochs", 9]):
            text = call(*command, code=1).stderr
            assert text.count("noprop: error:") == 1 and "a fault of noprop" not in text


def test_info_of_a_record_that_lies_is_one_line(tmp_path, new_model):
    new_model().save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    for name in ("model", "versions", "training"):
        for value in (None, 3, [], {"plan": 3}, {"settings": {}}, {"progress": 3}):
            checkpoint.save(tmp_path, content | {name: value}, tensors)
            result = CliRunner().invoke(cli.app, ["info", str(tmp_path)])
            assert result.exit_code in (0, 1) and "a fault of noprop" not in result.output
