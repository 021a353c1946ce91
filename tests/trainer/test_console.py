"""Output to terminals, logs, closed pipes and consoles of few letters."""

import io
import os
import pty
import subprocess
import sys

import pytest
from rich.table import Table

from noprop import console, console_text


class Pipe(io.StringIO):
    """Whose reader leaves after the first write."""

    encoding = "utf-8"

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.left = number, 1

    def fileno(self) -> int:
        return self.number

    def write(self, text: str) -> int:
        if self.left == 0:
            raise BrokenPipeError(32, "Broken pipe")
        self.left -= 1
        return super().write(text)


def test_a_lost_output_is_told_once_and_nothing_ends(capsys):
    number = os.open(os.devnull, os.O_WRONLY)
    stream = console.Output(Pipe(number))
    for text in ("one", "two", "three"):
        assert stream.write(text) == len(text)
    assert stream.stream.getvalue() == "one"
    assert (
        capsys.readouterr().err
        == "noprop: the output is lost (Broken pipe); the run goes on without it\n"
    )
    os.close(number)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_command_that_makes_text_alone_fails_where_it_is_lost(run):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "noprop", "info", str(run)],
            stdout=full, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
    assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["d[v2]/toy[a].npz", "[red]x[/red]", "[/]", ":smile:", "a[b]"])
def test_names_are_no_markup(monkeypatch, name):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    screen = console.console()
    console_text.say(screen, name)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    screen.print(table)
    assert sys.stdout.getvalue().count(name) == 4


def test_force_color_brings_no_sequences_into_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not console.console().is_terminal


def test_a_terminal_is_one():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        old, sys.stdout = sys.stdout, stream
        try:
            assert console.console().is_terminal
        finally:
            sys.stdout = old
    os.close(ours)
