"""The protocol: five draws, block by block, and nothing in it that could see a label."""

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import evaluation
from noprop_kernels import noise


@pytest.fixture
def trained(toy, new_model):
    model = new_model()
    noprop.fit(model, *toy, epochs=8, batch_size=32)
    return model


def right(logits, y):
    return (logits.argmax(-1) == y).double().mean().item()


def test_figures_by_their_definitions(toy, new_model):
    x, y = toy
    trained = new_model()
    noprop.fit(trained, x, y, epochs=2, batch_size=32)  # unsure yet, so that every draw counts
    told = noprop.evaluate(trained, x, y)
    features, S, T = trained.features(x), 5, trained.blocks.T
    z_0 = [noise.normal(trained.blocks.seeds[:1], 2, 0, s, 0xFFFF, len(x), 3)[0] for s in range(S)]
    schedule = trained.blocks.goal.schedule
    finals, quiet = [], []
    chained, alone = torch.zeros(S, T), torch.zeros(S, T)
    for s in range(S):
        z = z_0[s]
        for t in range(1, T + 1):
            logits = trained.blocks.forward(features, z, blocks=t)[0].detach()
            chained[s, t - 1] = right(logits, y)
            alone[s, t - 1] = right(trained.blocks.forward(features, z_0[s], blocks=t)[0], y)
            mean = schedule.a[t].float() * logits.softmax(-1) + schedule.b[t].float() * z
            eps = noise.normal(trained.blocks.seeds[:1], 2, 0, s, t - 1, len(x), 3)[0]
            z = mean + schedule.c[t].sqrt().float() * eps
        finals.append(right(trained.read(z), y))
        quiet.append(right(trained.read(mean), y))
    near = {"abs": 1.5 / len(x)}  # a row on the border between classes may fall on either side
    assert told.test_accuracy == pytest.approx(sum(finals) / S, **near)
    assert told.test_accuracy_std == pytest.approx(torch.tensor(finals).std().item(), abs=0.01)
    assert told.accuracy_per_block == pytest.approx(chained.mean(0).tolist(), **near)
    assert told.accuracy_alone == pytest.approx(alone.mean(0).tolist(), **near)
    assert told.accuracy_no_last_noise == pytest.approx(sum(quiet) / S, **near)
    assert told.accuracy_no_noise == pytest.approx(right(trained.predict(x).logits[0], y), **near)
    assert told.accuracy_last_block == told.accuracy_per_block[-1]
    assert (told.samples, told.rows) == (5, len(x))
    assert all(0.4 < value < 0.95 for value in told.accuracy_alone)


def test_the_first_block_starts_from_pure_noise_either_way(trained, toy):
    told = noprop.evaluate(trained, *toy, samples=2)
    assert told.accuracy_per_block[0] == pytest.approx(told.accuracy_alone[0], abs=1 / len(toy[0]))


def test_labels_are_compared_and_used_for_nothing_else(trained, toy):
    x, y = toy
    shuffled = y[noise.permutation(3, 0, len(y))]
    assert noprop.evaluate(trained, x, shuffled).test_accuracy < 0.55
    straight = noprop.evaluate(trained, x, y).test_accuracy
    wrong = noprop.evaluate(trained, x, (y + 1) % 3).test_accuracy
    assert wrong < 1 - straight + 1e-9


def test_seeds(trained, toy):
    one, again = (noprop.evaluate(trained, *toy, seed=4, samples=3) for _ in range(2))
    assert one == again
    assert noprop.evaluate(trained, *toy, seed=5, samples=3) != one
    assert noprop.evaluate(trained, *toy, samples=1).test_accuracy_std == 0


def test_batching_changes_no_figure(toy, new_model, monkeypatch):
    model = new_model()
    noprop.fit(model, *toy, epochs=2, batch_size=32)
    whole = noprop.evaluate(model, *toy)
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 7)
    assert noprop.evaluate(model, *toy) == whole


def test_one_block(toy, new_model):
    model = new_model(T=1)
    noprop.fit(model, *toy, epochs=3, batch_size=32)
    told = noprop.evaluate(model, *toy)
    assert len(told.accuracy_per_block) == len(told.accuracy_alone) == 1


def test_running_statistics_stay(toy):
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    blocks = nk.DenoisingBlocks(nk.plans.paper_dt(6, 3, 3), goal)
    model = noprop.Model(blocks, nk.OutputHead(3, 3, goal=goal))
    noprop.fit(model, *toy, epochs=1, batch_size=32)
    before = {name: value.clone() for name, value in model.tensors().items()}
    noprop.evaluate(model, *toy, samples=1)
    assert blocks.training
    for name, value in model.tensors().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("samples, rows", [(0, 130), (1, 0)])
def test_bad_arguments(new_model, toy, samples, rows):
    with pytest.raises(ValueError, match="at least 1"):
        noprop.evaluate(new_model(), toy[0][:rows], toy[1][:rows], samples=samples)
