"""noprop train --engine: what is refused, and what needs no cluster."""

import sys

import pytest

from noprop.cli import engines
from support.cli import call, words


@pytest.mark.parametrize(
    "engine, package, extra", [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")]
)
def test_an_engine_that_is_not_installed_names_its_extra(
    alone, tmp_path, monkeypatch, engine: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"noprop.engines.{engine}_")]:
        monkeypatch.delitem(sys.modules, name)
    arguments = ("--engine", engine, "--workers", 2, "--out", tmp_path / "run")
    result = call("train", *arguments, code=1)
    assert f"pip install 'noprop-kernels[{extra}]'" in result.output
    assert not (tmp_path / "run").exists()


@pytest.fixture
def installed(alone, monkeypatch):
    """As if every engine were."""
    monkeypatch.setattr(engines, "module_of", lambda engine: None)


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["--variant", "ct"], "ct has one block of all t: there is nothing to train apart"),
        (["--embedding", "learned"], "embeddings that are learned learn from all blocks"),
        (["--embedding", "prototype"], "embeddings that are prototype learn from all blocks"),
        (["--variant", "ct", "--schedule", "learned"], "ct has one block of all t"),
        (["--seeds", "0-2"], "several seeds are trained at once: run each with --seed"),
        (["--device", "cuda"], "engines train on CPUs"),
        (["--blocks", "1"], "no engine has it"),
        (["--log", "csv"], "no engine has it"),
        (["--isa", "mmx"], "'mmx' is not available, there is: "),
        (["--slurm", "time=1"], "only --engine slurm has it"),
    ],
)
def test_what_no_engine_can_do_is_refused_with_the_reason(
    installed, tmp_path, arguments: list[str], why: str
) -> None:
    result = call("train", "--engine", "ray", "--out", tmp_path / "run", *arguments, code=2)
    assert why in words(result.output), result.output
    assert not (tmp_path / "run").exists()


def test_options_of_engines_need_one(alone) -> None:
    for option in ("--workers=2", "--store=x", "--address=auto", "--isa=avx2", "--mixed"):
        assert "only --engine" in words(call("train", option, code=2).output)
    assert "'k8s' is not available" in words(call("train", "--engine", "k8s", code=2).output)


def test_options_of_sbatch_are_names_and_values(installed) -> None:
    assert engines.parameters_of(["time=60", "partition=cpu", "mem-per-cpu=4GB"]) == {
        "time": 60,
        "partition": "cpu",
        "mem_per_cpu": "4GB",
    }
    result = call("train", "--engine", "slurm", "--workers", 1, "--slurm", "time", code=2)
    assert "'time' must be NAME=VALUE" in words(result.output)
    result = call("train", "--engine", "slurm", code=2)
    assert "slurm has to know how many tasks" in words(result.output)
