"""Runs among people and machines: signals, pipes, other processes, moved data."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from noprop import checkpoint, metrics, runs
from noprop.cli import train
from noprop.files import LOCK
from noprop.settings import Settings
from support.cli import QUICK, call, tensors_of, tree, words

pytestmark = pytest.mark.usefixtures("alone")

HOLD = """
import sys
from pathlib import Path
from noprop.files import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def begin(*command: object, **environment: str) -> subprocess.Popen:
    path = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )


# signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_saves_and_the_run_goes_on(toy_file, tmp_path, name):
    """In the middle of training; in the end the bits are those of an unbroken run."""
    arguments = ["--data", toy_file, *QUICK, "--out", "run", "--epochs", "100000"]
    process = begin("-m", "noprop", "train", *arguments)
    deadline = time.monotonic() + 100
    while len(metrics.read(tmp_path / "run")) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + getattr(signal, name)
    assert errors.count("\n") == 1 and "go on with: noprop train --resume run" in errors
    assert not (tmp_path / "run" / LOCK).exists()
    if name != "SIGINT":
        done = checkpoint.load_content(tmp_path / "run")["training"]["progress"]["epoch"]
        assert done >= 3
        call("train", "--resume", "run", "--epochs", done + 2)
        call("train", "--data", toy_file, *QUICK, "--epochs", done + 2, "--out", "straight")
        assert tensors_of("run") == tensors_of("straight")


def test_a_signal_between_two_steps_of_an_epoch(toy_file, monkeypatch):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    advance = runs.fit

    def interrupted(*args, on_call, **options):
        def watch(progress, samples):
            on_call(progress, samples)
            if progress.epoch == 1 and progress.block_steps == 2:
                signal.raise_signal(signal.SIGTERM)

        return advance(*args, on_call=watch, **options)

    monkeypatch.setattr(runs, "fit", interrupted)
    arguments = ("train", "--data", toy_file, *QUICK, "--epochs", 3, "--head", "paper")
    stopped = call(*arguments, "--out", "run", code=143)
    assert "interrupted in epoch 2" in stopped.stderr
    progress = checkpoint.load_content(Path("run"))["training"]["progress"]
    assert (progress["epoch"], progress["block_steps"], progress["head_steps"]) == (1, 2, 0)
    monkeypatch.setattr(runs, "fit", advance)
    call("train", "--resume", "run")
    call(*arguments, "--out", "straight")
    assert tensors_of("run") == tensors_of("straight")


def test_a_signal_in_the_test_leaves_a_trained_run(toy_file, monkeypatch):
    monkeypatch.setattr(runs.Run, "test", lambda *_: signal.raise_signal(signal.SIGTERM))
    arguments = ("train", "--data", toy_file, *QUICK, "--epochs", 1, "--out", "run")
    text = call(*arguments, code=143).stderr
    assert "trained and saved; go on with: noprop train --resume run" in text
    monkeypatch.undo()
    os.chdir(Path(toy_file).parent)
    assert json.loads(call("train", "--resume", "run", "--json").stdout)["epochs"] == 1


LOOP = """
import time
from noprop.signals import asked_to_stop
with asked_to_stop() as number:
    print("in", flush=True)
    while not number():
        time.sleep(0.01)
    print(number(), flush=True)
    time.sleep(100)
"""


def test_a_second_signal_ends_at_once():
    process = begin("-c", LOOP)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == f"{int(signal.SIGTERM)}\n"
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (128 + signal.SIGHUP, "noprop: interrupted\n")


def test_what_was_ignored_stays_ignored():
    """As under nohup."""
    process = begin("-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + LOOP)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == f"{int(signal.SIGTERM)}\n"
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_torch_is_imported_is_one_line(tmp_path, name):
    (tmp_path / "torch.py").write_text(
        "import time\ntry:\n    print('in', flush=True)\n    time.sleep(100)\n"
        "except BaseException:\n"
        "    raise ImportError('numpy is broken')\n"  # what imports make of it
    )
    path = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    process = begin("-m", "noprop", "info", PYTHONPATH=path)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=20)
    assert errors == "noprop: interrupted\n"
    assert process.returncode == 128 + getattr(signal, name)


# output


def test_a_closed_pipe_loses_no_run(toy_file, tmp_path):
    """noprop train | head -1"""
    arguments = ["--data", toy_file, *QUICK, "--out", "run", "--epochs", "60"]
    with begin("-m", "noprop", "train", *arguments) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0
    assert errors == "noprop: the output is lost (Broken pipe); the run goes on without it\n"
    assert checkpoint.load_content(tmp_path / "run")["training"]["result"]["test_accuracy"] > 0


def test_a_console_of_few_letters(tmp_path):
    np.savez(tmp_path / "é[x].npz", z=np.zeros(3))
    process = begin("-m", "noprop", "train", "--data", "é[x].npz", PYTHONIOENCODING="ascii")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors.count("\n") == 1 and "\\xe9[x].npz must hold x and y" in errors


@pytest.mark.parametrize("place", ["d[v2]/toy[a].npz", "[bold]x/[/bold].npz"])
def test_names_are_printed_as_they_are(toy_file, tmp_path, place):
    own = tmp_path / place
    own.parent.mkdir(parents=True)
    own.write_bytes(toy_file.read_bytes())
    out = call("train", "--data", place, *QUICK, "--epochs", 1, "--out", f"{place}-run").stdout
    assert f"into {place}-run, " in out and own.stem in out
    text = words(call("train", "--data", place, *QUICK, "--out", f"{place}-run", code=2).stderr)
    assert f"{place}-run is not an empty folder" in text
    own.write_text("no data")
    assert str(own) in call("eval", f"{place}-run", code=1).stderr


# other processes


def test_runs_begun_at_once_have_a_folder_each(tmp_path):
    settings = Settings(data="digits", epochs=1, weight_decay=0.1)
    barrier, found = threading.Barrier(8), []
    with ExitStack() as held:

        def claim() -> None:
            barrier.wait()
            found.append(train.claimed(None, settings, held))

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted(Path("runs", f"digits-dt-mlp-{i}") for i in range(1, 9))


@pytest.fixture
def other(tmp_path):
    """Another process that writes into a folder."""
    processes = []

    def make(folder: Path) -> subprocess.Popen:
        process = begin("-c", HOLD, folder)
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        processes.append(process)
        return process

    yield make
    for process in processes:
        process.kill()
        process.communicate()


def test_a_folder_in_use_is_refused_before_anything_is_written(run, toy_file, tmp_path, other):
    new = tmp_path / "new"
    new.mkdir()
    for folder, how in ((new, "--out"), (run, "--resume")):
        process, before = other(folder), tree(folder)
        text = call("train", "--data", toy_file, *QUICK, how, folder, code=1).stderr
        assert f"{folder} is in use: process {process.pid} on " in text
        assert tree(folder) == before
    assert call("eval", run).exit_code == 0  # which reads alone
    assert call("info", run).exit_code == 0
    assert call("train", "--resume", run, "--dry-run").exit_code == 0


@pytest.mark.parametrize("how", ["--out", "--resume"])
def test_a_run_killed_between_its_first_two_writes_is_used_again(toy_file, tmp_path, how):
    folder = tmp_path / "run"
    arguments = ("train", "--data", toy_file, *QUICK, "--epochs", 1)
    call(*arguments, "--out", folder)
    whole = tree(folder).keys()
    for name in (checkpoint.RECORD, metrics.NAME):
        (folder / name).unlink()
    for name in (LOCK, ".model.json.x1", ".tensors-0.safetensors.y", "tensors-" + "0" * 16):
        (folder / (name if not name.startswith("t") else name + ".safetensors")).write_text("left")
    call(*arguments, how, folder)
    assert tree(folder).keys() == whole


def test_old_temporaries_are_swept_when_a_run_goes_on(run):
    names = [".metrics.jsonl.a", ".tensors-0.safetensors.b", ".model.json.c"]
    for name in names:
        (run / name).write_text("left")
    call("eval", run)
    assert all((run / name).exists() for name in names)
    call("train", "--resume", run, "--epochs", 3)
    assert not any((run / name).exists() for name in names)


# data that were moved


def test_a_run_finds_its_data_from_another_folder(toy_file, tmp_path, monkeypatch):
    call("train", "--data", "toy.npz", *QUICK, "--epochs", 1, "--out", "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    call("eval", "../run")
    call("train", "--resume", "../run", "--epochs", 2)


def test_data_that_were_moved_are_named_anew(run, toy_file, tmp_path):
    moved = tmp_path / "moved.npz"
    toy_file.rename(moved)
    for command in (["eval", run], ["train", "--resume", run, "--epochs", 3]):
        assert "--data names the place" in call(*command, code=1).stderr
    before = tree(run)
    call("eval", run, "--data", moved)
    assert tree(run) == before
    call("train", "--resume", run, "--epochs", 3, "--data", moved)
    call("eval", run)
    other = dict(np.load(moved))
    other["x"][0, 0] ^= 1
    np.savez(tmp_path / "other.npz", **other)
    for command in (["eval", run], ["train", "--resume", run, "--epochs", 4]):
        text = call(*command, "--data", tmp_path / "other.npz", code=1).stderr
        assert "not those that" in text


def test_a_tilde_is_the_home_folder(toy_file, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    toy_file.rename(home / "toy.npz")
    call("train", "--data=~/toy.npz", *QUICK, "--epochs", 1, "--out=~/runs/one")
    assert (home / "runs" / "one" / checkpoint.RECORD).is_file()
    call("eval", "~/runs/one")
    call("info", "~/runs/one")
    call("train", "--resume=~/runs/one", "--epochs", 2, "--data=~/toy.npz")
    monkeypatch.setenv("NOPROP_DATA", "~/data")
    text = call("train", "--data", "mnist", "--data-dir=~/none", code=1).stderr
    assert f"{home}/none" in text
    assert not any(path.name == "~" for path in tmp_path.iterdir())
