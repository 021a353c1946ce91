"""Models that learn embeddings or gamma: the steps of fit, checkpoints, and signs of collapse."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import noprop
import noprop_kernels as nk
from noprop import NotFinite, checkpoint, learned_metrics
from noprop.errors import InputError
from noprop.loop import learning_rates
from support.images import toy_images

CLASSES, FEATURES, D = 3, 6, 4
GOALS = {
    "dt": nk.DT(nk.NoiseSchedule.cosine(T=3)),
    "ct": nk.CT(nk.GammaNetwork(hidden=8)),
    "fm": nk.FM(),
}
ORDERS = ("paper", "all-t", "sampled")


def parts(variant="dt", embedding="learned", lr=1e-2, lr_shared=None, **head):
    """Blocks, head and what they share."""
    goal = GOALS[variant]
    W = nk.LearnedEmbedding(CLASSES, D) if embedding == "learned" else embedding
    own = nk.AdamW(lr=lr if lr_shared is None else lr_shared, weight_decay=0)
    shared = nk.Shared(goal, W, optimizer=own, seed=5)
    width = CLASSES if W is None else D
    plan = nk.plans.mlp(FEATURES, width, CLASSES, hidden=8, time=variant != "dt")
    options = {"shared": shared, "optimizer": nk.AdamW(lr=lr), "seed": 5}
    blocks = nk.DenoisingBlocks(plan, goal, **options)
    return blocks, nk.OutputHead(width, CLASSES, goal=goal, **head, **options), shared


def model_of(variant="dt", **options):
    return noprop.Model(*parts(variant, **options)[:2])


# fit


@pytest.mark.parametrize("variant, order", [*(("dt", order) for order in ORDERS), ("ct", "paper")])
def test_fit_takes_the_steps_of_coupled(toy, variant, order, assert_same_state):
    """Order "paper": t is the outer loop of an epoch, and every block sees all rows."""
    (x, y), epochs = toy, []
    model, twin = model_of(variant), model_of(variant)
    noprop.fit(model, x, y, epochs=2, batch_size=32, order=order, on_epoch=epochs.append)

    blocks, head = twin.blocks, twin.head
    coupled = nk.Coupled(blocks, head, twin.shared, order=order)
    features = noprop.normalisation.statistics(x).apply(x)
    passes = 1 if order == "all-t" else blocks.T
    of_block, of_head = [[] for _ in range(blocks.T)], []
    for epoch in range(2):
        rows = noprop.feeding.philox.permutation(0, epoch, len(x))
        for t in range(1, passes + 1):
            for batch in rows.split(32):
                before = blocks.draws.clone()
                named = t if order == "paper" and blocks.T > 1 else None
                step = coupled.step(features[batch], y[batch], named)
                if epoch == 1:
                    of_head.append((step.head_loss.item(), len(batch)))
                    for place, loss in zip(
                        (blocks.draws != before).nonzero()[:, 0].tolist(), step.loss, strict=True
                    ):
                        of_block[place].append((loss.item(), len(batch)))
    for name, value in twin.tensors().items():
        assert torch.equal(model.tensors()[name], value), name

    def mean(pairs):
        return sum(loss * rows for loss, rows in pairs) / sum(rows for _, rows in pairs)

    assert epochs[1].head_loss == pytest.approx(mean(of_head))
    assert epochs[1].loss == pytest.approx([mean(pairs) for pairs in of_block])
    assert epochs[1].skipped == [0] * blocks.T


def test_a_rate_falls_for_every_block_alike(toy):
    """In the order "paper" over the steps of each pass, so that the last one is no smaller."""
    model, rates = model_of(), []
    step = nk.Coupled.step

    def watched(self, x, y, t=None, *, lr=None):
        rates.append((t, lr))
        return step(self, x, y, t, lr=lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nk.Coupled, "step", watched)
        noprop.fit(model, *toy, epochs=2, batch_size=32, lr_schedule="cosine")
    by_block = {t: [lr for u, lr in rates if u == t] for t in (1, 2, 3)}
    want = learning_rates(1e-2, "cosine", 0, 10, 10).tolist()
    assert by_block == {1: want, 2: want, 3: want}


def test_a_loader_is_read_again_for_each_pass(toy, assert_same_state):
    x, y = toy
    arrays, rows = model_of(), model_of()
    noprop.fit(arrays, x, y, epochs=2, batch_size=32)
    noprop.fit(rows, TensorDataset(x, y), epochs=2, batch_size=32)
    assert_same_state(arrays, rows)
    noprop.fit(rows, DataLoader(TensorDataset(x, y), 32), epochs=1)


def test_images_are_augmented_anew_in_each_pass():
    x, y = map(torch.as_tensor, toy_images(64, seed=0))
    goal, seen = nk.DT(nk.NoiseSchedule.cosine(T=2)), []
    shared = nk.Shared(goal, nk.LearnedEmbedding(3, 4), seed=5)
    blocks = nk.DenoisingBlocks(nk.plans.mlp(768, 4, 3, hidden=8), goal, shared=shared)
    model = noprop.Model(blocks, nk.OutputHead(4, 3, goal=goal, shared=shared))
    step = nk.Coupled.step

    def watched(self, x, y, t=None, *, lr=None):
        seen.append(x)
        return step(self, x, y, t, lr=lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nk.Coupled, "step", watched)
        noprop.fit(model, x, y, epochs=1, batch_size=32, augment="crop-flip")
    assert len(seen) == 4 and not torch.equal(seen[0], seen[2])


def test_what_cannot_be_trained_is_told(toy):
    blocks, _, _ = parts()
    with pytest.raises(ValueError, match="head must be an OutputHead under this goal, got None"):
        noprop.fit(noprop.Model(blocks), *toy, epochs=1)
    with pytest.raises(ValueError, match="lr_schedule must be 'constant' where blocks, head and"):
        noprop.fit(model_of(lr_shared=1e-3), *toy, epochs=1, lr_schedule="cosine")
    noprop.fit(model_of(lr_shared=1e-3), *toy, epochs=1)
    with pytest.raises(ValueError, match="order must be one of .* got 'random'"):
        noprop.fit(model_of(), *toy, epochs=1, order="random")


def test_a_loss_that_is_not_finite_moves_nothing(toy):
    x, y = toy
    model = model_of("fm")
    with torch.no_grad():
        model.blocks.get_parameter("logits.weight").fill_(1e38)
    before = {name: value.clone() for name, value in model.tensors().items()}
    with pytest.raises(NotFinite, match="the loss of (block 1|the head) is"):
        noprop.fit(model, x, y, epochs=1, batch_size=32)
    counters = ("draws", "updates", "running")
    for name, value in model.tensors().items():
        assert torch.equal(value, before[name]) or name.endswith(counters), name
    epochs = []
    noprop.fit(model, x, y, epochs=1, batch_size=32, nonfinite="skip", on_epoch=epochs.append)
    assert epochs[0].skipped == [130] and epochs[0].loss == [None]


# checkpoints


@pytest.mark.parametrize("variant", GOALS)
def test_a_model_comes_back_whole(tmp_path, toy, variant, assert_same_state):
    head = {} if variant == "fm" else {"kind": "radial", "sigma": 0.7}
    model = model_of(variant, **head)
    noprop.fit(model, *toy, epochs=2, batch_size=32)
    model.save(tmp_path)
    again = noprop.load(tmp_path)
    assert_same_state(model, again)
    assert again.blocks.goal == model.blocks.goal
    assert again.shared.optimizer == model.shared.optimizer
    assert (again.head.kind, again.head.sigma) == (model.head.kind, model.head.sigma)
    assert torch.equal(again.predict(toy[0]).scores, model.predict(toy[0]).scores)
    assert torch.equal(again.W_embed, model.W_embed)
    record = json.loads((tmp_path / checkpoint.RECORD).read_text())
    assert record["format"] == 2 and record["model"]["embedding"]["kind"] == "learned"


def test_what_is_shared_may_be_fixed(tmp_path, toy, assert_same_state):
    """It trains as ever, blocks and head apart."""
    fixed = torch.eye(CLASSES, D)
    model = model_of(embedding=fixed)
    plain = noprop.Model(
        nk.DenoisingBlocks(
            *(model.blocks.plan, model.blocks.goal),
            **{"embedding": fixed, "optimizer": nk.AdamW(lr=1e-2), "seed": 5},
        )
    )
    noprop.fit(model, *toy, epochs=2, batch_size=32)
    noprop.fit(plain, *toy, epochs=2, batch_size=32)
    assert torch.equal(model.predict(toy[0]).scores, plain.predict(toy[0]).scores)
    model.save(tmp_path)
    assert_same_state(model, noprop.load(tmp_path))
    plain.save(tmp_path)
    assert json.loads((tmp_path / checkpoint.RECORD).read_text())["format"] == 1


@pytest.mark.parametrize(
    "change, text",
    [
        ({"embedding": {"kind": "random"}}, "embedding is of kind 'random', this version knows on"),
        ({"embedding": {"kind": "learned"}}, "must carry its shared"),
        ({"head": {"kind": "cosine"}}, "head is of kind 'cosine', this version knows softmax and"),
        ({"head": "radial"}, "head is of kind 'radial'"),
        ({"head": {"kind": "radial"}}, "must carry its sigma"),
        ({"embed_dim": 5}, "must have head.logits.weight"),
        ({"goal": {"kind": "CT", "gamma": {"kind": "spline"}}}, "gamma is of kind 'spline'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(tmp_path, change, text):
    model_of("ct").save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    content["model"] |= change
    checkpoint.save(tmp_path, content, tensors)
    with pytest.raises(InputError, match=text):
        noprop.load(tmp_path)


@pytest.mark.parametrize("name", ["shared.W_embed", "shared.gamma.w1", "shared.seeds"])
def test_a_tensor_that_is_missing_is_named(tmp_path, name):
    model_of("ct").save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    for kept in ({}, {name: torch.zeros(1, 9)}):
        rest = {key: value for key, value in tensors.items() if key != name} | kept
        checkpoint.save(tmp_path, content, rest)
        with pytest.raises(InputError, match=f"a saved model must have {name} "):
            noprop.load(tmp_path)


def test_a_head_as_the_first_models_of_ct_saved_it(tmp_path, sampled):
    model = sampled(head=sampled.goal is nk.CT)
    model.save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    del content["model"]["embedding"]
    content["model"]["head"] = model.head is not None
    checkpoint.save(tmp_path, content, tensors)
    again = noprop.load(tmp_path)
    assert (again.head is None) == (model.head is None) and again.shared is None


# collapse and the learned schedule


def test_distances_and_norms(toy):
    model = model_of()
    with torch.no_grad():
        model.shared.W_embed.copy_(torch.tensor([[3.0, 0, 0, 0], [0, 4, 0, 0], [3, 0, 1, 0]]))
    found = learned_metrics.learned_metrics(model)["embedding"]
    assert (found["least_distance"], found["classes"]) == (1.0, [0, 2])
    assert found["norms"] == pytest.approx([3.0, 4.0, 10**0.5])
    assert "embeddings 1 apart, norms 3 to 4" in learned_metrics.line({"embedding": found})
    assert learned_metrics.learned_metrics(model_of(embedding=None)) == {}


@pytest.mark.parametrize("variant, noise", [("dt", 0.4250), ("ct", 0.2231), ("fm", 0.1)])
def test_a_collapse_is_told(variant, noise):
    """Where two embeddings are nearer than the deviation of the last z, in units of its signal."""
    model = model_of(variant)
    for apart in (0.999 * noise, 1.001 * noise):
        with torch.no_grad():
            model.shared.W_embed.copy_(torch.eye(CLASSES, D))
            model.shared.W_embed[0, 1] = model.shared.W_embed[0, 0] + torch.tensor([apart, 0, 0, 0])
        record = learned_metrics.learned_metrics(model)
        warning = learned_metrics.collapse(model, record)
        assert (warning is None) == (apart > noise)
        if warning:
            assert "the embeddings of 0 and 1 are" in warning and "--detach-target" in warning


def test_the_schedule_is_recorded():
    model = model_of("ct")
    found = learned_metrics.learned_metrics(model)["schedule"]
    assert len(found["gamma"]) == len(found["weight"]) == 41
    assert found["gamma"][0] == pytest.approx(6) and found["gamma"][-1] == pytest.approx(-3)
    t = torch.tensor([0.25], dtype=torch.float64)
    assert found["weight"][10] == pytest.approx(model.goal.levels(t).weight.item())
