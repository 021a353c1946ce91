"""Models of several replicas: each has the bits of the model of its seed that was trained alone."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import noprop
import noprop_kernels as nk
from noprop import checkpoint, training
from noprop.epochs import Progress
from support.images import toy_images

SEEDS = [3, 8, 5]
DT = nk.DT(nk.NoiseSchedule.cosine(T=3))
IMAGES = (3, 16, 16)
PLANS = {
    "dt": (nk.plans.mlp(6, 3, 3, hidden=8), DT),
    "ct": (nk.plans.mlp(6, 3, 3, hidden=8, time=True), nk.CT()),
    "fm": (nk.plans.mlp(6, 3, 3, hidden=8, time=True), nk.FM()),
    "paper": (nk.plans.paper_dt(IMAGES, 3, 3), nk.DT(nk.NoiseSchedule.cosine(T=2))),
}


def make(kind: str, seed: int | list[int] = SEEDS, **options) -> noprop.Model:
    """Of a kind of PLANS, with a head where its goal has one."""
    plan, goal = PLANS[kind]
    options = {"optimizer": nk.AdamW(lr=1e-2), "seed": seed} | options
    head = None if kind == "fm" else nk.OutputHead(3, 3, goal=goal, **options)
    return noprop.Model(nk.DenoisingBlocks(plan, goal, **options), head)


def data_of(kind: str) -> tuple[np.ndarray | torch.Tensor, ...]:
    if kind == "paper":
        return toy_images(70, 0, IMAGES)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(70) % 3
    x = 60 * torch.nn.functional.one_hot(y, 6) + torch.randint(0, 120, (70, 6), generator=generator)
    return x.to(torch.uint8), y


def fit(model: noprop.Model, kind: str, seed: int | list[int] = SEEDS, **options) -> Progress:
    x, y = data_of(kind)
    given = {"x": x, "y": y, "epochs": 2, "batch_size": 16, "lr_schedule": "cosine"} | options
    return noprop.fit(model, seed=seed, **given)


@pytest.fixture
def assert_each_as_alone(assert_same_state):
    """Compares a model with those that `fit` makes of each seed alone."""

    def check(model: noprop.Model, kind: str, **options) -> None:
        for replica, seed in enumerate(SEEDS):
            alone = make(kind, seed)
            fit(alone, kind, seed, **options)
            assert_same_state(model.replica(replica), alone)

    return check


# training


@pytest.mark.parametrize("kind", PLANS)
def test_a_replica_trains_as_alone(kind, assert_each_as_alone):
    model = make(kind)
    fit(model, kind)
    assert_each_as_alone(model, kind)


def in_file(x: np.ndarray, folder) -> np.ndarray:
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("form", ["bytes", "numbers", "file"])
@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_so_it_does_on_every_form_of_images(form, augment, tmp_path, assert_each_as_alone):
    """With an order and an augmentation of its own."""
    x, _ = data_of("paper")
    x = {"bytes": x, "numbers": x.astype("f4"), "file": in_file(x, tmp_path)}[form]
    model = make("paper")
    fit(model, "paper", x=x, augment=augment)
    assert_each_as_alone(model, "paper", x=x, augment=augment)
    assert not torch.equal(model.replica(0).blocks.c1.weight, model.replica(1).blocks.c1.weight)


def test_a_seed_for_all_is_one_order(assert_same_state):
    model = make("dt", [3, 3])
    fit(model, "dt", 4)
    assert_same_state(model.replica(0), model.replica(1))
    other = make("dt", [3, 3])
    fit(other, "dt", [4, 5])
    assert not torch.equal(other.replica(0).blocks.f.weight, other.replica(1).blocks.f.weight)


@pytest.mark.parametrize("kind", ["dt", "fm"])
@pytest.mark.parametrize("calls", [1, 7, 23])
def test_a_stopped_training_goes_on_with_the_same_bits(
    kind, calls, tmp_path, monkeypatch, assert_same_state
):
    """Saved and loaded, within an epoch, of the blocks and of the head."""
    straight = make(kind)
    fit(straight, kind, epochs=5)
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    model, left = make(kind), iter(range(calls))
    progress = fit(model, kind, epochs=5, stop=lambda: next(left, None) is None)
    assert progress.epoch < 5
    model.save(tmp_path, {"progress": progress.to_json()})
    again = noprop.load(tmp_path)
    content = checkpoint.load_content(tmp_path)
    assert content["format"] == 2 and content["model"]["replicas"] == 3
    fit(again, kind, epochs=5, progress=Progress(**content["training"]["progress"]))
    assert_same_state(again, straight)


def test_epochs_are_told_of_each_replica():
    epochs, samples = [], []
    on_call = lambda progress, count: samples.append(count)  # noqa: E731
    fit(make("dt"), "dt", on_epoch=epochs.append, on_call=on_call)
    assert [(each.epoch, each.replica) for each in epochs] == [
        (epoch, replica) for epoch in (1, 2) for replica in range(3)
    ]
    assert sum(samples) == 2 * 70
    for replica, seed in enumerate(SEEDS):
        alone = []
        fit(make("dt", seed), "dt", seed, on_epoch=alone.append)
        for mine, its in zip(epochs[replica::3], alone, strict=True):
            assert mine.loss == pytest.approx(its.loss, rel=1e-12)
            assert mine.error == pytest.approx(its.error, rel=1e-12)
            assert mine.head_loss == pytest.approx(its.head_loss, rel=1e-12)
            assert (mine.lr, mine.skipped) == (its.lr, its.skipped)


# losses that are not finite


def broken(seed: int | list[int] = SEEDS, at: int = 4) -> noprop.Model:
    """Slice `at` has a weight that makes its losses infinite: of SEEDS block 2 of replica 1."""
    model = make("dt", seed)
    with torch.no_grad():
        model.blocks.f.bias[at] = float("inf")
    return model


def test_a_replica_whose_loss_is_not_finite_ends_no_other(assert_same_state):
    model, told, epochs = broken(), [], []
    fit(model, "dt", say=told.append, on_epoch=epochs.append)
    alone = broken(8, at=1)
    fit(alone, "dt", 8, nonfinite="skip")
    assert_same_state(model.replica(1), alone)
    for replica in (0, 2):
        alone = make("dt", SEEDS[replica])
        fit(alone, "dt", SEEDS[replica])
        assert_same_state(model.replica(replica), alone)
    (line,) = told
    assert line.startswith("fit: the loss of block 2 of replica 1, seed 8, is nan in epoch 1, step")
    assert line.endswith("all replicas go on")
    assert [each.skipped for each in epochs[:3]] == [[0, 0, 0], [0, 70, 0], [0, 0, 0]]
    assert epochs[1].loss[1] is None and None not in epochs[0].loss


def test_it_ends_all_where_that_is_asked_for():
    with pytest.raises(training.NotFinite, match="block 2 of replica 1, seed 8, is nan") as caught:
        fit(broken(), "dt", nonfinite="stop")
    assert str(caught.value).endswith('and nonfinite="skip" goes on')
    told = []
    fit(broken(), "dt", nonfinite="skip", say=told.append)
    assert not told


# models


@pytest.mark.parametrize("kind", ["dt", "ct", "fm"])
def test_a_replica_answers_as_alone(kind):
    model, x = make(kind), data_of(kind)[0]
    fit(model, kind)
    for replica, seed in enumerate(SEEDS):
        alone = make(kind, seed)
        fit(alone, kind, seed)
        for part in ("scores", "probs"):
            mine = getattr(model.predict(x, replica=replica), part)
            assert torch.equal(mine, getattr(alone.predict(x), part))
        assert torch.equal(model(x, replica=replica), alone(x))
        paper = partial(model.predict_paper, x, samples=2, replica=replica)
        assert torch.equal(paper(), alone.predict_paper(x, samples=2))
        assert torch.equal(paper(seed=1), alone.predict_paper(x, samples=2, seed=1))
        module = model.replica(replica).to_module()
        assert torch.equal(module(x)[0], alone.predict(x).labels)


def test_which_one_is_asked_must_be_said():
    model, x = make("dt"), data_of("dt")[0]
    text = r"replica must say which of 3 answers, 0\.\.2 of the seeds 3, 8, 5, got None"
    for call in (model, model.predict, model.predict_paper):
        with pytest.raises(ValueError, match=text):
            call(x)
    with pytest.raises(ValueError, match=text):
        model.read(torch.zeros(2, 3))
    for replica in (3, -1, True, 1.0):
        with pytest.raises(ValueError, match="predict: replica must be an integer"):
            model.predict(x, replica=replica)
    for call in (model.to_module, partial(noprop.evaluate, model, x, data_of("dt")[1])):
        with pytest.raises(ValueError, match="model must have one replica, got 3: model.replica"):
            call()
    alone = make("dt", 3)
    assert torch.equal(alone.predict(x, replica=0).scores, alone.predict(x).scores)
    assert "replicas=3" in repr(model) and "replicas" not in repr(alone)
    assert model.seeds == SEEDS and model.replicas == 3 and alone.replicas == 1


def test_a_replica_is_a_copy(assert_same_state):
    """With the embeddings, and the weight decay of its slices."""
    W = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    plan, goal = PLANS["dt"]
    decays = nk.AdamW(lr=1e-2, weight_decay=tuple(i / 100 for i in range(9)))
    blocks = nk.DenoisingBlocks(plan, goal, embedding=W, optimizer=decays, seed=SEEDS)
    model = noprop.Model(blocks)
    fit(model, "dt")
    one = model.replica(2)
    assert torch.equal(one.blocks.W_embed, W)
    assert one.blocks.optimizer.weight_decay == (0.06, 0.07, 0.08)
    before = model.tensors()["blocks.f.weight"].clone()
    x, y = data_of("dt")
    noprop.fit(one, x, y, epochs=1, batch_size=16)
    assert torch.equal(model.tensors()["blocks.f.weight"], before)


def test_what_fit_refuses():
    model, (x, y) = make("dt"), data_of("dt")
    with pytest.raises(ValueError, match=r"fit: seed must be one or 3, one per replica, got \[1"):
        noprop.fit(model, x, y, seed=[1, 2])
    source = TensorDataset(x, y)
    for stream in (source, DataLoader(source, 16)):
        with pytest.raises(ValueError, match="x must be an array where there are several replicas"):
            noprop.fit(model, stream)


@pytest.mark.parametrize("change", [{"replicas": 2}, {"replicas": 0}, {"replicas": "3"}])
def test_a_record_of_other_replicas_is_refused(tmp_path, change):
    make("dt").save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    content["model"] |= change
    with pytest.raises(noprop.InputError, match="a saved model must"):
        noprop.loading.from_checkpoint(content, tensors)
    del content["model"]["replicas"]
    with pytest.raises(noprop.InputError, match=r"must have blocks.* \[3, "):
        noprop.loading.from_checkpoint(content, tensors)


# what blocks and head share


def sharing(
    kind: str,
    embedding: object,
    seed: int | list[int] = SEEDS,
    head: dict[str, object] | None = None,
) -> noprop.Model:
    plan, goal = PLANS[kind]
    if kind == "ct" and embedding is None:
        goal = nk.CT(nk.GammaNetwork(hidden=8))
    shared = nk.Shared(goal, embedding, optimizer=nk.AdamW(lr=1e-2), seed=seed)
    options = {"optimizer": nk.AdamW(lr=1e-2), "seed": seed, "shared": shared}
    blocks = nk.DenoisingBlocks(plan, goal, **options)
    rows = [5, 0, 2] if shared.learns_embedding else None
    reads = nk.OutputHead(3, 3, goal=goal, **options, **(head or {}))
    return noprop.Model(blocks, reads, prototypes=rows)


@pytest.mark.parametrize("kind", ["dt", "ct"])
def test_replicas_share_fixed_embeddings_and_have_radial_heads(kind, tmp_path, assert_same_state):
    W = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    head = {"kind": "radial", "sigma": 0.7}
    model, x = sharing(kind, W, head=head), data_of(kind)[0]
    fit(model, kind)
    model.save(tmp_path)
    again = noprop.load(tmp_path)
    assert_same_state(again, model)
    for replica, seed in enumerate(SEEDS):
        alone = sharing(kind, W, seed, head)
        fit(alone, kind, seed)
        one = again.replica(replica)
        assert_same_state(one, alone)
        assert (one.head.kind, one.head.sigma) == ("radial", 0.7) and one.head.shared is one.shared
        paper = model.predict_paper(x, samples=2, replica=replica)
        assert torch.equal(paper, alone.predict_paper(x, samples=2))
        assert torch.equal(model(x, replica=replica), alone(x))


@pytest.mark.parametrize(
    "kind, embedding",
    [("dt", nk.LearnedEmbedding(3, 3, detach_target=True)), ("ct", None)],
    ids=["embedding", "schedule"],
)
def test_a_copy_has_what_is_learned(kind, embedding, assert_same_state):
    model = sharing(kind, embedding, 3)
    fit(model, kind, 3)
    copy = model.replica(0)
    assert_same_state(copy, model)
    assert copy.shared is not model.shared and copy.prototypes == model.prototypes
    assert copy.shared.detach_target == (embedding is not None)
    before = {name: value.clone() for name, value in model.tensors().items()}
    fit(copy, kind, 3, epochs=1)
    for name, value in model.tensors().items():
        assert torch.equal(value, before[name]), name
    fit(model, kind, 3, epochs=1)
    assert_same_state(copy, model)


def test_what_is_learned_has_one_replica():
    with pytest.raises(ValueError, match=r"Model: blocks must have one replica where something sh"):
        sharing("ct", None)
    with pytest.raises(ValueError, match="seed must be one where W_embed is learned"):
        sharing("dt", nk.LearnedEmbedding(3, 3))
