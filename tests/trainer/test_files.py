"""Files and folders: what killed processes leave, file systems that lack a call, one writer."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from noprop import checkpoint, errors, files, metrics
from noprop.errors import InputError
from noprop.files import LOCK, atomic_file, locked, sweep

TENSORS = {"weight": torch.ones(3, 4)}


@pytest.fixture(autouse=True)
def nothing_was_told():
    errors.notice_once.cache_clear()
    yield
    errors.notice_once.cache_clear()


def lacking(code: int):
    def call(*args):
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("name", ["ENOTSUP", "EINVAL", "ENOSYS", "EPERM", "EACCES"])
@pytest.mark.parametrize("call", ["fsync", "chmod"])
def test_a_file_system_that_lacks_a_call_saves_and_tells_it_once(
    tmp_path, monkeypatch, capsys, call, name
):
    monkeypatch.setattr(os, call, lacking(getattr(errno, name)))
    for value in ("old", "new"):
        checkpoint.save(tmp_path, {"name": value}, TENSORS)
    assert checkpoint.load(tmp_path)[0]["name"] == "new"
    outcome = capsys.readouterr().err.splitlines()
    assert all("warning: this file system cannot" in line for line in outcome)
    assert len(outcome) == len(set(outcome)) == (2 if call == "fsync" else 1)


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EDQUOT", "EROFS"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_keeps_the_old_state(tmp_path, monkeypatch, call, name):
    checkpoint.save(tmp_path, {"name": "old"}, TENSORS)
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lacking(getattr(errno, name)))
        with pytest.raises(OSError):
            checkpoint.save(tmp_path, {"name": "new"}, {"weight": torch.zeros(3)})
    assert sorted(tmp_path.iterdir()) == before
    assert checkpoint.load(tmp_path)[0]["name"] == "old"


HOLD = """
import sys
from pathlib import Path
from noprop.files import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    return process


@pytest.mark.parametrize("end", ["kill", "leave"])
def test_a_folder_has_one_writer_and_its_lock_ends_with_it(tmp_path, end):
    process = holder(tmp_path)
    with pytest.raises(InputError, match=f"in use: process {process.pid} on "):
        checkpoint.save(tmp_path, {"name": "other"}, TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    if end == "kill":
        process.kill()
    process.communicate()
    assert (tmp_path / LOCK).exists() == (end == "kill")
    checkpoint.save(tmp_path, {"name": "other"}, TENSORS)
    assert not (tmp_path / LOCK).exists()


def test_the_writer_comes_in_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with locked(Path(".")):
        checkpoint.save(tmp_path, {"name": "mine"}, TENSORS)
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_its_holder_removed_locks_nothing(tmp_path, monkeypatch):
    """Between open and lock the holder leaves and removes the file: it is made again."""
    real, gone = files._lock, []

    def late(descriptor, folder):
        if not gone:
            gone.append((tmp_path / LOCK).unlink())
        real(descriptor, folder)

    monkeypatch.setattr(files, "_lock", late)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("name", ["ENOTSUP", "ENOLCK", "ENOSYS"])
def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(files.fcntl, "flock", lacking(getattr(errno, name)))
    for value in ("old", "new"):
        checkpoint.save(tmp_path, {"name": value}, TENSORS)
    assert checkpoint.load(tmp_path)[0]["name"] == "new"
    assert capsys.readouterr().err.count("cannot lock files") == 1


def test_sweeping_takes_the_named_temporaries_alone(tmp_path):
    names = [".metrics.jsonl.x1", ".tensors-0.safetensors.y", ".model.json.z", ".metrics", "a.x"]
    for name in names:
        (tmp_path / name).write_text("left")
    sweep(tmp_path, (*checkpoint.TEMPORARY, metrics.NAME))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".metrics", "a.x"]


def test_a_reader_follows_a_writer(tmp_path, monkeypatch):
    """A save between the record's read and its tensors' is no error: the newer state is read."""
    checkpoint.save(tmp_path, {"name": "old"}, TENSORS)
    real, calls = checkpoint.load_content, []

    def read(folder):
        record = real(folder)
        if not calls:
            checkpoint.save(tmp_path, {"name": "new"}, {"weight": torch.zeros(3)})
        calls.append(record["name"])
        return record

    monkeypatch.setattr(checkpoint, "load_content", read)
    content, tensors = checkpoint.load(tmp_path)
    assert content["name"] == "new" and torch.equal(tensors["weight"], torch.zeros(3))


def test_numbers_that_are_not_finite_are_null(tmp_path):
    metrics.append(tmp_path, {"epoch": 1, "loss": [float("nan"), 0.5], "x": float("inf")})
    assert (tmp_path / metrics.NAME).read_text() == '{"epoch": 1, "loss": [null, 0.5], "x": null}\n'
    (tmp_path / metrics.NAME).write_text('{"epoch": 1, "loss": NaN}\n')  # of earlier versions
    metrics.rewind(tmp_path, 1)
    assert (tmp_path / metrics.NAME).read_text() == '{"epoch": 1, "loss": null}\n'
    checkpoint.save(tmp_path, {"training": {"sum": float("-inf")}}, TENSORS)
    assert checkpoint.load(tmp_path)[0]["training"] == {"sum": None}


@pytest.mark.parametrize("line", ["3", "[]", '{"loss": 1}', '{"epoch": "x"}', "[" * 5000, "\xff"])
def test_metrics_end_at_a_line_that_is_none(tmp_path, line):
    metrics.append(tmp_path, {"epoch": 1})
    with open(tmp_path / metrics.NAME, "ab") as file:
        file.write(line.encode("latin1") + b"\n")
    metrics.append(tmp_path, {"epoch": 2})
    assert [values["epoch"] for values in metrics.read(tmp_path)] == [1]


def test_a_failed_write_leaves_no_temporary(tmp_path):
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "file"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path):
    with pytest.raises(IsADirectoryError) as caught, atomic_file(tmp_path):
        pass
    assert str(caught.value) == f"[Errno {errno.EISDIR}] Is a directory: {str(tmp_path)!r}"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there/new", "there/old"):
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / name)
        (tmp_path / "there/old").write_text("before")
        with atomic_file(link) as file:
            file.write(b"text")
        assert link.is_symlink() and (tmp_path / name).read_text() == "text"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_in_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic_file(tmp_path / "pipe") as file:
        file.write(b"text")
    assert (tmp_path / "pipe").is_fifo() and os.read(reader, 9) == b"text"
    os.close(reader)
