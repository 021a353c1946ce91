"""A small problem that is learned in a moment, and the trainer's parts made for it."""

import numpy as np
import pytest
import torch

import noprop
import noprop_kernels as nk
from support.cli import QUICK, call
from support.images import toy_images

CLASSES, FEATURES = 3, 6


def toy_rows(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated clouds of bytes."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, rows)
    centre = 40 + 80 * np.eye(CLASSES, FEATURES)[y]
    return np.clip(centre + random.normal(0, 15, centre.shape), 0, 255).astype(np.uint8), y


@pytest.fixture
def toy():
    """x (130, 6) uint8 and y (130,) int64: four batches of 32 and a short one."""
    x, y = toy_rows(130, seed=0)
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.fixture
def toy_file(tmp_path):
    """toy data with a test set, as an .npz file."""
    x, y = toy_rows(130, seed=0)
    x_test, y_test = toy_rows(60, seed=1)
    path = tmp_path / "toy.npz"
    np.savez(path, x=x, y=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def image_file(tmp_path):
    """64 images (3, 16, 16) with a test set, as an .npz file."""
    (x, y), (x_test, y_test) = toy_images(64, seed=0), toy_images(30, seed=1)
    path = tmp_path / "images.npz"
    np.savez(path, x=x, y=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def new_model():
    """Makes equal untrained models."""

    def make(
        T: int = 3, embedding: torch.Tensor | None = None, seed: int = 5, head: bool = True
    ) -> noprop.Model:
        D = CLASSES if embedding is None else embedding.shape[1]
        plan = nk.plans.mlp(FEATURES, D, CLASSES, hidden=8)
        goal = nk.DT(nk.NoiseSchedule.cosine(T=T))
        shared = {"embedding": embedding, "optimizer": nk.AdamW(lr=1e-2), "seed": seed}
        blocks = nk.DenoisingBlocks(plan, goal, **shared)
        reads = nk.OutputHead(D, CLASSES, goal=goal, **shared) if head else None
        return noprop.Model(blocks, reads)

    return make


GOALS = {"ct": nk.CT, "fm": nk.FM}


@pytest.fixture(params=GOALS)
def sampled(request):
    """Makes equal untrained models of a CT, then of an FM."""
    make_goal = GOALS[request.param]

    def make(
        embedding: torch.Tensor | None = None, seed: int = 5, head: bool = False, **options: object
    ) -> noprop.Model:
        D = CLASSES if embedding is None else embedding.shape[1]
        plan, goal = nk.plans.mlp(FEATURES, D, CLASSES, hidden=16, time=True), make_goal()
        shared = {"embedding": embedding, "optimizer": nk.AdamW(lr=1e-2), "seed": seed}
        reads = nk.OutputHead(D, CLASSES, goal=goal, **shared) if head else None
        return noprop.Model(nk.DenoisingBlocks(plan, goal, **shared), reads, **options)

    make.goal = make_goal
    return make


@pytest.fixture
def assert_same_state():
    def check(one: noprop.Model, other: noprop.Model) -> None:
        a, b = one.tensors(), other.tensors()
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name

    return check


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """In a folder of its own, without a GPU or data; messages are in one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NOPROP_DATA", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(toy_file, tmp_path):
    """A finished run of two epochs."""
    call("train", "--data", toy_file, *QUICK, "--epochs", 2, "--out", tmp_path / "run")
    return tmp_path / "run"
