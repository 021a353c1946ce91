"""The operations are right before they are timed, by both drivers, and what is wrong is refused."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.machine import host
from bench.ops import cases, suite
from bench.ops.cases import CHECK_CALLS, OPS, Case, start
from bench.ops.labels import AddNoise, BlocksUpdate, DenoisingLoss
from bench.ops.linear import Dense, DenseUpdate, Layer, Linear
from bench.problem.twin import Mismatch
from bench.report import lines as result_lines
from bench.report import suite_rows
from support import ROOT

SMALL = {2: (12, 5), 3: (12, 13, 7), 7: (2, 12, 3, 9, 8, 7, 2)}  # by the number of sizes
CASES = [Case(op, SMALL[len(op.sizes[0])]) for op in OPS]
EVERY = [(case, name) for case in CASES for name in case.op.contenders]


def how(contender):
    # aot_eager traces the same functions without minutes of g++; `bench parts` checks inductor's
    return {"backend": "aot_eager"} if contender.startswith("compiled") else {}


@pytest.fixture
def small(monkeypatch):
    """The drivers with small cases, rates that take no time, and the number of threads kept."""
    rates = {"peak_gflops": 9.0, "copy_gb_s": 1.0}
    for name, rate in rates.items():
        monkeypatch.setattr(host, name, lambda *arguments, rate=rate: rate)
    monkeypatch.setattr(suite, "CASES", CASES)
    monkeypatch.setattr(suite, "SHAPES", tuple({case.shape for case in CASES}))
    monkeypatch.setattr(suite, "SAMPLE_SECONDS", 0)
    monkeypatch.setattr(suite, "start", lambda case, name: start(case, name, **how(name)))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("case", "contender"), EVERY, ids=str)
def test_operation_is_what_float64_says(case, contender, monkeypatch):
    torch.compiler.reset()
    assert len(start(case, contender, **how(contender)).seconds) == CHECK_CALLS
    make = getattr(case.op, contender)
    factor = 3 if issubclass(case.op, AddNoise) else 1.2

    def bent(op):
        call = make(op)
        return lambda: {name: value * factor for name, value in call().items()}

    monkeypatch.setattr(case.op, contender, bent)
    with pytest.raises(Mismatch, match=case.op.name):
        start(case, contender, **how(contender))


@pytest.mark.parametrize("op", [Linear, DenseUpdate, BlocksUpdate])
def test_weights_end_alike_after_many_updates(op):
    ends = []
    for contender in op.contenders:
        torch.compiler.reset()
        made = op(*SMALL[3], **how(contender))
        call = getattr(made, contender)()
        for _ in range(6):
            result = call()
        ends.append({name: result[name].detach().clone() for name in made.w})
    assert all(len(end) > 1 for end in ends)
    for other in ends[1:]:
        for name, value in ends[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_flop_and_bytes_of_the_operations():
    B, inputs, outputs = SMALL[3]
    parameters = (inputs + 1) * outputs
    for op, products, reads in ((Linear, 3, 7), (Dense, 1, 1), (DenseUpdate, 1, 6)):
        made = op(*SMALL[3])
        assert made.flop == products * 2 * B * inputs * outputs
        assert made.traffic == reads * 4 * parameters
    T, width, hidden = SMALL[3]
    assert BlocksUpdate(T, width, hidden).traffic == 28 * sum(
        value.numel() for value in BlocksUpdate(T, width, hidden).w.values()
    )
    assert DenoisingLoss(*SMALL[2]).flop == AddNoise(*SMALL[2]).traffic == 0


def test_both_drivers_have_the_shapes_of_the_layers():
    assert suite.CASES is cases.CASES
    shapes = {case.shape for case in cases.CASES if issubclass(case.op, Layer)}
    assert {"128x784x256", "512x2048x2048", "1x784x256"} < shapes and len(shapes) == 7
    assert set(suite.QUICK) <= set(suite.SHAPES)


def test_command_writes_a_table_of_each_operation(small, tmp_path, capsys):
    out = tmp_path / "lines.jsonl"
    arguments = ["--threads", "1", "--rounds", "3", "--out", str(out)]
    assert suite.main([*arguments, "--contender", "ours", "ours_module", "eager"]) == 0
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    header, *rows = suite_rows.parts_rows(lines)
    ours = [(case.op.name, name) for case, name in EVERY if name.startswith("ours")]
    assert sorted((row[2], row[3]) for row in rows) == sorted(ours)
    assert all(len(row) == len(header) for row in rows)
    for line in lines:
        assert ("ratio" in line) == result_lines.is_ours(line["contender"])
        assert ("control" in line) == (line["contender"] == "ours")
        for name in {"ratio", "control"} & line.keys():
            assert 0 < line[f"{name}_q20"] <= line[name] <= line[f"{name}_q80"]
    assert lines[0]["versions"]["isa"] in capsys.readouterr().out
    assert len(result_lines.read([out])) == len(lines)  # no two are the same thing


def test_ratios_are_those_of_the_rounds(small, monkeypatch):
    # ours takes 2, then 4, then 6; eager three times as long in the same rounds, compiled more
    times = {"ours": [2.0, 4.0, 6.0], "eager": [6.0, 12.0, 18.0], "control": [1.0, 4.0, 6.0]}
    turns = [(0, name) for i in range(3) for name in times]
    called = iter([times[name][i // 3] for i, (_, name) in enumerate(turns)])
    monkeypatch.setattr(suite, "in_turns", lambda names, *_: turns)
    monkeypatch.setattr(suite, "sample", lambda *_: next(called))
    ours, eager = suite.measure(CASES[0], ["ours", "eager"], line_base(), 3)
    assert (ours["ratio"], ours["ratio_q20"], ours["ratio_q80"]) == (3.0, 3.0, 3.0)
    assert ours["rival"] == "eager" and ours["control"] == 1.0 and ours["control_q20"] < 1
    assert "ratio" not in eager and eager["ms_per_step"] == 12.0
    _, row = suite_rows.parts_rows([ours, eager])
    assert row[6] == "3.00 (3.00 to 3.00)" and row[-1] == "avx2"


def line_base():
    rates = {"peak_gflops": 9.0, "state_gb_s": 1.0, "versions": {"isa": "avx2"}}
    return rates | {"kind": "parts", "maths": "linear", "shape": "a", "threads": 1}


def test_what_is_wrong_is_not_timed(small, monkeypatch, capsys):
    monkeypatch.setattr(Dense, "eager", lambda self: lambda: {"y": torch.zeros(12, 7)})
    arguments = ["--threads", "1", "--rounds", "3", "--op", "dense", "--contender", "ours", "eager"]
    assert suite.main(arguments) == 1
    assert "eager: not timed: bench.problem.twin.Mismatch: dense" in capsys.readouterr().out

    test_ops = pytest.importorskip("bench.ops.test_ops")
    with pytest.raises(Mismatch, match="eager's y"):
        test_ops.test_op(None, Case(Dense, SMALL[3]), "eager")  # None: no benchmark to time by


def test_pytest_benchmark_groups_by_operation_and_shape(tmp_path):
    pytest.importorskip("pytest_benchmark")
    out = tmp_path / "run.json"
    command = [
        *(sys.executable, "-m", "pytest", "bench/ops", "-q", "--benchmark-only"),
        *("-k", "dense-1x784x256 and not compiled or add_noise-128x10-eager"),
        *(f"--benchmark-json={out}", "--benchmark-max-time=0.01", "--benchmark-min-rounds=1"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["benchmarks"]
    assert sorted((each["group"], each["params"]["contender"]) for each in found) == [
        ("add_noise-128x10", "eager"),
        *(("dense-1x784x256", "eager"), ("dense-1x784x256", "ours")),
    ]
    assert all({"threads", "isa", "torch"} <= each["extra_info"].keys() for each in found)
