"""The table of a step's stages in the persistent kernel, from its counters on the host."""

import importlib.util
import json

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.gpu_check import clocks
from bench.report import lines as result_lines
from noprop_kernels.backends.cuda import extension


def test_shares_are_of_all_and_stages_are_numbered():
    rows = clocks.rows_of(("dense", "loss", "dense"), (4, 1, 8), [[30, 10], [5, 0], [45, 10]])
    assert [row["stage"] for row in rows] == ["dense 1", "loss 1", "dense 2"]
    assert [row["share"] for row in rows] == [0.4, 0.05, 0.55]
    lines = clocks.table(rows).splitlines()
    assert lines[0] == "| stage | tiles of a slice | work | wait |"
    assert lines[2:] == [
        "| dense 1 | 4 | 30.0% | 10.0% |",
        "| loss 1 | 1 | 5.0% | 0.0% |",
        "| dense 2 | 8 | 45.0% | 10.0% |",
        "| all |  | 80.0% | 20.0% |",
    ]


@pytest.mark.cuda_host
def test_command_prints_every_stage_of_a_step(tmp_path, monkeypatch, capsys, cuda_module):
    monkeypatch.setattr(extension, "module", cuda_module)
    out = tmp_path / "lines.jsonl"
    arguments = ["--shape", "rehearsal", "--rehearse", "--K", "2", "--out", str(out)]
    assert clocks.main(arguments) == 0
    (line,) = [json.loads(text) for text in out.read_text().splitlines()]
    names = [row["stage"] for row in line["stages"]]
    assert {"gather 1", "noise 1", "dense 1", "head 1", "loss 1", "update_weight 1"} < set(names)
    assert sum(row["share"] for row in line["stages"]) == pytest.approx(1)
    printed = capsys.readouterr().out.splitlines()
    assert [text.split("|")[1].strip() for text in printed[2:]] == [*names, "all"]
    assert line["kind"] == "rehearsal" and not result_lines.timed([line])


def test_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(extension, "module", None)
    monkeypatch.setattr(extension, "_missing", "no nvcc was there")
    assert clocks.main(["--shape", "rehearsal", "--rehearse"]) == clocks.SKIPPED
    assert capsys.readouterr().out == "the CUDA backend: no nvcc was there\n"
    with pytest.raises(SystemExit):
        clocks.main(["--K", "0"])
    assert "--K must be at least 1" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_command_without_a_gpu_says_so(capsys):
    with pytest.raises(SystemExit):
        clocks.main([])
    assert "no GPU that PyTorch can use" in capsys.readouterr().err
