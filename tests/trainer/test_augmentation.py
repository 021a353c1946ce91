"""Crops and flips: what they do to an image, and that nothing but the step and the row decides."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import noprop
from noprop import checkpoint
from noprop.augmentation import PAD, CropFlip, crop_flip
from noprop.inputs import InputFormat
from noprop.normalisation import Normalisation
from support.cli import call, words
from support.images import image_model, toy_images

pytestmark = pytest.mark.usefixtures("alone")
BYTES = InputFormat((3, 5, 6), "bytes")


def test_windows_of_an_image():
    images = torch.arange(1, 61).view(2, 2, 3, 5)
    blank = torch.tensor([-1, -2]).view(2, 1, 1)
    for draw in product(range(2 * PAD + 1), range(2 * PAD + 1), range(2)):
        made = crop_flip(images, blank, torch.tensor([draw, (PAD, PAD, 0)]))
        assert torch.equal(made[1], images[1])
        for c, y, x in np.ndindex(2, 3, 5):
            at = draw[0] + y - PAD, draw[1] + (4 - x if draw[2] else x) - PAD
            inside = 0 <= at[0] < 3 and 0 <= at[1] < 5
            want = images[0, c, at[0], at[1]] if inside else blank[c, 0, 0]
            assert made[0, c, y, x] == want


def test_draws_are_even_and_those_of_a_step_and_a_row():
    made = CropFlip(BYTES, None, seed=7)
    draws = made.draws(0, 50, 128, torch.device("cpu"))
    for column, choices in enumerate((9, 9, 2)):
        counts = torch.bincount(draws[..., column].flatten(), minlength=choices)
        spread = 5 * (6400 / choices) ** 0.5
        assert len(counts) == choices and (counts - 6400 / choices).abs().max() < spread
    assert torch.equal(made.draws(3, 2, 100, torch.device("cpu")), draws[3:5, :100])
    other = CropFlip(BYTES, None, seed=8).draws(0, 50, 128, torch.device("cpu"))
    assert (other != draws).any(-1).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["bytes", "numbers"])
def test_the_border_is_raw_0(kind):
    """As a feature: less the mean, divided by the deviation of its channel."""
    inputs = InputFormat((3, 5, 6), kind)
    normal = Normalisation.of((torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 0.5])))
    x = torch.full((4, 90), 9, dtype=torch.uint8 if kind == "bytes" else torch.float64)
    batch = {"X": normal.apply(x), "Y": torch.zeros(4, dtype=torch.int64), "normalize": None}
    batch |= {"indices": torch.arange(4).repeat(20, 1)}
    made = CropFlip(inputs, normal, 0)(batch, 0)
    raw = batch | {"X": x, "normalize": normal}
    raw = CropFlip(inputs, normal, 0)(raw, 0)["X"] if kind == "bytes" else None
    values = made["X"].view(-1, 3, 30)
    for c in range(3):
        blank = (0 - normal.mean[c]) / normal.std[c]
        full = ((9 / 255 if kind == "bytes" else 9) - normal.mean[c]) / normal.std[c]
        both = torch.stack([blank, full]).float()
        apart = (values[:, c].reshape(-1, 1) - both).abs()
        assert apart.min(1).values.max() < 1e-5 and len(apart.argmin(1).unique()) == 2
    if raw is not None:  # the kernels normalise the border of bytes
        assert torch.equal(normal.apply(raw.flatten(0, 1)), made["X"].flatten(0, 1))


def trained(x, y, stop=lambda: False, progress=None, model=None, **options):
    model = model or image_model()
    options = {"epochs": 3, "batch_size": 16, "augment": "crop-flip"} | options
    progress = noprop.fit(model, x, y, stop=stop, progress=progress, **options)
    return model, progress


@pytest.mark.parametrize("kind", ["bytes", "numbers", "file", "data set"])
def test_calls_and_interruptions_change_no_bit(kind, assert_same_state, monkeypatch, tmp_path):
    x, y = toy_images(40, 0)
    given = {"bytes": x, "numbers": x.astype("f4"), "data set": TensorDataset(
        torch.from_numpy(x), torch.from_numpy(y))}.get(kind)  # fmt: skip
    if kind == "file":
        np.save(tmp_path / "x.npy", x)
        given = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = None if kind == "data set" else y
    want, _ = trained(given, y)
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)  # K = 1
    model, _ = trained(given, y)
    assert_same_state(model, want)
    calls = iter(range(100))
    model, progress = trained(given, y, stop=lambda: next(calls) == 4)
    assert (progress.epoch, progress.block_steps) == (1, 1)
    trained(given, y, progress=progress, model=model)
    assert_same_state(model, want)
    plain, _ = trained(given, y, augment="none")
    assert not torch.equal(plain.blocks.state_dict()["c.weight"], want.tensors()["blocks.c.weight"])


def test_runs_with_augmentation_go_on_and_keep_it(image_file):
    options = ("--preset", "paper", "--T", 1, "--batch-size", 32, "--augment", "crop-flip")
    call("train", "--data", image_file, *options, "--epochs", 1, "--out", "run")
    call("train", "--resume", "run", "--epochs", 2)
    call("train", "--data", image_file, *options, "--epochs", 2, "--out", "straight")
    sums = [checkpoint.load_content(Path(name))["tensors"] for name in ("run", "straight")]
    assert sums[0] == sums[1]


def test_what_has_no_pixels_is_refused(toy_file, toy, new_model):
    text = words(call("train", "--data", toy_file, "--augment", "crop-flip", code=2).stderr)
    assert "augment must be 'none' of rows that are no images" in text
    assert not Path("runs").exists()
    with pytest.raises(ValueError, match="fit: augment must be 'none' of rows that are no images"):
        noprop.fit(new_model(), *toy, augment="crop-flip")
    with pytest.raises(ValueError, match="fit: augment must be one of .*, got 'flip'"):
        noprop.fit(new_model(), *toy, augment="flip")
    model = image_model()
    model.encoder = torch.nn.Identity()
    with pytest.raises(ValueError, match="augment must be 'none' for a model with an encoder"):
        noprop.fit(model, *toy_images(40, 0), augment="crop-flip")
