"""The command line, run in this process, and what it leaves in folders."""

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from noprop import checkpoint, cli

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


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder: the content of files, None for folders."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def tensors_of(folder: str | Path) -> str:
    """The digest of a run's tensors, which are equal where it is."""
    return checkpoint.load_content(Path(folder))["tensors"]["sha256"]
