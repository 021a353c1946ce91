"""The loop: the paper's order, and the same bits however it is cut into calls and runs."""

import itertools

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import checkpoint, training
from noprop.model import from_checkpoint
from noprop.normalisation import statistics
from noprop.training import Batches, Progress
from noprop_kernels import noise

B = 32


def one_by_one(model, x, y, epochs, seed=0):
    """Alg. 1 as it stands: per epoch t outside, batches inside; every update a call of its own."""
    model.normalize = statistics(x)
    for epoch in range(epochs):
        batches = noise.permutation(seed, epoch, len(x)).split(B)
        for t in range(1, model.blocks.T + 1):
            for batch in batches:
                model.blocks.train_steps(x, y, batch[None], blocks=t, normalize=model.normalize)
                model.head.train_steps(y, batch[None], t)


def test_fit_is_the_papers_order(toy, new_model, assert_same_state):
    model, plain = new_model(), new_model()
    progress = noprop.fit(model, *toy, epochs=3, batch_size=B)
    one_by_one(plain, *toy, epochs=3)
    assert_same_state(model, plain)
    assert progress.epoch == 3 and progress.seconds > 0
    assert model.blocks.updates.tolist() == [15] * 3
    assert model.head.updates.tolist() == [45]


def test_the_length_of_a_call_changes_no_bit(toy, new_model, assert_same_state, monkeypatch):
    lengths = {}
    models = {}
    for seconds in (0.0, 10.0):
        monkeypatch.setattr(training, "CALL_SECONDS", seconds)
        models[seconds], counts = new_model(), itertools.count()
        noprop.fit(
            models[seconds],
            *toy,
            epochs=3,
            batch_size=B,
            on_call=lambda *_, counts=counts: next(counts),
        )
        lengths[seconds] = next(counts)
    assert lengths[0.0] == 3 * 5 * 4 > lengths[10.0]
    assert_same_state(models[0.0], models[10.0])


@pytest.mark.parametrize("calls", [0, 1, 3, 7, 11, 20, 33])
def test_stop_save_load_and_go_on(tmp_path, toy, new_model, assert_same_state, monkeypatch, calls):
    monkeypatch.setattr(training, "CALL_SECONDS", 0.0)  # a call a step: 20 calls an epoch
    straight = new_model()
    whole = noprop.fit(straight, *toy, epochs=2, batch_size=B)
    model, left = new_model(), iter(range(calls))
    progress = noprop.fit(
        model, *toy, epochs=2, batch_size=B, stop=lambda: next(left, None) is None
    )
    assert progress.epoch * 20 + progress.block_steps + progress.head_steps == calls
    assert progress.epoch < 2
    model.save(tmp_path, {"progress": progress.to_json()})
    content, tensors = checkpoint.load(tmp_path)
    model = from_checkpoint(content, tensors)
    progress = Progress(**content["training"]["progress"])
    epochs = []
    progress = noprop.fit(
        model, *toy, epochs=2, batch_size=B, progress=progress, on_epoch=epochs.append
    )
    assert_same_state(model, straight)
    assert progress.epoch == whole.epoch == 2
    assert epochs[-1].epoch == 2


def test_a_call_takes_a_power_of_two_of_steps_that_its_time_affords(monkeypatch):
    """At 0.2 s: as a GPU has a CUDA graph for each length, few lengths are few graphs."""
    pace, lengths = training.Pace(), []
    for seconds in (0.03, 0.06, 0.12, 0.5, 0.9):
        times = iter((0.0, seconds))
        monkeypatch.setattr(training, "CLOCK", lambda times=times: next(times))
        with pace.measure(pace.K):
            pass
        lengths.append(pace.K)
    assert lengths == [2, 4, 4, 1, 1]


def test_losses_told_do_not_depend_on_the_cut(toy, new_model, monkeypatch):
    told = []
    for seconds in (0.0, 10.0):
        monkeypatch.setattr(training, "CALL_SECONDS", seconds)
        epochs = []
        noprop.fit(new_model(), *toy, epochs=2, batch_size=B, on_epoch=epochs.append)
        told.append(epochs)
    for one, other in zip(*told, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
        assert one.head_loss == pytest.approx(other.head_loss, rel=1e-12)


def test_the_loss_is_the_mean_over_the_samples(toy, new_model, monkeypatch):
    model = new_model()
    model.normalize = statistics(toy[0])
    order = noise.permutation(0, 0, len(toy[0]))
    total, twin = torch.zeros(3), new_model()
    for batch in order.split(B):
        losses = twin.blocks.train_steps(*toy, batch[None], normalize=model.normalize)
        total += losses[0] * len(batch)
    epochs, samples = [], []
    noprop.fit(
        model,
        *toy,
        epochs=1,
        batch_size=B,
        on_epoch=epochs.append,
        on_call=lambda progress, count: samples.append(count),
    )
    assert epochs[0].loss == pytest.approx((total / len(order)).tolist(), rel=1e-5)
    assert sum(samples) == len(order)


def test_a_toy_problem_is_learned(toy, new_model):
    model = new_model()
    noprop.fit(model, *toy, epochs=15, batch_size=B)
    assert (model.predict(toy[0]).labels == toy[1]).double().mean() > 0.9


def test_labels_of_another_order_are_not_learned(toy, new_model):
    x, y = toy
    model = new_model()
    noprop.fit(model, x, y[noise.permutation(1, 0, len(y))], epochs=3, batch_size=B)
    assert (model.predict(x).labels == y).double().mean() < 0.6


def test_batches():
    order = torch.arange(70)
    batches = Batches(70, 32, has_norm=False)
    assert (batches.steps, batches.rows) == (3, 70)
    assert batches.take(order, 0, 5).tolist() == order[:64].view(2, 32).tolist()
    assert batches.take(order, 1, 1).tolist() == [order[32:64].tolist()]
    assert batches.take(order, 2, 5).tolist() == [order[64:].tolist()]
    assert Batches(65, 32, has_norm=False).rows == 65
    assert Batches(65, 32, has_norm=True).rows == 64
    assert Batches(7, 32, has_norm=True).steps == 1
    with pytest.raises(ValueError, match="at least 2 rows for batch norm"):
        Batches(1, 32, has_norm=True)


def test_batch_norm_leaves_out_a_last_row(toy):
    x, y = toy[0][:65], toy[1][:65]
    plan = nk.plans.paper_dt(6, 3, 3)
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    model = noprop.Model(nk.DenoisingBlocks(plan, goal), nk.OutputHead(3, 3, goal=goal))
    noprop.fit(model, x, y, epochs=1, batch_size=B)
    assert model.blocks.updates.tolist() == [2, 2]
    assert model.head.updates.tolist() == [4]


def test_an_encoder_is_applied_before_the_blocks(toy, new_model, assert_same_state):
    x, y = toy
    base, plain = new_model(), new_model()
    encoder = torch.nn.Linear(6, 6)
    model = noprop.Model(base.blocks, base.head, encoder)
    noprop.fit(model, x, y, epochs=1, batch_size=B)
    mean, std = statistics(x)
    with torch.no_grad():
        features = encoder(((x / 255 - mean) / std).float())
    plain.normalize = (torch.zeros(1), torch.ones(1))
    noprop.fit(plain, features, y, epochs=1, batch_size=B)
    for name, value in plain.tensors().items():
        assert torch.allclose(model.tensors()[name], value, atol=1e-3), name


@pytest.mark.parametrize(
    "change, text",
    [
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"batch_size": 0}, "batch_size at least 1"),
        ({"x": torch.zeros(4)}, r"x must be \(rows, F\), .*, got \(4,\); of one feature, use"),
        ({"x": torch.zeros(4, 5)}, "x must have 6 features in a row, as the blocks have, got 5"),
        ({"x": torch.zeros(4, 6) * 1j}, "x must be real numbers, got torch.complex64"),
        ({"x": torch.zeros(0, 6), "y": torch.zeros(0).long()}, "x must have at least 1 row"),
        ({"y": torch.zeros(3).long()}, "y must have as many rows as x, 4, got 3"),
        ({"y": torch.rand(4)}, "y must be whole numbers, texts or bools, got 0.* in row 0"),
        ({"y": torch.full((4,), 3)}, "y must be of 3 classes, as the model is, got 1: 3"),
    ],
)
def test_bad_arguments(new_model, assert_same_state, change, text):
    given = {"x": torch.zeros(4, 6), "y": torch.zeros(4, dtype=torch.int64), "epochs": 1} | change
    model = new_model()
    with pytest.raises(ValueError, match=text):
        noprop.fit(model, given.pop("x"), given.pop("y"), **given)
    assert_same_state(model, new_model())
    assert model.normalize is None and model.inputs is None and model.classes_ is None
