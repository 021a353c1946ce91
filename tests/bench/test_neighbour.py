"""The neighbour keeps its core busy only on request, and slowdowns are those of pairs."""

import importlib.util
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)
if not hasattr(os, "sched_setaffinity") or not Path("/proc/self/stat").exists():
    pytest.skip("needs Linux", allow_module_level=True)

from bench.machine import host
from bench.problem.sizes import Shape
from bench.report import suite_rows
from bench.suites import neighbour, run

SHAPE = Shape("made-up", B=12, F=13, H=7, D=5, M=5, T=3, rows=40)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_neighbour_spins_on_its_core_when_told_and_ends():
    core = max(os.sched_getaffinity(0))
    with neighbour.neighbour(core) as beside:
        pid = beside.process.pid
        spent = []
        for busy in (True, False):
            beside.spin(busy)
            before = cpu_seconds(pid)
            time.sleep(0.3)
            spent.append(cpu_seconds(pid) - before)
        beside.spin(True)
        time.sleep(0.1)
        assert os.sched_getaffinity(pid) == {core}
    assert spent[0] > 0.05 and spent[1] <= 0.01
    assert beside.process.poll() is not None


def test_slowdown_is_the_median_of_the_pairs():
    base = {"threads": 2, "machine": {"cores": 2}}
    line = neighbour.line_of(base, "ours", 1, [(1.0, 1.5), (2.0, 2.0), (1.0, 4.0)])
    assert line["slowdown"] == 1.5 and line["ms_per_step"] == 1.0 and line["busy_ms_per_step"] == 2
    assert line["ideal_slowdown"] == pytest.approx(2 / 1.5)
    assert neighbour.ideal_slowdown(1, 4) == 1.0


def test_command_writes_a_line_for_each_contender(tmp_path, monkeypatch):
    rates = {"peak_gflops": 9.0, "copy_gb_s": 1.0, "state_gb_s": 1.0}
    monkeypatch.setattr(host, "rates", lambda threads, state_bytes: rates)
    entries = [entry for entry in neighbour.SUITE.entries if not entry.compiles]
    suite = replace(neighbour.SUITE, shapes={"made-up": SHAPE}, entries=entries)
    out, before = tmp_path / "lines.jsonl", torch.get_num_threads()
    try:
        arguments = ["--threads", "1", "--rounds", "3", "--K", "1", "4", "--out", str(out)]
        assert run.run(suite, arguments) == 0
    finally:
        torch.set_num_threads(before)
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert {(each["contender"], each["K"]) for each in lines} == {
        (name, K) for name in ("ours", "stacked_shared", "sequential") for K in (1, 4)
    }
    assert all(each["busy_ms_per_step"] > 0 and each["rounds"] == 3 for each in lines)
    assert len(suite_rows.neighbour_rows(lines)) == 7
