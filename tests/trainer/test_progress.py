"""Bar and lines show the same figures; the library works without the command line's packages."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from noprop import progress
from noprop.training import Epoch

EPOCHS = [Epoch(i, [0.5, 0.25], [0.1, 0.2], 0.1, 1e-3, [0, 0], 2.0, 1234.5) for i in (1, 2, 3)]


def shown(terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with progress.display(console, epochs=3, rows=10, done=10) as display:
        for epoch in EPOCHS:
            display.advance(10)
            display.epoch(epoch, "val accuracy 91.00%")
    return console.file.getvalue()


def test_lines_outside_a_terminal():
    lines = shown(terminal=False).splitlines()
    assert lines == [
        f"epoch {i}/3  loss 0.3750  val accuracy 91.00%  1,234 samples/s" for i in (1, 3)
    ]


def test_a_bar_in_a_terminal():
    text = shown(terminal=True)
    for part in ("epoch 3/3", "loss 0.3750", "val accuracy 91.00%", "1,234 samples/s"):
        assert part in text


WITHOUT = """
import sys
for name in ("typer", "rich", "safetensors", "sklearn"):
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
        ("import noprop.data; noprop.data.load('digits')", "sklearn"),
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
