"""A weight decay of the first half of the epochs: bits, runs that stop, and when it is chosen."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import noprop
from noprop.epochs import Progress
from tests.support.cli import QUICK, call

B = 32


@pytest.mark.parametrize("epochs, early", [(4, 2), (3, 2), (1, 1)])
def test_the_first_half_has_it(toy, new_model, assert_same_state, epochs, early):
    model, plain = new_model(), new_model()
    own = model.blocks.optimizer
    noprop.fit(model, *toy, epochs=epochs, batch_size=B, early_weight_decay=0.5)
    assert model.blocks.optimizer is own
    progress = Progress()
    plain.blocks.optimizer = replace(own, weight_decay=0.5)
    noprop.fit(plain, *toy, epochs=early, batch_size=B, progress=progress)
    plain.blocks.optimizer = own
    noprop.fit(plain, *toy, epochs=epochs, batch_size=B, progress=progress)
    assert_same_state(model, plain)


def test_stopping_changes_no_bit(toy, new_model, assert_same_state):
    options = {"epochs": 3, "batch_size": B, "lr_schedule": "cosine", "early_weight_decay": 0.5}
    whole, parts, progress = new_model(), new_model(), Progress()
    noprop.fit(whole, *toy, **options)
    while progress.epoch < 3:
        before = progress.to_json()
        noprop.fit(
            parts,
            *toy,
            **options,
            progress=progress,
            stop=lambda before=before: progress.to_json() != before,
        )
    assert_same_state(whole, parts)


def test_an_error_in_a_call_leaves_the_optimizer(toy, new_model, monkeypatch):
    model = new_model()
    own = model.blocks.optimizer

    def fails(*args, **options):
        raise MemoryError("none left")

    monkeypatch.setattr(model.blocks, "train_steps", fails)
    with pytest.raises(MemoryError, match="none left"):
        noprop.fit(model, *toy, epochs=2, batch_size=B, early_weight_decay=0.5)
    assert model.blocks.optimizer is own


@pytest.mark.parametrize("decay", [-0.1, float("nan"), "strong"])
def test_other_decays_are_refused(toy, new_model, decay):
    with pytest.raises(ValueError, match="fit: early_weight_decay must be at least 0, got"):
        noprop.fit(new_model(), *toy, epochs=2, batch_size=B, early_weight_decay=decay)


@pytest.fixture
def wide_file(tmp_path):
    """Two classes in 250 features, most of them noise."""
    random = np.random.default_rng(0)
    y = random.integers(0, 2, 1200)
    x = random.normal(size=(1200, 250)) + 3 * np.eye(2, 250)[y]
    np.savez(tmp_path / "wide.npz", x=x[:1000], y=y[:1000], x_test=x[1000:], y_test=y[1000:])
    return tmp_path / "wide.npz"


def test_by_default_many_directions_have_one(wide_file, tmp_path):
    options = (*QUICK, "--epochs", 2, "--json", "--out", tmp_path / "run")
    outcome = json.loads(call("train", "--data", wide_file, *options).stdout)
    assert outcome["early_weight_decay"] == 2 and outcome["weight_decay"] == 1e-3
    models = [noprop.load(tmp_path / "run").tensors()]
    for early in (2, 1):
        given = (
            "--weight-decay",
            1e-3,
            "--early-weight-decay",
            early,
            "--out",
            tmp_path / str(early),
        )
        call("train", "--data", wide_file, *QUICK, "--epochs", 2, *given)
        models.append(noprop.load(tmp_path / str(early)).tensors())
    same, other = ([torch.equal(x, each[n]) for n, x in models[0].items()] for each in models[1:])
    assert all(same) and not all(other)


@pytest.mark.parametrize(
    "given, early, late",
    [
        (["--weight-decay", "0.3"], None, 0.3),
        (["--early-weight-decay", "0.3"], 0.3, 1),
        (["--optimizer", "adam"], None, 1e-3),
    ],
    ids=str,
)
def test_what_is_given_is_all_there_is(wide_file, given, early, late):
    out = call("train", "--data", wide_file, *QUICK, *given, "--dry-run", "--json").stdout
    outcome = json.loads(out)
    assert (outcome["early_weight_decay"], outcome["weight_decay"]) == (early, late)
