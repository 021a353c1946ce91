"""What callbacks are told, each step once, and that they change nothing."""

import math
from pathlib import Path

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import checkpoint, runs
from noprop.loading import from_checkpoint
from support.cli import QUICK, call

B = 32


class Diary(noprop.Callback):
    """Writes down all that it is told, into `events` of (its name, what happened)."""

    def __init__(self, name: str = "", events: list | None = None) -> None:
        self.name, self.events = name, [] if events is None else events

    def on_step(self, steps: noprop.Steps) -> None:
        self.events.append((self.name, steps))

    def on_epoch(self, epoch: noprop.Epoch) -> None:
        self.events.append((self.name, epoch))

    def on_checkpoint(self, folder: Path) -> None:
        self.events.append((self.name, folder))

    def all(self, kind: type) -> list:
        return [event for _, event in self.events if isinstance(event, kind)]


def numbers(diary: Diary) -> list[int]:
    return [number for steps in diary.all(noprop.Steps) for number in steps.numbers]


def learned(order: str | None = None) -> noprop.Model:
    """A DT of three blocks whose embeddings are learned."""
    goal, optimizer = nk.DT(nk.NoiseSchedule.cosine(T=3)), nk.AdamW(lr=1e-2)
    shared = nk.Shared(goal, nk.LearnedEmbedding(M=3, D=4), optimizer=optimizer)
    plan = nk.plans.mlp(6, 4, 3, hidden=8)
    blocks = nk.DenoisingBlocks(plan, goal, optimizer=optimizer, shared=shared)
    return noprop.Model(blocks, nk.OutputHead(4, 3, goal=goal, optimizer=optimizer, shared=shared))


@pytest.mark.parametrize("seconds", [0.0, 10.0])
@pytest.mark.parametrize("head", [False, True])
def test_each_step_is_told_once_and_in_order(toy, new_model, monkeypatch, head, seconds):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", seconds)
    diary = Diary()
    noprop.fit(new_model(head=head), *toy, epochs=3, batch_size=B, callbacks=[diary])
    an_epoch = 5 * 4 if head else 5  # of the blocks, then of the head for each t
    assert numbers(diary) == list(range(3 * an_epoch))
    for steps in diary.all(noprop.Steps):
        assert steps.epoch == steps.first // an_epoch + 1
        of_head = steps.first % an_epoch >= 5
        assert (steps.loss is None) == of_head and (steps.head_loss is None) != of_head
    assert sum(steps.samples for steps in diary.all(noprop.Steps)) == 3 * 130
    assert [epoch.epoch for epoch in diary.all(noprop.Epoch)] == [1, 2, 3]
    kinds = [type(event) for _, event in diary.events]
    assert kinds[-1] is noprop.Epoch and kinds[0] is noprop.Steps
    assert Path not in {*kinds}


def test_the_losses_of_the_steps_are_those_of_the_epoch(toy, new_model):
    x, y = (part[:128] for part in toy)  # batches of one size
    diary = Diary()
    noprop.fit(new_model(), x, y, epochs=1, batch_size=B, lr_schedule="cosine", callbacks=[diary])
    (epoch,) = diary.all(noprop.Epoch)
    steps = diary.all(noprop.Steps)
    of_blocks = torch.cat([each.loss for each in steps if each.loss is not None])
    of_head = torch.cat([each.head_loss for each in steps if each.head_loss is not None])
    assert of_blocks.shape == (4, 1, 3) and of_head.shape == (12, 1)
    assert of_blocks.double().mean((0, 1)).tolist() == pytest.approx(epoch.loss, rel=1e-6)
    assert of_head.double().mean().item() == pytest.approx(epoch.head_loss, rel=1e-6)
    rates = torch.cat([each.lr for each in steps if each.loss is not None])
    assert rates[-1].item() == epoch.lr and rates[0].item() == 1e-2
    assert (rates.diff() < 0).all()


def test_replicas_have_their_losses_apart(toy):
    def fit(seed):
        diary = Diary()
        blocks = nk.DenoisingBlocks(
            nk.plans.mlp(6, 3, 3, hidden=8), nk.DT(nk.NoiseSchedule.cosine(T=3)), seed=seed
        )
        model = noprop.Model(blocks)
        noprop.fit(model, *toy, epochs=1, batch_size=B, seed=seed, callbacks=[diary])
        return torch.cat([steps.loss for steps in diary.all(noprop.Steps)]), diary

    together, diary = fit([3, 4])
    assert [epoch.replica for epoch in diary.all(noprop.Epoch)] == [0, 1]
    assert torch.equal(together, torch.cat([fit(3)[0], fit(4)[0]], 1))


@pytest.mark.parametrize("order", ["paper", "sampled", "all-t"])
def test_steps_of_what_is_learned_have_blocks_and_head(toy, order):
    diary, model = Diary(), learned()
    options = {"epochs": 2, "batch_size": B, "order": order, "callbacks": [diary]}
    progress = noprop.Progress()
    noprop.fit(model, *toy, progress=progress, **options)
    an_epoch = 5 if order == "all-t" else 15
    assert numbers(diary) == list(range(2 * an_epoch))
    losses = torch.cat([steps.loss for steps in diary.all(noprop.Steps)])
    of_head = torch.cat([steps.head_loss for steps in diary.all(noprop.Steps)])
    assert of_head.shape == (2 * an_epoch, 1)
    trained = (~losses.isnan()).sum(-1).unique().tolist()
    assert trained == [3 if order == "all-t" else 1]
    if order == "paper":
        assert not losses[:5, 0, 0].isnan().any() and losses[:5, 0, 1:].isnan().all()


def test_callbacks_change_no_bit(tmp_path, toy, new_model, assert_same_state):
    watched, plain = new_model(), new_model()
    noprop.fit(
        watched,
        *toy,
        epochs=2,
        batch_size=B,
        callbacks=[Diary(), Diary()],
        checkpoint=lambda: watched.save(tmp_path / "saved"),
        checkpoint_seconds=-1,  # after each call
    )
    noprop.fit(plain, *toy, epochs=2, batch_size=B)
    assert_same_state(watched, plain)


def test_an_event_goes_to_all_in_their_order(tmp_path, toy, new_model):
    events, model = [], new_model(head=False)
    noprop.fit(
        model,
        *toy,
        epochs=1,
        batch_size=B,
        on_call=lambda progress, samples: events.append(("on_call", samples)),
        on_epoch=lambda epoch: events.append(("on_epoch", epoch)),
        callbacks=[Diary("first", events), Diary("second", events)],
        checkpoint=lambda: model.save(tmp_path / "saved"),
    )
    told = [name for name, _ in events]
    calls = (len(events) - 5) // 3
    assert told == ["on_call", "first", "second"] * calls + ["on_epoch", "first", "second"] + [
        "first",
        "second",
    ]
    assert [event for _, event in events[-2:]] == [tmp_path / "saved"] * 2


@pytest.mark.parametrize("calls", [1, 7, 20, 33])
def test_a_resumed_training_tells_the_rest(tmp_path, toy, new_model, monkeypatch, calls):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    model, left, diary = new_model(), iter(range(calls)), Diary()
    options = {"epochs": 2, "batch_size": B}
    stop = lambda: next(left, None) is None  # noqa: E731
    progress = noprop.fit(model, *toy, **options, stop=stop, callbacks=[diary])
    assert numbers(diary) == list(range(calls))
    noprop.fit(model, *toy, **options, progress=progress, callbacks=[diary])
    assert numbers(diary) == list(range(40))
    assert [epoch.epoch for epoch in diary.all(noprop.Epoch)] == [1, 2]


class Fails(noprop.Callback):
    """Raises at the nth event of one kind."""

    def __init__(self, kind: str, nth: int) -> None:
        self.left = nth
        setattr(self, kind, self.fail)

    def fail(self, event: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("no more")


@pytest.mark.parametrize(
    "kind, nth", [("on_step", 3), ("on_step", 13), ("on_epoch", 1), ("on_checkpoint", 9)]
)
def test_an_error_of_a_callback_loses_nothing(
    tmp_path, toy, new_model, assert_same_state, monkeypatch, kind, nth
):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    model, progress, diary = new_model(), noprop.Progress(), Diary()
    options = {"epochs": 2, "batch_size": B}
    with pytest.raises(RuntimeError, match="no more"):
        noprop.fit(
            model,
            *toy,
            **options,
            progress=progress,
            callbacks=[diary, Fails(kind, nth)],
            checkpoint=lambda: model.save(tmp_path, {"progress": progress.to_json()}),
            checkpoint_seconds=-1 if kind == "on_checkpoint" else 1e9,
        )
    done = 20 * progress.epoch + progress.block_steps + progress.head_steps
    assert numbers(diary) == list(range(done))
    content, tensors = checkpoint.load(tmp_path)
    saved = from_checkpoint(content, tensors)
    assert_same_state(saved, model)
    assert content["training"]["progress"] == progress.to_json()
    resumed = noprop.Progress(**content["training"]["progress"])
    noprop.fit(saved, *toy, **options, progress=resumed, callbacks=[diary])
    assert numbers(diary) == list(range(40))
    assert [epoch.epoch for epoch in diary.all(noprop.Epoch)] == [1, 2]
    straight = new_model()
    noprop.fit(straight, *toy, **options)
    assert_same_state(saved, straight)


def test_a_loss_that_is_not_finite_is_told_and_saved(tmp_path, toy, new_model):
    diary, model = Diary(), new_model(head=False)
    blocks = model.blocks
    with torch.no_grad():
        next(iter(blocks.parameters()))[0].fill_(math.inf)
    with pytest.raises(noprop.NotFinite):
        noprop.fit(
            model,
            *toy,
            epochs=1,
            batch_size=B,
            callbacks=[diary],
            checkpoint=lambda: model.save(tmp_path / "saved"),
        )
    first = diary.all(noprop.Steps)[0]
    finite = first.loss[0, 0].isfinite().tolist()
    assert finite == [False, True, True]
    assert diary.all(Path) == [tmp_path / "saved"]


def test_what_is_no_callback_is_refused_before_anything(toy, new_model, assert_same_state):
    model = new_model()
    with pytest.raises(noprop.InputError, match="callbacks must be noprop.Callback objects, got"):
        noprop.fit(model, *toy, epochs=1, callbacks=[print])
    assert_same_state(model, new_model())


class Adds(noprop.Callback):
    def on_epoch(self, epoch: noprop.Epoch) -> None:
        epoch.figures["mine"] = epoch.epoch / 2


def test_figures_go_to_the_callbacks_after_the_one_that_measured(toy, new_model):
    diary = Diary()
    noprop.fit(new_model(), *toy, epochs=2, batch_size=B, callbacks=[Adds(), diary])
    assert [epoch.figures for epoch in diary.all(noprop.Epoch)] == [{"mine": 0.5}, {"mine": 1.0}]


def test_a_run_is_saved_before_an_error_of_a_callback(alone, toy_file, monkeypatch):
    fit, fails = runs.fit, Fails("on_epoch", 2)
    diary = Diary()
    monkeypatch.setattr(
        runs, "fit", lambda *args, **options: fit(*args, **options | {"callbacks": [diary, fails]})
    )
    arguments = ("train", "--data", toy_file, *QUICK, "--epochs", 3)
    text = call(*arguments, "--out", "run", code=1).stderr
    assert "RuntimeError: no more" in text
    assert checkpoint.load_content(Path("run"))["training"]["progress"]["epoch"] == 2
    assert [*diary.all(noprop.Epoch)[0].figures] == ["train_accuracy"]
