"""Images as people have them, into plans of convolutions and into plans of vectors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import noprop
import noprop_kernels as nk
from noprop import data
from noprop.datasets.dataset import Dataset
from support.cli import call, words
from support.images import image_model, toy_images

pytestmark = pytest.mark.usefixtures("alone")
PAPER = ("--preset", "paper", "--T", 1, "--batch-size", 32, "--epochs", 1, "--json")


def write_pictures(folder, x, y):
    """A folder of each class; colour where x has three channels."""
    for i, (row, label) in enumerate(zip(x, y, strict=True)):
        path = folder / f"class{label}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row if row.ndim == 2 else row.transpose(1, 2, 0)).save(path)


def test_the_shape_of_a_row(tmp_path, toy):
    assert data.load("digits").shape == (1, 8, 8)
    assert Dataset("a", toy[0], toy[1], toy[0], toy[1], classes=3).shape == (6,)
    for shape, want in [((14, 15), (1, 14, 15)), ((1, 14, 15), (1, 14, 15)), ((3, 16, 16),) * 2]:
        x, y = toy_images(30, 0, shape)
        for made in (x, x.astype(np.float32) / 255):
            np.savez(tmp_path / "a.npz", x=made, y=y)
            assert data.load(tmp_path / "a.npz").shape == want
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", y)
        assert data.load(tmp_path / "x.npy", labels=tmp_path / "y.npy").shape == want
        if shape[0] != 1:
            write_pictures(tmp_path / str(want), x, y)
            assert data.load(tmp_path / str(want)).shape == want


@pytest.mark.parametrize("kind", ["grey", "one channel", "floats", "pictures"])
def test_the_paper_s_blocks_take_images_of_every_kind(tmp_path, kind):
    """Grey ones with and without their channel, bytes and floats: the same network, and one of the
    same parameters for floats."""
    x, y = toy_images(48, 0, (14, 14))
    if kind == "pictures":
        write_pictures(tmp_path / "a", x, y)
    else:
        given = {"grey": x, "one channel": x[:, None], "floats": x.astype("f4") / 255}[kind]
        np.savez(tmp_path / "a.npz", x=given, y=y)
    name = tmp_path / ("a" if kind == "pictures" else "a.npz")
    outcome = json.loads(call("train", "--data", name, *PAPER, "--out", "run").stdout)
    assert outcome["parameters_per_block"] == nk.plans.paper_dt((1, 14, 14), 3, 3).num_parameters()
    model = noprop.load("run")
    assert model.blocks.plan.inputs["x"] == (1, 14, 14) and len(model.normalize[0]) == 1


def test_channels_that_are_last_are_refused_with_the_remedy(tmp_path, image_file):
    """In files to train on, and in rows to be predicted."""
    x, y = toy_images(48, 0)
    for C in (3, 1):
        last = np.ascontiguousarray(x[:, :C].transpose(0, 2, 3, 1))
        np.savez(tmp_path / "last.npz", x=last, y=y)
        for preset in ("paper", "mlp"):
            text = call("train", "--data", tmp_path / "last.npz", "--preset", preset, code=1).stderr
            assert "last.npz: x must be" in text and "use x.transpose(0, 3, 1, 2)" in text
    call("train", "--data", image_file, *PAPER, "--out", "run")
    np.savez(tmp_path / "last.npz", x=x.transpose(0, 2, 3, 1))
    told = call("predict", "run", tmp_path / "last.npz", code=1).stderr
    assert "channels come first: use x.transpose(0, 3, 1, 2)" in told
    model = image_model((1, 14, 14))
    grey, y = toy_images(48, 0, (14, 14))
    noprop.fit(model, grey, y, epochs=1)
    with pytest.raises(noprop.InputError, match="channels come first"):
        model.predict(grey[..., None])


def test_fit_takes_images_and_rows_alike():
    x, y = toy_images(48, 0)
    models = [image_model() for _ in range(3)]
    normalize = (torch.full((3,), 0.3), torch.full((3,), 0.2))
    for model, given in zip(models, (x, torch.from_numpy(x), x.reshape(48, -1)), strict=True):
        model.normalize = normalize
        noprop.fit(model, given, y, epochs=2, batch_size=32)
    for model in models[1:]:
        assert torch.equal(model.predict(x.reshape(48, -1)).probs, models[0].predict(x).probs)


def test_images_of_another_shape_are_refused():
    """Also those that have as many numbers."""
    x, y = toy_images(48, 0, (3, 32, 8))
    with pytest.raises(noprop.InputError, match=r"images \(3, 16, 16\).*, got \(3, 32, 8\)"):
        noprop.fit(image_model(), x, y)
    with pytest.raises(noprop.InputError, match="must have 768 features in a row"):
        noprop.fit(image_model(), x[:, :1], y)


def test_images_stay_vectors_for_the_preset_mlp(image_file):
    options = ("--hidden", 8, "--T", 1, "--epochs", 1, "--json")
    call("train", "--data", image_file, *options, "--out", "run")
    assert noprop.load("run").blocks.plan.inputs["x"] == (768,)
    text = words(call("train", "--data", image_file, *PAPER, "--hidden", 8, code=2).stderr)
    assert "--hidden: only preset mlp has it" in text
