"""Prediction: no label, no dependence on other rows; a Model's summary, and its refusals."""

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import inference
from noprop_kernels import philox


@pytest.fixture
def trained(toy, new_model):
    model = new_model()
    noprop.fit(model, *toy, epochs=6, batch_size=32)
    return model


def odd_rows_embedding():
    """Embeddings of unlike lengths: a score without |u_y|^2 takes the longest for the likeliest."""
    return torch.tensor([[4.0, 0.0, 1.0], [0.3, 0.4, 0.0], [0.0, 0.1, -0.2]])


def exact_answer(model, x):
    """Labels and probabilities by eq. 3 without noise in float64, from plain modules."""
    blocks, schedule = model.blocks, model.blocks.goal.schedule
    W = torch.eye(blocks.M) if blocks.W_embed is None else blocks.W_embed
    h, W = model.features(x).double(), W.double()
    z, later = torch.zeros(len(h), blocks.D, dtype=torch.float64), []
    for t, block in enumerate(blocks.to_modules(), 1):
        probs = block.double().eval()(h, z).softmax(-1)
        z = schedule.a[t] * probs @ W + schedule.b[t] * z
        later += [probs] if t > blocks.T / 2 else []
    alpha_bar = schedule.alpha_bar[-1]
    distance = (z[:, None] - alpha_bar.sqrt() * W).square().sum(-1)  # of z_T to each class's mean
    return distance.argmin(-1), torch.stack(later).mean(0)


@pytest.mark.parametrize("embedding", [None, odd_rows_embedding()], ids=["one-hot", "embedded"])
@pytest.mark.parametrize("head", [True, False])
def test_the_answer_is_the_likeliest_class_of_z_T(toy, new_model, embedding, head):
    model = new_model(embedding=embedding, head=head)
    noprop.fit(model, *toy, epochs=20, batch_size=32)
    labels, probs = exact_answer(model, toy[0])
    answer = model.predict(toy[0])
    assert (answer.labels != labels).sum() <= 1  # a row between two classes
    assert torch.allclose(answer.probs.double(), probs, atol=1e-5)
    assert torch.equal(model(toy[0]), answer.probs)
    assert len(labels.unique()) == 3
    assert answer.scores.shape == answer.probs.shape == (130, 3)


@pytest.mark.parametrize("embedding", [None, odd_rows_embedding()], ids=["one-hot", "embedded"])
def test_a_row_s_answer_depends_on_that_row_alone(toy, new_model, embedding, monkeypatch):
    model, x = new_model(embedding=embedding), toy[0]
    noprop.fit(model, *toy, epochs=2, batch_size=32)
    whole = model.predict(x)
    order = philox.permutation(3, 0, len(x))
    monkeypatch.setattr(inference, "ROWS_AT_ONCE", 7)
    for part in ("scores", "probs"):
        want = getattr(whole, part)
        assert torch.equal(getattr(model.predict(x), part), want)
        assert torch.equal(getattr(model.predict(x[order]), part), want[order])
        assert torch.equal(getattr(model.predict(x[11:12]), part), want[11:12])


def test_small_sets_of_two_classes_are_answered_right(new_model):
    """Two Gaussians 6 deviations apart, 320 rows, 8 % of one class: no head had the steps to learn
    them, and the blocks need none.
    """
    generator = torch.Generator().manual_seed(0)
    goal = nk.DT(nk.NoiseSchedule.cosine(T=10))
    for share in (0.5, 0.08):
        y = (torch.rand(4320, generator=generator) < share).long()
        x = torch.randn(4320, 1, generator=generator) + 6 * y[:, None]
        blocks = nk.DenoisingBlocks(nk.plans.mlp(1, 2, 2, hidden=32), goal)
        model = noprop.Model(blocks)
        noprop.fit(model, x[:320], y[:320], epochs=60)
        assert (model.predict(x[320:]).labels == y[320:]).double().mean() > 0.99


def test_the_papers_protocol_is_the_head_on_z_T(trained, toy):
    x = trained.features(toy[0])
    z = trained.blocks.predict(x, noise=True, samples=2, seed=9).z[:, 0]  # (S, B, D)
    logits = z @ trained.head.logits.weight[0].T + trained.head.logits.bias[0]
    assert torch.allclose(trained.predict_paper(toy[0], samples=2, seed=9), logits, atol=1e-5)
    assert trained.predict_paper(toy[0]).shape == (5, 130, 3)
    one, other = (trained.predict_paper(toy[0], samples=1, seed=seed) for seed in (8, 9))
    assert not torch.equal(one, other)


def test_batching_changes_no_draw_of_the_papers_protocol(trained, toy, monkeypatch):
    whole = trained.predict_paper(toy[0], samples=2)
    monkeypatch.setattr(inference, "ROWS_AT_ONCE", 7)
    assert torch.equal(trained.predict_paper(toy[0], samples=2), whole)


def test_without_a_head_there_is_no_papers_protocol(toy, new_model):
    model = new_model(head=False)
    noprop.fit(model, *toy, epochs=1, batch_size=32)
    with pytest.raises(ValueError, match="predict_paper: the model must have a head"):
        model.predict_paper(toy[0])
    with pytest.raises(ValueError, match="samples must be an integer of at least 1, got 0"):
        new_model().predict_paper(toy[0], samples=0)


def test_predicting_changes_no_state(trained, toy, new_model, assert_same_state):
    twin = new_model()
    noprop.fit(twin, *toy, epochs=6, batch_size=32)
    assert all(same is trained for same in (trained.eval(), trained.train(), trained.train(False)))
    trained.predict(toy[0])
    trained.predict_paper(toy[0], samples=3)
    noprop.evaluate(trained, *toy, samples=2)
    assert_same_state(trained, twin)


def test_modes_change_no_answer_and_no_training(toy):
    """Batch norm: statistics of the batch in training, running ones in answers."""
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    models = [noprop.Model(nk.DenoisingBlocks(nk.plans.paper_dt(6, 3, 3), goal)) for _ in range(2)]
    models[1].eval()
    for model in models:
        noprop.fit(model, *toy, epochs=1, batch_size=65)
    assert torch.equal(models[0](toy[0]), models[1](toy[0]))
    assert torch.equal(models[0].train()(toy[0]), models[1].eval()(toy[0]))


def test_names_of_the_classes(trained, toy):
    assert trained.classes_ == ("0", "1", "2")
    assert set(trained.predict(toy[0]).names) == {"0", "1", "2"}
    model = noprop.Model(trained.blocks, normalize=trained.normalize, classes=["ant", "bee", "cow"])
    answer = model.predict(toy[0])
    assert model.classes_ == ("ant", "bee", "cow")
    assert answer.names == [model.classes_[label] for label in answer.labels]
    assert len(set(answer.names)) == 3


def test_repr_tells_shapes_and_parts(trained):
    assert repr(trained) == (
        "Model(T=3, x=[6], z=[3], classes=3, parameters=765, head=True, encoder=None, device=cpu)"
    )


def test_an_evaluation_takes_what_predict_takes(trained, toy):
    outcome = noprop.evaluate(trained, toy[0].tolist(), toy[1], samples=1)
    assert outcome == noprop.evaluate(trained, *toy, samples=1)


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
    answer = trained.predict(torch.empty(0, 6))
    assert answer.probs.shape == (0, 3) and answer.labels.shape == (0,) and answer.names == []
    assert trained.predict_paper(torch.empty(0, 6), samples=2).shape == (2, 0, 3)


def parts(T=2, **blocks):
    goal = nk.DT(nk.NoiseSchedule.cosine(T=T))
    plan = nk.plans.mlp(6, 3, 3, hidden=4)
    return nk.DenoisingBlocks(plan, goal, **blocks), nk.OutputHead(3, 3, goal=goal)


def test_what_a_model_refuses():
    with pytest.raises(ValueError, match="head must be given where it is alone, got None"):
        noprop.Model(parts()[0], alone=True)
    with pytest.raises(ValueError, match="seeds must be one per replica, 1, got 2"):
        noprop.Model(*parts(), seeds=[0, 1])
    with pytest.raises(ValueError, match="head must have as many replicas as the blocks, 2, got 1"):
        noprop.Model(*parts(seed=[0, 1]))
    blocks, _ = parts()
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    with pytest.raises(ValueError, match="head must have as many replicas as the blocks, 1, got 2"):
        noprop.Model(blocks, nk.OutputHead(3, 3, goal=goal, seed=[0, 1]))
    with pytest.raises(ValueError, match="classes must be 3 different names, got 2 in 2"):
        noprop.Model(blocks, classes=["a", "b"])
    with pytest.raises(ValueError, match="classes must be 3 different names, got 2 in 3"):
        noprop.Model(blocks, classes=["a", "b", "a"])
    with pytest.raises(ValueError, match="head must be for D, M = 3, 3, got 4, 4"):
        noprop.Model(blocks, nk.OutputHead(4, 4, goal=goal))


def test_parts_that_do_not_belong_together_are_refused():
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    plan, shared = nk.plans.mlp(4, 2, 2, hidden=4), nk.Shared(goal)
    blocks = nk.DenoisingBlocks(plan, goal, shared=shared)
    for other, got in ((None, "none"), (nk.Shared(goal), "another")):
        head = nk.OutputHead(2, 2, goal=goal, shared=other)
        with pytest.raises(ValueError, match=f"head must be made with the blocks' .*, got {got}"):
            noprop.Model(blocks, head)
    with pytest.raises(ValueError, match="prototypes must be a row for each .* got 2 of fixed"):
        noprop.Model(blocks, prototypes=[0, 1])
