"""The protocol: five draws, block by block, and nothing in it that could see a label."""

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import evaluation
from noprop_kernels import philox


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
    outcome = noprop.evaluate(trained, x, y)
    features, S, T = trained.features(x), 5, trained.blocks.T
    schedule = trained.blocks.goal.schedule

    def step(z, t):
        """Block t's logits, and the mean of z_t."""
        logits = trained.blocks.forward(features, z, blocks=t)[0].detach()
        return logits, schedule.a[t].float() * logits.softmax(-1) + schedule.b[t].float() * z

    z, quiet = torch.zeros(len(x), 3), []
    for t in range(1, T + 1):
        logits, z = step(z, t)
        quiet.append(right(logits, y))
    answer = right(z, y)  # one-hot: the likeliest class is the largest of z_T

    paper, last, alone = [], [], []
    for s in range(S):

        def draw(block, s=s):
            return philox.normal(trained.blocks.seeds[:1], 2, 0, s, block, len(x), 3)[0]

        z = z_0 = draw(0xFFFF)
        for t in range(1, T + 1):
            if s == 0:
                alone.append(right(step(z_0, t)[0], y))
            logits, mean = step(z, t)
            z = mean + schedule.c[t].sqrt().float() * draw(t - 1)
        paper.append(right(trained.read(z), y))
        last.append(right(logits, y))
    near = {"abs": 1.5 / len(x)}  # a row on the border between classes may fall on either side
    assert outcome.test_accuracy == pytest.approx(answer, **near)
    assert outcome.test_accuracy == right(trained.predict(x).scores, y)
    assert outcome.accuracy_per_block == pytest.approx(quiet, **near)
    assert outcome.accuracy_last_block == outcome.accuracy_per_block[-1]
    assert outcome.accuracy_alone == pytest.approx(alone, **near)
    assert outcome.paper_accuracy == pytest.approx(sum(paper) / S, **near)
    assert outcome.paper_accuracy_std == pytest.approx(torch.tensor(paper).std().item(), abs=0.01)
    assert outcome.paper_accuracy_last_block == pytest.approx(sum(last) / S, **near)
    assert (outcome.samples, outcome.rows) == (5, len(x))
    assert all(0.4 < value < 0.95 for value in outcome.accuracy_alone)
    assert outcome.paper_accuracy != outcome.test_accuracy


def test_without_a_head_only_the_papers_figures_are_missing(toy, new_model):
    with_head, without = new_model(), new_model(head=False)
    for model in (with_head, without):
        noprop.fit(model, *toy, epochs=2, batch_size=32)
    one, other = (noprop.evaluate(model, *toy).to_json() for model in (with_head, without))
    papers = [name for name in one if name.startswith("paper_")]
    assert len(papers) == 3 and all(other[name] is None for name in papers)
    assert other == one | dict.fromkeys(papers)
    assert evaluation.head_warning(other) is None


def test_a_head_that_has_learned_too_little_is_told(toy, new_model):
    model = new_model()
    noprop.fit(model, *toy, epochs=8, batch_size=32)
    head = nk.OutputHead(3, 3, goal=model.blocks.goal, seed=2)  # untrained
    result = noprop.evaluate(noprop.Model(model.blocks, head, normalize=model.normalize), *toy)
    warning = evaluation.head_warning(result.to_json())
    assert result.paper_accuracy < 0.6 < result.paper_accuracy_last_block
    assert f"{result.paper_accuracy:.2%}" in warning and "the head needs more steps" in warning
    limit = {"paper_accuracy": 0.891, "paper_accuracy_last_block": 0.9}
    assert evaluation.head_warning(limit) is None
    assert evaluation.head_warning(limit | {"paper_accuracy": 0.889}) is not None


def test_the_answers_accuracy_has_no_seed_and_no_order(toy, new_model):
    x, y = toy
    model = new_model()
    noprop.fit(model, x, y, epochs=2, batch_size=32)
    order = philox.permutation(4, 0, len(x))
    one, other = noprop.evaluate(model, x, y), noprop.evaluate(model, x[order], y[order], seed=8)
    assert one.test_accuracy == other.test_accuracy
    assert one.accuracy_per_block == other.accuracy_per_block
    assert one.accuracy_alone != other.accuracy_alone


def test_labels_are_compared_and_used_for_nothing_else(trained, toy):
    x, y = toy
    shuffled = y[philox.permutation(3, 0, len(y))]
    assert noprop.evaluate(trained, x, shuffled).test_accuracy < 0.55
    straight = noprop.evaluate(trained, x, y).test_accuracy
    wrong = noprop.evaluate(trained, x, (y + 1) % 3).test_accuracy
    assert wrong < 1 - straight + 1e-9


def test_seeds(trained, toy):
    one, again = (noprop.evaluate(trained, *toy, seed=4, samples=3) for _ in range(2))
    assert one == again
    assert noprop.evaluate(trained, *toy, seed=5, samples=3) != one
    assert noprop.evaluate(trained, *toy, samples=1).paper_accuracy_std is None


def test_batching_changes_no_figure(toy, new_model, monkeypatch):
    model = new_model()
    noprop.fit(model, *toy, epochs=2, batch_size=32)
    whole = noprop.evaluate(model, *toy)
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 7)
    assert noprop.evaluate(model, *toy) == whole


def test_one_block(toy, new_model):
    model = new_model(T=1)
    noprop.fit(model, *toy, epochs=3, batch_size=32)
    outcome = noprop.evaluate(model, *toy)
    assert len(outcome.accuracy_per_block) == len(outcome.accuracy_alone) == 1


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
