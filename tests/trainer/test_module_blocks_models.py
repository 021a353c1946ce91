"""noprop.Model of networks of one's own: fit, resume, save, load, evaluate, replicas, export."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import noprop
import noprop_kernels as nk
from noprop import checkpoint
from noprop.errors import InputError
from support.images import toy_images
from support.networks import GOALS, F, M, Net, changed, own_blocks, own_encoder, rows, state

X, Y = rows(70)
ENCODED = {"none": {}, "copies": {}, "shared": {"share_encoder": True}}


def own_model(kind: str = "dt", encoder: str = "none", **options) -> noprop.Model:
    """With a head where its goal has one."""
    if encoder != "none":
        options |= {"encoder": own_encoder(), **ENCODED[encoder]}
    blocks = own_blocks(kind, **options)
    head = None
    if kind != "fm":
        head = nk.OutputHead(blocks.D, M, goal=blocks.goal, seed=options.get("seed", 5))
    return noprop.Model(blocks, head)


def fit(model: noprop.Model, epochs: int = 2, **options) -> noprop.Progress:
    options = {"batch_size": 16, "lr_schedule": "cosine", "seed": 3} | options
    return noprop.fit(model, X, Y, epochs=epochs, **options)


def assert_same(one: noprop.Model, other: noprop.Model) -> None:
    assert one.tensors().keys() == other.tensors().keys()
    assert not changed(one.tensors(), other.tensors())


@pytest.mark.parametrize("kind", GOALS)
def test_it_learns(kind):
    model = own_model(kind)
    fit(model, epochs=12)
    answer = model.predict(X)
    assert (answer.labels == Y).float().mean() > 0.9
    assert answer.probs.shape == (70, M)
    assert torch.equal(model.predict(X).scores, answer.scores)


def test_an_early_decay_is_not_theirs():
    with pytest.raises(ValueError, match="fit: early_weight_decay must be None of networks of one"):
        fit(own_model(), early_weight_decay=0.5)


@pytest.mark.parametrize("encoder", ENCODED)
@pytest.mark.parametrize("kind", GOALS)
def test_a_run_resumes_with_the_same_bits_from_its_file(kind, encoder, tmp_path):
    """With dropout and batch norm, in the middle of an epoch."""
    whole, model = own_model(kind, encoder), own_model(kind, encoder)
    fit(whole)
    steps = iter(range(100))
    progress = fit(model, stop=lambda: next(steps) == 2)
    assert progress.epoch < 2 and progress.block_steps > 0
    model.save(tmp_path / "run")
    torch.rand(5)
    blocks = own_model(kind, encoder).blocks
    blocks.networks.apply(lambda part: part.reset_parameters() if hasattr(part, "weight") else None)
    loaded = noprop.load(tmp_path / "run", blocks=blocks)
    assert loaded.blocks is blocks
    assert_same(loaded, model)
    fit(loaded, progress=progress)
    assert_same(loaded, whole)


def test_what_a_folder_holds(tmp_path):
    model = own_model(encoder="copies")
    fit(model, epochs=1)
    model.save(tmp_path)
    content = checkpoint.load_content(tmp_path)
    assert content["format"] == 3
    assert content["model"]["networks"] == {
        "kinds": ["Net"],
        "x_shape": [3, 2, 1],
        "time_width": None,
        "encoder": "Encoder",
        "share_encoder": False,
        "optimizer": "AdamW",
    }
    assert content["versions"]["backend"] == "torch"
    assert "plan" not in content["model"]


@pytest.mark.parametrize(
    "kind, options, wrong",
    [
        (
            "dt",
            {"blocks": None},
            "networks of its own (Net), whose code is not saved: give blocks=",
        ),
        ("ct", {}, "saved with the blocks' goal"),
        ("dt", {"seed": 6}, "seeds must be"),
        ("dt", {"seed": [5, 6]}, "saved with the blocks' replicas 1"),
        ("dt", {"embedding": torch.ones(M, 4)}, "saved with the blocks' embed_dim 3, got"),
        ("dt", {"x_shape": (6,)}, "saved with the blocks' x_shape None"),
        ("dt", {"precision": "bfloat16"}, "saved with the blocks' precision float32"),
        ("dt", {"optimizer": torch.optim.SGD}, "saved with the blocks' optimizer AdamW, got"),
        ("dt", {"networks": [nn.Linear(3, 3) for _ in range(3)]}, "saved with the blocks' kinds"),
        ("dt", {"networks": [Net(features=7) for _ in range(3)]}, "hidden.weight must have shape"),
    ],
    ids=str,
)
def test_other_blocks_are_refused_and_stay(kind, options, wrong, tmp_path):
    model = own_model()
    fit(model, epochs=1)
    model.save(tmp_path)
    options = {**options}
    if "blocks" in options:
        blocks = options["blocks"]
    elif "networks" in options:
        make = partial(torch.optim.AdamW, lr=1e-2)
        blocks = noprop.ModuleBlocks(options["networks"], GOALS["dt"], M, optimizer=make, seed=5)
    else:
        blocks = own_blocks(kind, **options)
    before = None if blocks is None else state(blocks)
    with pytest.raises(InputError) as raised:
        noprop.load(tmp_path, blocks=blocks)
    assert wrong in str(raised.value)
    if blocks is not None:
        assert not changed(before, state(blocks))


def test_blocks_are_refused_where_the_library_has_them(tmp_path, new_model):
    new_model().save(tmp_path)
    with pytest.raises(InputError, match="layers of this library: give no blocks"):
        noprop.load(tmp_path, blocks=own_blocks())


@pytest.mark.parametrize("encoder", ENCODED)
def test_replicas_train_as_alone_and_load(encoder, tmp_path):
    both = own_model(encoder=encoder, seed=[5, 8])
    fit(both, seed=[1, 2])
    both.save(tmp_path)
    again = own_model(encoder=encoder, seed=[5, 8]).blocks
    assert_same(noprop.load(tmp_path, blocks=again), both)
    for replica, (seed, order) in enumerate([(5, 1), (8, 2)]):
        alone = own_model(encoder=encoder, seed=seed)
        fit(alone, seed=order)
        one = both.replica(replica)
        assert_same(one, alone)
        assert torch.equal(one.predict(X).probs, both.predict(X, replica=replica).probs)


@pytest.mark.parametrize("kind", GOALS)
def test_evaluation(kind, monkeypatch):
    monkeypatch.setattr("noprop.evaluation.NOISY_STEPS", (3, 5))
    monkeypatch.setattr("noprop.evaluation.STEPS", (1, 2))
    model = own_model(kind)
    model.paper_sampler = model.paper_sampler._replace(steps=3)
    fit(model, epochs=4)
    before = state(model.blocks)
    result = noprop.evaluate(model, X, Y, samples=2)
    assert result.test_accuracy == (model.predict(X).labels == Y).double().mean()
    if kind == "dt":
        assert len(result.accuracy_per_block) == len(result.accuracy_alone) == 3
    else:
        assert len(result.accuracy_by_t) == 10
    assert not changed(before, state(model.blocks)) and model.blocks.training


def test_eval_mode_uses_running_statistics_and_no_dropout():
    model = own_model()
    fit(model)
    one = torch.cat([model.predict(X[i : i + 1]).scores for i in range(5)])
    torch.testing.assert_close(one, model.predict(X[:5]).scores)  # no row depends on others
    model.blocks.eval()
    with pytest.raises(ValueError, match="mode must be that of train"):
        fit(model, epochs=3)


@pytest.mark.parametrize(
    "kind, encoder, noise",
    [(kind, encoder, False) for kind in ("dt", "ct") for encoder in ENCODED]
    + [("fm", "none", False), ("dt", "copies", True), ("ct", "none", True)],
)
def test_its_graph_answers_as_it_does(kind, encoder, noise):
    model = own_model(kind, encoder)
    fit(model)
    module = model.to_module(noise=noise, steps=None if kind == "dt" else 4)
    labels, probs = module(X)
    assert labels.shape == (70,) and probs.shape == (70, M)
    if not noise:
        want = model.predict(X, steps=None if kind == "dt" else 4)
        torch.testing.assert_close(probs, want.probs, rtol=1e-4, atol=1e-5)
        assert torch.equal(labels, want.labels)
    before = [value.clone() for value in module.state_dict().values()]
    fit(model, epochs=3)  # it has tensors of its own
    assert all(map(torch.equal, before, module.state_dict().values()))


def test_its_graph_embeds_t():
    blocks = noprop.ModuleBlocks(
        [TimedNet()], GOALS["ct"], M, time_width=4, optimizer=torch.optim.SGD
    )
    model = noprop.Model(blocks)
    fit(model, epochs=1)
    torch.testing.assert_close(
        model.to_module(steps=3)(X)[1], model.predict(X, steps=3).probs, rtol=1e-4, atol=1e-5
    )


class TimedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(F + M + 4, M)

    def forward(self, x, z, t):
        assert t.shape == (len(x), 4) and t.dtype == torch.float32
        return self.logits(torch.cat([x, z, t], 1))


def test_images_and_augmentation():
    x, y = toy_images(64, seed=0)
    seen = []

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.logits = nn.Conv2d(3, 4, 3), nn.Linear(4 + M, M)

        def forward(self, x, z):
            seen.append(x.shape[1:])
            return self.logits(torch.cat([self.conv(x).mean((2, 3)), z], 1))

    blocks = noprop.ModuleBlocks(lambda t: Seen(), GOALS["dt"], M, x_shape=(3, 16, 16))
    model = noprop.Model(blocks)
    noprop.fit(model, x, y, epochs=1, batch_size=16, augment="crop-flip")
    model.predict(x)
    assert set(seen) == {(3, 16, 16)}
    with pytest.raises(InputError, match="x must be images"):
        noprop.fit(noprop.Model(copy.deepcopy(blocks)), np.zeros((8, 3, 8, 32)), y[:8])
    with pytest.raises(InputError, match="x must have 768 features in a row"):
        noprop.fit(noprop.Model(copy.deepcopy(blocks)), np.zeros((8, 5)), y[:8])


def test_frozen_features_by_the_models_own_encoder(tmp_path):
    def make() -> noprop.ModuleBlocks:
        return noprop.ModuleBlocks([Net(features=4) for _ in range(3)], GOALS["dt"], M)

    encoder = nn.Linear(F, 4)
    model = noprop.Model(make(), encoder=encoder)
    before = encoder.weight.clone()
    fit(model, epochs=1)
    model.save(tmp_path)
    assert torch.equal(encoder.weight, before)
    loaded = noprop.load(tmp_path, nn.Linear(F, 4), blocks=make())
    assert torch.equal(loaded.predict(X).probs, model.predict(X).probs)


def test_a_last_batch_of_one_row_is_left_out_with_batch_norm():
    with pytest.warns(UserWarning, match="batch norm needs 2"):
        noprop.fit(own_model(), X[:33], Y[:33], epochs=1, batch_size=16)


def test_a_loss_that_is_not_finite_stops_and_skips():
    for nonfinite in ("stop", "skip"):
        model = own_model()
        with torch.no_grad():
            model.blocks.block(2).logits.weight.fill_(float("nan"))
        if nonfinite == "stop":
            with pytest.raises(noprop.NotFinite, match="the loss of block 2 is nan in epoch 1"):
                fit(model, nonfinite=nonfinite)
        else:
            epochs = []
            fit(model, nonfinite=nonfinite, epochs=1, on_epoch=epochs.append)
            assert epochs[0].skipped == [0, 70, 0]
            assert [loss is None for loss in epochs[0].loss] == [False, True, False]


def test_repr_and_parameters():
    model = own_model(encoder="copies")
    each = sum(p.numel() for part in model.blocks.parts_of(0) for p in part.parameters())
    assert model.blocks.plan.num_parameters() == each
    text = repr(model)
    assert "x=[3, 2, 1]" in text and "z=[3]" in text and "classes=3" in text
    assert "T=3, replicas=1, M=3, D=3" in repr(model.blocks)
