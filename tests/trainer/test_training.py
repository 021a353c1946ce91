"""The loop: the paper's order, and the same bits however it is cut into calls and runs."""

import itertools
import json
from dataclasses import asdict

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import checkpoint, pace, training
from noprop.batching import Batches
from noprop.epochs import Progress
from noprop.loading import from_checkpoint
from noprop.loop import learning_rates
from noprop.normalisation import statistics
from noprop_kernels import philox

B = 32


def one_by_one(model, x, y, epochs, seed=0):
    """Alg. 1 to the letter: per epoch t outside, batches inside; every update a call of its own."""
    model.normalize = statistics(x)
    for epoch in range(epochs):
        batches = philox.permutation(seed, epoch, len(x)).split(B)
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
        monkeypatch.setattr("noprop.loop.CALL_SECONDS", seconds)
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
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)  # a call a step: 20 calls an epoch
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
    chosen, lengths = pace.Pace(0.2), []
    for seconds in (0.03, 0.06, 0.12, 0.5, 0.9):
        times = iter((0.0, seconds))
        monkeypatch.setattr(pace, "CLOCK", lambda times=times: next(times))
        with chosen.measure(chosen.K):
            pass
        lengths.append(chosen.K)
    assert lengths == [2, 4, 4, 1, 1]


def test_losses_told_do_not_depend_on_the_cut(toy, new_model, monkeypatch):
    outcome = []
    for seconds in (0.0, 10.0):
        monkeypatch.setattr("noprop.loop.CALL_SECONDS", seconds)
        epochs = []
        noprop.fit(new_model(), *toy, epochs=2, batch_size=B, on_epoch=epochs.append)
        outcome.append(epochs)
    for one, other in zip(*outcome, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
        assert one.error == pytest.approx(other.error, rel=1e-12)
        assert one.lr == other.lr and one.skipped == other.skipped == [0, 0, 0]
        assert one.head_loss == pytest.approx(other.head_loss, rel=1e-12)


def test_the_loss_is_the_mean_over_the_samples(toy, new_model, monkeypatch):
    model = new_model()
    model.normalize = statistics(toy[0])
    order = philox.permutation(0, 0, len(toy[0]))
    total, errors, twin = torch.zeros(3), torch.zeros(3), new_model()
    for batch in order.split(B):
        rows = model.normalize.apply(toy[0][batch])
        step = twin.blocks.train_step(rows, toy[1][batch])
        total += step.loss * len(batch)
        errors += step.error.sum(1)
    epochs, samples = [], []
    noprop.fit(
        model,
        *toy,
        epochs=1,
        batch_size=B,
        on_epoch=epochs.append,
        on_call=lambda progress, count: samples.append(count),
    )
    assert epochs[0].loss == pytest.approx((total / len(order)).tolist(), rel=1e-4)
    assert epochs[0].error == pytest.approx((errors / len(order)).tolist(), rel=1e-4)
    assert epochs[0].lr == 1e-2 and epochs[0].head_loss > 0
    assert sum(samples) == len(order)


def test_a_head_is_trained_where_there_is_one(toy, new_model):
    """The blocks' bits do not know of it, and without it an epoch is shorter."""
    outcome = {}
    for head in (True, False):
        model, calls, outcome[head] = new_model(head=head), [], []
        noprop.fit(
            model,
            *toy,
            epochs=2,
            batch_size=B,
            on_epoch=outcome[head].append,
            on_call=lambda progress, samples, calls=calls: calls.append(samples),
        )
        outcome[head] += [model.blocks.updates.tolist(), calls.count(0), model.tensors()]
    (*with_head, updates, head_calls, state), (*without, same, none, blocks) = outcome.values()
    assert updates == same == [10] * 3 and head_calls > 0 and none == 0
    assert [epoch.loss for epoch in with_head] == [epoch.loss for epoch in without]
    assert all(epoch.head_loss > 0 for epoch in with_head)
    assert all(epoch.head_loss is None for epoch in without)
    assert blocks.keys() == {name for name in state if name.startswith("blocks.")}
    assert all(torch.equal(value, state[name]) for name, value in blocks.items())


def test_the_epochs_lr_is_that_of_its_last_step(toy, new_model):
    epochs = []
    noprop.fit(
        new_model(), *toy, epochs=3, batch_size=B, lr_schedule="cosine", on_epoch=epochs.append
    )
    want = [learning_rates(1e-2, "cosine", 5 * e + 4, 1, 15).item() for e in range(3)]
    assert [epoch.lr for epoch in epochs] == want


def broken(new_model, block=2, **options):
    """A model whose block 2 has a weight that makes its losses infinite."""
    model = new_model(**options)
    with torch.no_grad():
        model.blocks.f.bias[block - 1] = float("inf")
    return model


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_a_loss_that_is_not_finite_stops(toy, new_model, monkeypatch, tmp_path, seconds, head):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", seconds)
    model, progress = broken(new_model, head=head), Progress()
    text = "fit: the loss of block 2 is nan in epoch 1, step 1 of 5"
    with pytest.raises(training.NotFinite, match=text) as caught:
        noprop.fit(model, *toy, epochs=2, batch_size=B, progress=progress)
    assert caught.value.progress is progress and isinstance(caught.value, ValueError)
    assert model.blocks.draws.tolist() == [progress.block_steps] * 3
    assert model.blocks.updates.tolist() == [progress.block_steps, 0, progress.block_steps]
    assert progress.skipped == [0, B * progress.block_steps, 0]
    json.dumps(progress.to_json(), allow_nan=False)
    # saved and continued, it ends where a run ends that never stopped
    model.save(tmp_path, {"progress": progress.to_json()})
    content, tensors = checkpoint.load(tmp_path)
    model = from_checkpoint(content, tensors)
    progress = Progress(**content["training"]["progress"])
    noprop.fit(model, *toy, epochs=2, batch_size=B, progress=progress, nonfinite="skip")
    whole = broken(new_model, head=head)
    noprop.fit(whole, *toy, epochs=2, batch_size=B, nonfinite="skip")
    for name, value in whole.tensors().items():
        assert torch.equal(value, model.tensors()[name]), name


def test_losses_that_are_not_finite_are_counted_and_left_out(toy, new_model):
    model, epochs = broken(new_model), []
    noprop.fit(model, *toy, epochs=2, batch_size=B, nonfinite="skip", on_epoch=epochs.append)
    plain = []
    noprop.fit(new_model(), *toy, epochs=2, batch_size=B, on_epoch=plain.append)
    for outcome, want in zip(epochs, plain, strict=True):
        assert outcome.skipped == [0, 130, 0] and want.skipped == [0, 0, 0]
        assert outcome.loss == [want.loss[0], None, want.loss[2]]
        assert outcome.error == [want.error[0], None, want.error[2]]
        assert outcome.head_loss == want.head_loss
        json.dumps(asdict(outcome), allow_nan=False)


def test_a_head_whose_loss_is_not_finite_stops(toy, new_model):
    model = new_model()
    with torch.no_grad():
        model.head.logits.bias[0, 1] = float("nan")
    with pytest.raises(training.NotFinite, match="the loss of the head is nan in epoch 1, step 1"):
        noprop.fit(model, *toy, epochs=1, batch_size=B)
    epochs = []
    noprop.fit(model, *toy, epochs=1, batch_size=B, nonfinite="skip", on_epoch=epochs.append)
    assert epochs[0].head_loss is None and epochs[0].skipped == [0, 0, 0]


def test_progress_of_a_run_that_counted_nothing_goes_on(toy, new_model, monkeypatch):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    model, left, epochs = new_model(), iter(range(7)), []
    progress = noprop.fit(
        model, *toy, epochs=1, batch_size=B, stop=lambda: next(left, None) is None
    )
    record = progress.to_json()
    del record["skipped"], record["head_skipped"]
    noprop.fit(
        *(model, *toy), epochs=1, batch_size=B, progress=Progress(**record),
        on_epoch=epochs.append,
    )  # fmt: skip
    assert epochs[0].skipped == [0, 0, 0] and epochs[0].loss[0] > 0


class Tied(torch.nn.Module):
    """One weight under two names, and a view of it under a third."""

    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.other.weight = self.one.weight
        self.register_buffer("part", self.one.weight.detach()[2:4])

    def forward(self, x):
        return self.other(torch.relu(self.one(x)))


def test_an_encoder_with_tied_weights_is_saved_and_stays_tied(toy, new_model, tmp_path):
    base = new_model(head=False)
    model = noprop.Model(base.blocks, encoder=Tied())
    noprop.fit(model, *toy, epochs=1, batch_size=B)
    model.save(tmp_path)
    again = noprop.load(tmp_path, Tied())
    assert torch.equal(again(toy[0]), model(toy[0]))
    assert again.encoder.one.weight is again.encoder.other.weight
    for name, value in model.tensors().items():
        assert torch.equal(again.tensors()[name], value), name


class Told(torch.nn.Linear):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


def test_what_cannot_be_saved_is_refused_before_the_training(toy, new_model):
    sparse = torch.nn.Linear(6, 6)
    sparse.register_buffer("mask", torch.eye(6).to_sparse())
    for encoder, name in ((Told(6, 6), "encoder._extra_state"), (sparse, "encoder.mask")):
        model = noprop.Model(new_model().blocks, encoder=encoder)
        with pytest.raises(ValueError, match=f"{name} must be a dense tensor"):
            noprop.fit(model, *toy, epochs=1, batch_size=B)
        assert model.blocks.updates.tolist() == [0, 0, 0]


def test_a_toy_problem_is_learned(toy, new_model):
    model = new_model()
    noprop.fit(model, *toy, epochs=15, batch_size=B)
    assert (model.predict(toy[0]).labels == toy[1]).double().mean() > 0.9


def test_labels_of_another_order_are_not_learned(toy, new_model):
    x, y = toy
    model = new_model()
    noprop.fit(model, x, y[philox.permutation(1, 0, len(y))], epochs=3, batch_size=B)
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
    lines = []
    noprop.fit(model, x, y, epochs=2, batch_size=B, say=lines.append)
    assert model.blocks.updates.tolist() == [4, 4]
    assert model.head.updates.tolist() == [8]
    assert len(lines) == 1 and "65 rows in batches of 32 leave a last one of 1 row" in lines[0]
    with pytest.warns(UserWarning, match="leave a last one of 1 row"):
        noprop.fit(model, x, y, epochs=1, batch_size=B)
    noprop.fit(model, x[:64], y[:64], epochs=1, batch_size=B, say=pytest.fail)


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


def test_data_in_the_place_of_the_model():
    with pytest.raises(ValueError, match="fit: model must be a noprop.Model, got Tensor"):
        noprop.fit(torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64), epochs=1)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"batch_size": 0}, "batch_size at least 1"),
        ({"nonfinite": "ignore"}, r"nonfinite must be one of \('stop', 'skip'\), got 'ignore'"),
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
