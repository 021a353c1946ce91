"""noprop.fit(sample_weight=): a weight for each row, of blocks, head and normalisation."""

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import noprop
import noprop_kernels as nk
from noprop.epochs import Progress
from noprop.normalisation import Moments, statistics


def fitted(model, *data, **options):
    noprop.fit(model, *data, **{"epochs": 2, "batch_size": 32} | options)
    return model


@pytest.fixture
def weight(toy):
    return 3 * torch.rand(len(toy[0]), generator=torch.Generator().manual_seed(3)).double()


def test_equal_weights_are_none(toy, new_model, assert_same_state):
    x, y = toy
    want = fitted(new_model(), x, y)
    for weight in (torch.ones(len(x)), np.full(len(x), 7), [0.1] * len(x)):
        model = fitted(new_model(), x, y, sample_weight=weight)
        torch.testing.assert_close(model.normalize, want.normalize, rtol=1e-12, atol=1e-12)
        model = new_model()
        model.normalize = want.normalize
        assert_same_state(fitted(model, x, y, sample_weight=weight), want)


def test_only_ratios_matter_and_every_kind_is_taken(toy, new_model, weight, assert_same_state):
    want = fitted(new_model(), *toy, sample_weight=weight)
    for same in (4 * weight, weight.numpy(), pandas.Series(weight.numpy()), weight.tolist()):
        assert_same_state(fitted(new_model(), *toy, sample_weight=same), want)
    assert not torch.equal(
        fitted(new_model(), *toy).blocks.get_parameter("hx.weight"),
        want.blocks.get_parameter("hx.weight"),
    )


def test_a_class_that_weighs_more_is_answered_more_often(toy, new_model):
    x, y = torch.zeros_like(toy[0]), toy[1]
    for label in range(3):
        heavy = torch.where(y == label, 30.0, 1.0)
        model = fitted(new_model(), x, y, sample_weight=heavy, epochs=40)
        assert (model.predict(x).labels == label).all()
        logits = model.head(torch.zeros(1, model.blocks.D))[0, 0]
        assert logits.argmax() == label


def test_rows_of_weight_0_are_as_if_they_had_other_contents(toy, new_model, assert_same_state):
    x, y = toy
    weight = torch.ones(len(x))
    weight[::3] = 0
    want = fitted(new_model(), x, y, sample_weight=weight)
    other, label = x.clone(), y.clone()
    other[::3], label[::3] = 1000 + x[::3], 0
    assert_same_state(fitted(new_model(), other, label, sample_weight=weight), want)
    torch.testing.assert_close(want.normalize, statistics(x[weight > 0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_moments_of_whole_weights_are_those_of_repeated_rows(kind):
    generator = torch.Generator().manual_seed(0)
    x = (40 * torch.randn(50, 6, generator=generator)).abs().to(kind)
    weight = torch.randint(4, (50,), generator=generator)
    moments = Moments(3)
    for part in range(0, 50, 20):
        moments.add(x[part : part + 20], weight[part : part + 20].double())
    want = statistics(x.repeat_interleave(weight, 0), 3)
    torch.testing.assert_close(moments.result(), want, rtol=1e-12, atol=1e-12)


def test_resumed_with_its_weights_it_has_the_bits(toy, new_model, weight, assert_same_state):
    whole = fitted(new_model(), *toy, sample_weight=weight, epochs=4)
    parts, progress = new_model(), Progress()
    for epochs in (1, 4):
        fitted(parts, *toy, sample_weight=weight, epochs=epochs, progress=progress)
    assert_same_state(parts, whole)


def test_files_and_augmented_images_have_them(toy, new_model, weight, assert_same_state, tmp_path):
    x, y = toy
    want = fitted(new_model(), x, y, sample_weight=weight)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_same_state(fitted(new_model(), mapped, y, sample_weight=weight), want)

    images = x.view(-1, 1, 2, 3)
    options = {"augment": "crop-flip", "seed": [1, 2], "epochs": 1}
    plan, goal = nk.plans.mlp(6, 3, 3, hidden=8), nk.DT(nk.NoiseSchedule.cosine(2))
    both = noprop.Model(nk.DenoisingBlocks(plan, goal, seed=[1, 2]))
    alone = noprop.Model(nk.DenoisingBlocks(plan, goal, seed=2))
    plain = noprop.Model(nk.DenoisingBlocks(plan, goal, seed=2))
    fitted(both, images, y, sample_weight=weight, **options)
    fitted(alone, images, y, sample_weight=weight, **options | {"seed": 2})
    plain.normalize = alone.normalize
    fitted(plain, images, y, **options | {"seed": 2})
    assert_same_state(both.replica(1), alone)
    assert not torch.equal(alone.blocks.hx.weight, plain.blocks.hx.weight)


REFUSED = {
    "negative": (lambda w: -w, "finite and at least 0, got -"),
    "NaN": (lambda w: w * torch.nan, "finite and at least 0, got nan in row 0"),
    "nothing": (torch.zeros_like, "a finite sum above 0, got 0.0"),
    "too few": (lambda w: w[1:], r"\(130,\), a number for each row of x, got \(129,\)"),
    "a column": (lambda w: w[:, None], r"\(130,\), a number for each row of x, got \(130, 1\)"),
    "texts": (lambda w: ["a"] * len(w), "sample_weight must be numbers, got 'a'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(toy, new_model, weight, case):
    spoil, text = REFUSED[case]
    with pytest.raises(noprop.InputError, match=text):
        fitted(new_model(), *toy, sample_weight=spoil(weight))


def test_data_that_come_in_an_order_of_their_own_have_none(toy, new_model, weight):
    for data in (TensorDataset(*toy), DataLoader(TensorDataset(*toy), 32)):
        with pytest.raises(noprop.InputError, match="sample_weight must be None where x is a"):
            fitted(new_model(), data, sample_weight=weight)


def test_what_is_learned_has_none(toy, weight):
    goal = nk.DT(nk.NoiseSchedule.cosine(2))
    shared = nk.Shared(goal, nk.LearnedEmbedding(3, 4))
    blocks = nk.DenoisingBlocks(nk.plans.mlp(6, 4, 3, hidden=8), goal, shared=shared)
    model = noprop.Model(blocks, nk.OutputHead(4, 3, goal=goal, shared=shared))
    with pytest.raises(noprop.InputError, match="None where embeddings or a schedule are learned"):
        fitted(model, *toy, sample_weight=weight)


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(9, 3)

    def forward(self, x, z):
        return self.dense(torch.cat([x, z], 1))


def test_networks_of_ones_own_have_none(toy, weight):
    goal = nk.DT(nk.NoiseSchedule.cosine(2))
    model = noprop.Model(noprop.ModuleBlocks([Own(), Own()], goal, M=3))
    with pytest.raises(noprop.InputError, match="sample_weight must be None of networks of one's"):
        fitted(model, *toy, sample_weight=weight)
    fitted(model, *toy)
