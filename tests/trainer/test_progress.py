"""Bar and lines show the same figures; the library works without the command line's packages."""

import dataclasses
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from noprop import progress
from noprop.epochs import Epoch

EPOCHS = [
    Epoch(
        epoch=i,
        loss=[0.5, 0.25],
        error=[0.5, 0.25],
        head_loss=0.125,
        lr=1e-3,
        skipped=[0, 0],
        seconds=2.0,
        samples_per_second=1234.5,
    )
    for i in (1, 2, 3)
]
FIGURES = "error 0.3750  head loss 0.1250  val accuracy 91.00%  lr 0.001  1,234 samples/s"


def shown(terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
    with progress.display(console, epochs=3, rows=10, done=10) as display:
        for epoch in EPOCHS:
            display.advance(10)
            display.epoch(epoch, "val accuracy 91.00%")
    return console.file.getvalue()


def test_lines_outside_a_terminal():
    lines = shown(terminal=False).splitlines()
    assert lines == [f"epoch 1/3  {FIGURES}  0:00 left", f"epoch 3/3  {FIGURES}"]


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "bar"])
def test_the_time_left(monkeypatch, terminal):
    """Two epochs of 10 rows, of which the process sees the second and a half of the first."""
    monkeypatch.setenv("TERM", "xterm")
    now = [0.0]
    monkeypatch.setattr(progress, "CLOCK", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
    with progress.display(console, epochs=2, rows=10, done=5) as display:
        for samples, seconds in ((2, 30.0), (0, 10.0), (1, 40.0)):
            now[0] += seconds
            display.advance(samples)
        assert str(display.left) == "5:20 left"  # 80 s for 3 of 15 rows
        display.advance(2)
        assert str(display.left) == "2:40 left"
        display.epoch(EPOCHS[0], "a")
        display.advance(10)
        display.epoch(EPOCHS[1], "a")
    shown = console.file.getvalue()
    if terminal:
        assert "epoch 2/2" in shown and "lr 0.001" in shown
        return
    within, first, last = shown.splitlines()
    assert within == "epoch 1/2  80% of it  5:20 left"
    assert first.startswith("epoch 1/2  error") and first.endswith("2:40 left")
    assert last.startswith("epoch 2/2  error") and not last.endswith("left")


def test_a_bar_in_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown(terminal=True)
    for part in ("epoch 3/3", *FIGURES.split("  ")):
        assert part in text


def test_lines_in_a_terminal_without_a_cursor(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert shown(terminal=True).splitlines()[-1] == f"epoch 3/3  {FIGURES}"


def test_figures_that_are_not_there():
    epoch = dataclasses.replace(EPOCHS[0], error=[None, 0.5], head_loss=None)
    assert progress.summary(epoch, "a").startswith("error 0.5000  a  lr")
    epoch = dataclasses.replace(epoch, error=[None, None])
    assert progress.summary(epoch, "a").startswith("error not finite  a")


def test_a_clock():
    assert [progress.clock(s) for s in (0, 59.6, 3599, 3723)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:02:03",
    ]


WITHOUT = """
import sys
for name in ("typer", "rich", "safetensors"):
    sys.modules[name] = None
import noprop, torch
import noprop_kernels as nk
goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
blocks = nk.DenoisingBlocks(nk.plans.mlp(4, 2, 2, hidden=4), goal)
model = noprop.Model(blocks, nk.OutputHead(2, 2, goal=goal))
noprop.fit(model, torch.randn(8, 4), torch.arange(8) % 2, epochs=1, batch_size=4)
assert model.predict(torch.randn(3, 4)).probs.shape == (3, 2)
"""


@pytest.mark.parametrize(
    "use, package",
    [
        ("model.save('run')", "safetensors"),
        ("noprop.load('run')", "safetensors"),
        ("import noprop.__main__; noprop.__main__.main()", "rich|typer"),
    ],
)
def test_without_the_train_extra(tmp_path, use, package):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + use],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "pip install 'noprop-kernels[train]'" in last
    assert any(f"{name}" in last for name in package.split("|"))
    assert list(tmp_path.iterdir()) == []
