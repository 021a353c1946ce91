"""The command line, run in this process."""

from typing import Any

from typer.testing import CliRunner

from noprop import cli

QUICK = ["--hidden", "8", "--T", "3", "--batch-size", "32", "--lr-schedule", "constant"]


def call(*args: object, code: int = 0) -> Any:
    """The result of `noprop ARGS`, which must end with this status, and without a traceback."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result


def words(text: str) -> str:
    """Without the frames and breaks of a usage error."""
    return " ".join(text.replace("│", " ").split())
