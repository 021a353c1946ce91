"""The one entry of the benchmarks: it lists its commands, and finds each."""

import importlib.util
import sys

import pytest

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.__main__ import COMMANDS, main

NEEDS = {"figures": "matplotlib", "grid": "sklearn", "estimator": "sklearn", "job": "rich"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_options_under_its_name(name, capsys):
    pytest.importorskip(NEEDS.get(name, "torch"))
    try:
        status = main([name, "--help"])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().out
    assert status == 0 and said
    if name == "gpu_check":  # its script is what is called
        assert "bash bench/gpu_check.sh OUT" in said
    else:
        assert f"usage: python -m bench {name} " in said


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_name_the_commands_are_listed(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr().out
    assert end.value.code == 0
    for name, (_, about) in COMMANDS.items():
        assert name in said and about in said
    monkeypatch.setattr(sys, "argv", ["bench", "run", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "usage: python -m bench run " in capsys.readouterr().out


def test_another_name_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as end:
        main(["walk"])
    assert end.value.code == 2 and "invalid choice: 'walk'" in capsys.readouterr().err
