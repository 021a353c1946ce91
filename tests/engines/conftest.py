"""A run of digits that is trained in a moment."""

from pathlib import Path

import pytest
import torch

from support.engines import Problem


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return Problem(tmp_path)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """In a folder of its own, without a GPU or data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NOPROP_DATA", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
