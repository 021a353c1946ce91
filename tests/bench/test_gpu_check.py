"""gpu_check runs its parts one by one, within their time, and reports the outcome of each."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.gpu_check import check as gpu_check
from bench.gpu_check import parts as gpu_parts
from bench.gpu_check.parts import Part, Place


@pytest.fixture
def place(tmp_path):
    work = tmp_path / "work"
    (work / "checks").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    return Place(tmp_path / "out", work, rehearse=False, commit="abc")


def say(code: str, name: str = "part", seconds: float = 30, **more) -> Part:
    return Part(name, seconds, [sys.executable, "-c", code], **more)


def results(place: Place) -> list[dict]:
    return [json.loads(text) for text in (place.out / "parts.jsonl").read_text().splitlines()]


def test_every_part_is_told_and_a_failure_stops_none(place, capsys):
    parts = [
        say("print('fine')", "one"),
        say("print('first'); raise SystemExit('broken')", "two"),
        say(f"print('no such tool'); raise SystemExit({gpu_check.SKIPPED})", "three"),
        say("", "four", gap="no data"),
        Part("five", 30, ["no-such-program"]),
        say("print('last')", "six"),
    ]
    assert gpu_check.check(parts, place, 60) == 1
    lines = results(place)
    assert [(line["part"], line["status"]) for line in lines] == [
        *(("one", "passed"), ("two", "failed"), ("three", "skipped"), ("four", "skipped")),
        *(("five", "failed"), ("six", "passed")),
    ]
    assert [line.get("reason") for line in lines[1:4]] == [
        "first\nbroken",
        "no such tool",
        "no data",
    ]
    assert "no-such-program" in lines[4]["reason"] and lines[0]["seconds"] > 0
    log = (place.out / "log.txt").read_text()
    assert log == capsys.readouterr().out and "fine" in log and "last" in log
    assert gpu_check.check([parts[0], parts[2]], place, 60) == 0
    assert len(results(place)) == 8  # appended


def test_a_result_is_written_as_soon_as_it_is_known(place):
    reads = (
        f"import sys; sys.exit(open({str(place.out / 'parts.jsonl')!r}).read().count('one') != 1)"
    )
    assert gpu_check.check([say("", "one"), say(reads, "two")], place, 60) == 0


def test_time_over_is_a_failure_or_a_cut_and_leaves_no_process(place):
    pid = place.work / "pid"
    child = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid)); print('half', flush=True); time.sleep(60)"
    )
    begin = time.perf_counter()
    assert gpu_check.check([say(child, "slow", seconds=4)], place, 60) == 1
    assert gpu_check.check([say(child, "late", 60), say("", "never", 60)], place, 5.5) == 0
    assert time.perf_counter() - begin < 30
    slow, late, never = results(place)
    assert slow["status"] == "failed" and "not done in 4 s" in slow["reason"]
    assert late["status"] == "cut" and never["status"] == "cut"
    assert "s were left" in never["reason"]
    assert "half" in (place.out / "log.txt").read_text()
    assert gone(pid.read_text())


def gone(pid: str) -> bool:
    """Whether a process ends within seconds; a zombie has."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(50):
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_parts_import_the_build_away_from_the_sources(place):
    code = "import os, sys; print(os.getcwd(), sys.path[1], os.environ['NOPROP_COMMIT'])"
    gpu_check.check([say(code)], place, 60)
    log = (place.out / "log.txt").read_text()
    assert f"{place.checks} {place.site} abc" in log
    laid = Place(place.out, place.work / "laid", rehearse=False)
    laid.work.mkdir()
    laid.lay()
    assert not (laid.checks / "noprop_kernels").exists()
    assert (laid.checks / "bench/suites/run.py").exists()
    built = laid.work / "source/noprop_kernels"
    assert (built / "__init__.py").exists() and not list(built.glob("_C*"))


@pytest.mark.parametrize("rehearse", [False, True])
def test_parts_go_from_right_to_fast(place, rehearse, monkeypatch):
    monkeypatch.delenv("NOPROP_DATA", raising=False)
    parts = gpu_parts.every_part(Place(place.out, place.work, rehearse))
    names = [part.name for part in parts]
    assert len(names) == len(set(names))
    assert names[:6] == ["facts", "build", "backends", "tests", "peaks", "bench small tf32"]
    assert {"memory", "consan", "memcheck", "racecheck", "synccheck", "mnist"} < set(names)
    backends = {"": [], " cuda": ["--backend", "cuda"]}
    for tool in ("small shapes", "memcheck", "racecheck", "synccheck"):
        for end, asked in backends.items():
            command = list(parts[names.index(tool + end)].command)
            assert [word for word in command if word in ("--backend", "cuda")] == asked
            assert (f"--tool={tool}" in command) == (tool != "small shapes")
    mnist = parts[names.index("mnist")]
    assert mnist.gap == ("" if rehearse else "NOPROP_DATA is not set")
    for part in parts:
        if part.command[2:5] == ["-m", "bench", "run"]:
            device = part.command[part.command.index("--device") + 1]
            assert device == ("rehearsal" if rehearse else "cuda")


def test_benchmarks_name_contenders_and_shapes_that_exist(place):
    from bench.suites import run

    known = {entry.name for entry in run.ON_GPU.entries}
    assert {*gpu_parts.OURS, "ours_sgd"} == {entry.name for entry in run.OURS_ON_GPU}
    shapes = set()
    for part in gpu_parts.benchmarks(Place(place.out, place.work, rehearse=False)):
        command = list(part.command)
        begin = command.index("--shape") + 1
        shapes |= {name for name in command[begin:] if name in run.ON_GPU.shapes}
        if "--contender" in command:
            names = command[command.index("--contender") + 1 :]
            names = [name for name in names[: names.index(next(n for n in names if n[0] == "-"))]]
            assert set(names) <= known
    assert shapes == set(run.ON_GPU.shapes)


def test_lengths_of_calls_have_the_persistent_kernel_beside_graphs(place):
    parts = {part.name: part for part in gpu_parts.benchmarks(place)}
    command = " ".join(parts["bench lengths tf32"].command)
    assert "--shape tiny small " in command and "--K 1 10 50 500 " in command
    assert " ours ours_cuda " in command


def test_bad_calls_say_how(tmp_path, capsys):
    assert gpu_check.main([]) == 2
    assert "NOPROP_REHEARSE" in capsys.readouterr().out
    assert gpu_check.main([str(tmp_path / "out"), "nonsense"]) == 2
    assert "PART must be among ['facts'" in capsys.readouterr().out


def test_the_script_without_a_gpu_says_why(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    script = gpu_parts.ROOT / "bench" / "gpu_check.sh"
    env = {name: value for name, value in os.environ.items() if name != "NOPROP_REHEARSE"}
    done = subprocess.run(
        ["bash", script, "results", "facts"],
        cwd=tmp_path,
        env=env | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    (line,) = (json.loads(t) for t in (tmp_path / "results/parts.jsonl").read_text().splitlines())
    assert line["status"] == "failed" and "no GPU that PyTorch can use" in line["reason"]
