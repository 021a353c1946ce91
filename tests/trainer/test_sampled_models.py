"""Models of CT and FM: the answer by its equations, what it depends on, and their checkpoints."""

import inspect
import json

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import checkpoint, inference, variants
from noprop.errors import InputError
from noprop_kernels import philox

UNLIKE = torch.tensor([[4.0, 0.0], [0.3, 0.4], [0.0, -0.2]])  # embeddings of unlike lengths


def assert_near(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.fixture
def trained(toy, sampled):
    model = sampled()
    noprop.fit(model, *toy, epochs=15, batch_size=32)
    return model


# the answer


def last_z(model, x, steps):
    """The last z of ddim or euler from z_0 = 0, and the last logits, written out."""
    goal, blocks = model.goal, model.blocks
    features = model.features(x)
    z = torch.zeros(len(x), blocks.D, dtype=torch.float64)
    W = torch.eye(3) if blocks.W_embed is None else blocks.W_embed
    for step in range(steps):
        t = torch.full((len(x),), step / steps, dtype=torch.float64)
        with torch.no_grad():
            logits = blocks.forward(features, z.float(), t=t)[0]
        if isinstance(goal, nk.FM):
            z = z + (logits @ W).double() / steps
            continue
        here, there = (
            goal.alpha_bar(torch.tensor(s / steps, dtype=torch.float64)) for s in (step, step + 1)
        )
        u_hat = (logits.softmax(-1) @ W).double()
        eps = (z - here.sqrt() * u_hat) / (1 - here).sqrt()
        z = there.sqrt() * u_hat + (1 - there).sqrt() * eps
    return z, logits


@pytest.mark.parametrize("embedding", [None, UNLIKE], ids=["one-hot", "unlike"])
@pytest.mark.parametrize("steps", [None, 3])
def test_the_answer_by_its_equations(toy, sampled, embedding, steps):
    model = sampled(embedding)
    noprop.fit(model, *toy, epochs=15, batch_size=32)
    x, W = toy[0], torch.eye(3, dtype=torch.float64) if embedding is None else embedding.double()
    z, logits = last_z(model, x, steps or 20)
    answer = model.predict(x, steps=steps)
    if isinstance(model.goal, nk.FM):
        signal = 1.0
        nearest = torch.cdist(z, W).argmin(-1)
        assert (answer.labels == nearest).double().mean() > 0.99
    else:
        last = torch.ones((), dtype=torch.float64)
        signal = model.goal.alpha_bar(last).sqrt()
    want = signal * z @ W.T - signal**2 * W.square().sum(1) / 2
    assert_near(answer.scores, want.float())
    probs = want.softmax(-1).float() if isinstance(model.goal, nk.FM) else logits.softmax(-1)
    assert_near(answer.probs, probs)
    assert len(answer.labels.unique()) == 3
    assert torch.equal(model(x), model.predict(x).probs)


def test_the_default_samplers(sampled):
    model = sampled()
    known = {
        nk.CT: (("ddim", 20), ("ancestral", 1000)),
        nk.FM: (("euler", 20), ("euler", 1000)),
    }
    assert (model.sampler, model.paper_sampler) == known[sampled.goal]
    other = sampled(sampler=("heun", 4), paper_sampler=("rk4", 7))
    assert (other.sampler, other.paper_sampler) == (("heun", 4), ("rk4", 7))
    assert f"goal={sampled.goal.__name__}, sampler=heun of 4 steps, x=[6]" in repr(other)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"sampler": ("ancestral", 20)}, "sampler must be one of"),
        ({"sampler": ("dpm", 20)}, "sampler must be one of"),
        ({"paper_sampler": ("dpm", 20)}, "sampler must be one of"),
        ({"sampler": ("euler", 0)}, "steps must be"),
        ({"sampler": "euler"}, "sampler must be a pair of a kind and its steps, got 'euler'"),
        ({"paper_sampler": ("euler",)}, "paper_sampler must be a pair"),
    ],
)
def test_samplers_that_do_not_fit(sampled, options, text):
    with pytest.raises(ValueError, match=f"Model: {text}"):
        sampled(**options)


def test_an_fm_has_no_head(new_model):
    goal = nk.FM()
    blocks = nk.DenoisingBlocks(nk.plans.mlp(6, 3, 3, hidden=8, time=True), goal)
    with pytest.raises(ValueError, match="Model: head must be None of an FM"):
        noprop.Model(blocks, new_model().head)


def test_steps_are_no_choice_of_a_dt(toy, new_model):
    model = new_model(T=3)
    assert model.sampler == model.paper_sampler == ("ancestral", 3)
    assert torch.equal(model.predict(toy[0], steps=3).scores, model.predict(toy[0]).scores)
    with pytest.raises(ValueError, match="steps must be the 3 blocks, got 4"):
        model.predict(toy[0], steps=4)


def test_a_row_s_answer_depends_on_the_row_alone(trained, toy, monkeypatch):
    x = toy[0]
    whole, order = trained.predict(x), philox.permutation(3, 0, len(x))
    mixed = trained.predict(x[order])
    for name in ("scores", "probs"):
        assert torch.equal(getattr(mixed, name), getattr(whole, name)[order])
    assert torch.equal(trained.predict(x[7:8]).scores, whole.scores[7:8])
    monkeypatch.setattr(inference, "ROWS_AT_ONCE", 7)
    assert torch.equal(trained.predict(x).probs, whole.probs)


def test_no_answer_has_an_argument_for_labels(trained):
    for call in (trained.predict, trained.predict_paper, trained.blocks.predict):
        names = inspect.signature(call).parameters
        assert not {"y", "labels", "targets"} & set(names)


def test_labels_that_say_nothing_teach_nothing(toy, sampled):
    """A label that leaks into z_0 would be found again in the answer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 6, generator=generator)
    y = torch.randint(0, 3, (600,), generator=generator)
    model = sampled()
    noprop.fit(model, x[:300], y[:300], epochs=20, batch_size=32)
    assert noprop.evaluate(model, x[300:], y[300:], samples=1).test_accuracy < 0.45


def test_the_papers_protocol(toy, sampled):
    """Of CT the head on z_1 of the ancestral sampler, of FM the nearest embedding."""
    of_ct = sampled.goal is nk.CT
    model = sampled(head=of_ct, paper_sampler=("ancestral" if of_ct else "euler", 30))
    noprop.fit(model, *toy, epochs=10, batch_size=32)
    x = toy[0]
    drawn = model.predict_paper(x, samples=3, seed=8)
    kind, features = model.paper_sampler.kind, model.features(x)
    z = model.blocks.predict(features, sampler=kind, steps=30, samples=3, seed=8).z[:, 0]
    if of_ct:
        want = torch.nn.functional.linear(z, *(model.head.state_dict()[f"logits.{name}"][0]
                                               for name in ("weight", "bias")))  # fmt: skip
    else:
        want = z - 0.5
    assert_near(drawn, want)
    assert not torch.equal(drawn[0], drawn[1])


def test_a_ct_without_a_head_has_no_papers_protocol(toy):
    blocks = nk.DenoisingBlocks(nk.plans.mlp(6, 3, 3, hidden=8, time=True), nk.CT())
    with pytest.raises(ValueError, match="predict_paper: the model must have a head"):
        noprop.Model(blocks).predict_paper(toy[0])


# checkpoints


GOALS = [
    nk.CT(),
    nk.CT(nk.Gamma.linear(-2, 5), eta=0.5, weight="uniform", stratified=True),
    nk.CT(nk.Gamma([5.0, 1.0, -4.0]), weight=("min-snr", 5)),
    nk.FM(),
    nk.FM(sigma=0.1, stratified=True),
    nk.DT(nk.NoiseSchedule.cosine(T=3), eta=0.2),
]


@pytest.mark.parametrize("goal", GOALS, ids=repr)
def test_a_goal_comes_back(goal):
    record = json.loads(json.dumps(variants.goal_to_json(goal)))
    assert variants.goal_from_json(record) == goal


def test_a_goal_of_another_kind_is_refused_by_name():
    with pytest.raises(InputError, match="of kind 'EDM', this version knows DT, CT and FM"):
        variants.goal_from_json({"kind": "EDM"})


class OtherDT(nk.DT):
    """A goal of a user's own."""


def test_a_subclass_answers_as_its_variant_and_is_not_saved_as_another(tmp_path):
    plan = nk.plans.mlp(6, 3, 3, hidden=4)
    goals = [kind(nk.NoiseSchedule.cosine(T=2)) for kind in (nk.DT, OtherDT)]
    plain, other = (noprop.Model(nk.DenoisingBlocks(plan, goal)) for goal in goals)
    x = torch.randn(5, 6)
    assert torch.equal(plain(x), other(x))
    with pytest.raises(ValueError, match="save: goal must be DT itself, got OtherDT"):
        other.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_goal_of_no_variant_is_refused():
    with pytest.raises(
        ValueError, match="Model: blocks must have a DT, CT or FM as goal, got objec"
    ):
        variants.variant_of("Model", object())


def test_a_model_comes_back_whole(tmp_path, toy, sampled, assert_same_state):
    samplers = {"sampler": ("heun", 3), "paper_sampler": ("rk4", 5)}
    model = sampled(head=sampled.goal is nk.CT, **samplers)
    noprop.fit(model, *toy, epochs=2, batch_size=32)
    model.save(tmp_path)
    again = noprop.load(tmp_path)
    assert_same_state(model, again)
    assert again.goal == model.goal and again.blocks.plan == model.blocks.plan
    assert (again.sampler, again.paper_sampler) == (("heun", 3), ("rk4", 5))
    assert torch.equal(again.predict(toy[0]).scores, model.predict(toy[0]).scores)
    record = json.loads((tmp_path / checkpoint.RECORD).read_text())
    assert record["format"] == 2
    assert record["model"]["sampler"] == {"kind": "heun", "steps": 3}


def test_a_dt_is_written_as_ever(tmp_path, new_model):
    new_model().save(tmp_path)
    record = json.loads((tmp_path / checkpoint.RECORD).read_text())
    assert record["format"] == 1 and "paper_sampler" not in record["model"]
    chain = {"kind": "ancestral", "equation": "arXiv:2503.24322v2, eq. 3", "from": "N(0, I)"}
    assert record["model"]["sampler"] == chain


@pytest.mark.parametrize(
    "change, text",
    [
        ({"goal": {"kind": "EDM"}}, "of kind 'EDM'"),
        ({"goal": {"kind": "FM", "sigma": 0.0}}, "must carry its stratified"),
        ({"goal": {"kind": "CT"}}, "must carry its gamma"),
        ({"sampler": {"kind": "dpm", "steps": 3}}, "sampler must be one of"),
        ({"sampler": {"kind": "euler", "steps": 0}}, "steps must be"),
        ({"sampler": {"kind": "euler"}}, "must carry its steps"),
        ({"paper_sampler": None}, "must carry its paper_sampler"),
        ({"order": [1, 2]}, "blocks 1..1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(tmp_path, sampled, change, text):
    sampled().save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    content["model"] |= change
    checkpoint.save(tmp_path, content, tensors)
    with pytest.raises(InputError, match=text):
        noprop.load(tmp_path)
