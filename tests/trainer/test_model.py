"""Prediction: no label, no dependence on how rows are batched; what a Model refuses."""

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import model as model_file


@pytest.fixture
def trained(toy, new_model):
    model = new_model()
    noprop.fit(model, *toy, epochs=6, batch_size=32)
    return model


@pytest.mark.parametrize("noise", [False, True])
def test_batching_changes_no_result(trained, toy, noise, monkeypatch):
    whole = trained.predict(toy[0], noise=noise, samples=2).logits
    monkeypatch.setattr(model_file, "ROWS_AT_ONCE", 7)
    assert torch.equal(trained.predict(toy[0], noise=noise, samples=2).logits, whole)


def test_answer_is_the_head_on_z_T(trained, toy):
    x = trained.features(toy[0])
    z = trained.blocks.predict(x, noise=True, samples=2, seed=9).z[:, 0]  # (S, B, D)
    logits = z @ trained.head.logits.weight[0].T + trained.head.logits.bias[0]
    answer = trained.predict(toy[0], noise=True, samples=2, seed=9)
    assert torch.allclose(answer.logits, logits, atol=1e-5)
    probs = torch.softmax(logits, -1).mean(0)
    assert torch.allclose(answer.probs, probs, atol=1e-6)
    assert torch.equal(answer.labels, probs.argmax(-1))


def test_predicting_changes_no_state(trained, toy, new_model, assert_same_state):
    twin = new_model()
    noprop.fit(twin, *toy, epochs=6, batch_size=32)
    trained.predict(toy[0], noise=True, samples=3)
    noprop.evaluate(trained, *toy, samples=2)
    assert_same_state(trained, twin)


def test_bytes_and_floats_of_one_image_get_one_answer(trained, toy):
    probs = trained.predict(toy[0]).probs
    for other in (toy[0].float(), toy[0].double(), toy[0].long(), toy[0].numpy().astype("i2")):
        assert torch.equal(trained.predict(other).probs, probs)
    for other in (toy[0] / 255, toy[0] > 100, (toy[0] > 100).float(), toy[0].long() - 200):
        with pytest.raises(noprop.InputError, match="must be whole numbers 0 to 255"):
            trained.predict(other)


def test_features_are_normalised_as_in_training(trained, toy):
    mean, std = trained.normalize
    exact = (toy[0].double() / 255 - mean.double()) / std.double()
    assert torch.allclose(trained.features(toy[0]).double(), exact, atol=1e-5)


def test_no_rows(trained):
    answer = trained.predict(torch.empty(0, 6), samples=2)
    assert answer.logits.shape == (2, 0, 3) and answer.labels.shape == (0,)


def parts(T=2, **blocks):
    goal = nk.DT(nk.NoiseSchedule.cosine(T=T))
    plan = nk.plans.mlp(6, 3, 3, hidden=4)
    return nk.DenoisingBlocks(plan, goal, **blocks), nk.OutputHead(3, 3, goal=goal)


def test_what_a_model_refuses():
    with pytest.raises(ValueError, match=r"blocks must hold all of 1\.\.2, got \[2\]"):
        noprop.Model(*parts(held=[2]))
    with pytest.raises(ValueError, match="one replica, got 2 and 1"):
        noprop.Model(*parts(seed=[0, 1]))
    blocks, _ = parts()
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    with pytest.raises(ValueError, match="head must be for D, M = 3, 3, got 4, 4"):
        noprop.Model(blocks, nk.OutputHead(4, 4, goal=goal))
