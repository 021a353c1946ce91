"""Array jobs by submitit's local executor, whose tasks are processes of this machine."""

import os
import signal
import subprocess
import sys
import time

import pytest

from noprop import checkpoint
from support.cli import QUICK, call, tensors_of

pytest.importorskip("submitit", reason="submitit is not installed: the extra slurm")
LOCAL = ["--engine", "slurm", "--address", "local", "--threads", "1"]


def test_tasks_come_to_the_bits_of_one_run_and_are_merged(alone, tmp_path) -> None:
    options = [*QUICK, "--epochs", 4, "--head", "softmax"]
    call("train", *options, "--out", tmp_path / "one")
    call("train", *options, *LOCAL, "--workers", 2, "--out", tmp_path / "two")
    assert tensors_of(tmp_path / "one") == tensors_of(tmp_path / "two")
    assert not (tmp_path / "two" / "units").exists()
    call("eval", tmp_path / "two")
    assert len(list((tmp_path / "two" / "jobs").glob("*_result.pkl"))) == 2


def test_a_task_that_fails_is_named_with_what_it_wrote(alone, tmp_path) -> None:
    options = [*QUICK, "--epochs", 1, "--lr", "1e38", "--on-nonfinite", "stop"]
    result = call("train", *options, *LOCAL, "--workers", 1, "--out", tmp_path / "run", code=1)
    assert "failed: " in result.output and "_log.err" in result.output


def test_there_is_no_silent_fall_back_from_slurm(alone, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = [*QUICK, "--epochs", 1, "--engine", "slurm", "--workers", 1]
    result = call("train", *options, "--out", tmp_path / "run", code=1)
    assert "srun" in result.output and "--address local" in result.output


def test_ctrl_c_saves_all_and_another_number_of_tasks_goes_on(alone, tmp_path) -> None:
    run = tmp_path / "run"
    options = ["--hidden", "8", "--T", "3", "--epochs", "300"]
    text = "from noprop.engines import slurm_engine; slurm_engine.LOOK_SECONDS = 0.05"
    text += "; from noprop.__main__ import main; main()"
    program = [sys.executable, "-c", text, "train"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [*program, *options, *LOCAL, "--workers", "2", "--out", str(run)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env,
    ) as process:  # fmt: skip
        while not all((run / f"units/share-{i}" / checkpoint.RECORD).exists() for i in (0, 1)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "interrupted and saved" in errors
    subprocess.run([*program, *options, *LOCAL, "--workers", "3", "--resume", str(run)],
                   check=True, stdout=subprocess.DEVNULL, env=env)  # fmt: skip
    subprocess.run([*program, *options, "--out", str(tmp_path / "one")],
                   check=True, stdout=subprocess.DEVNULL, env=env)  # fmt: skip
    assert tensors_of(run) == tensors_of(tmp_path / "one")
