"""Blocks are trained again, replaced and trained on, and no other changes."""

import json
import signal
from pathlib import Path

import pytest
import torch

from noprop import checkpoint, data, metrics, repairing, runs
from noprop.building import Split
from noprop.repairing import retrain
from noprop.runs import Run
from noprop.units import Units
from support.cli import QUICK, call, tensors_of, words
from support.units import assert_units_of, damage

pytestmark = pytest.mark.usefixtures("alone")

ALL = [*QUICK, "--epochs", 2, "--head", "paper"]


@pytest.fixture
def train(toy_file):
    """Trains a run of all units into a folder."""

    def run(out: str, *options: object) -> Path:
        call("train", "--data", toy_file, *ALL, *options, "--out", out)
        return Path(out)

    return run


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_damaged_block_gets_its_bits_back(train, schedule):
    run = train("run", "--lr-schedule", schedule, "--precision", "bfloat16")
    sha, result = tensors_of(run), Run.load(run).result
    damage(run, 2)
    assert tensors_of(run) != sha
    shown = call("repair", run, "--block", 2, "--json")
    record = json.loads(shown.stdout.splitlines()[-1])
    assert [(each["units"], each["same"]) for each in record["exchanged"]] == [([2], False)]
    assert tensors_of(run) == sha and record["result"]["test_accuracy"] == result["test_accuracy"]
    assert checkpoint.load_content(run)["format"] == 1
    shown = call("repair", run, "--block", "1,head")
    assert "blocks" not in shown.stderr and "the bits that were there" in shown.stdout
    assert tensors_of(run) == sha and len(metrics.read(run)) == 2


def test_an_early_weight_decay_is_early_again(train):
    """Of an odd number of epochs."""
    early = ["--early-weight-decay", 2.0, "--weight-decay", 0.01, "--epochs", 3]
    run, other = train("run", *early), train("other", *early[2:])
    sha = tensors_of(run)
    assert sha != tensors_of(other)
    damage(run, 1)
    call("repair", run, "--block", "1-3,head")
    assert tensors_of(run) == sha
    text = words(call("train", "--resume", run, "--epochs", 5, code=2).stderr)
    assert "with 3 epochs and an early weight decay, which is of their first half" in text


def test_steps_that_were_skipped_are_skipped_again(train):
    run = train("run", "--lr", 1e30, "--on-nonfinite", "skip")
    sha = tensors_of(run)
    call("repair", run, "--block", "1-3")
    assert tensors_of(run) == sha


def test_a_run_that_was_stopped_is_repaired(toy_file, train):
    """To the end of the last epoch; it goes on to the same end."""
    whole = train("whole", "--epochs", 3)
    run = Run.load(train("run", "--epochs", 1))
    run.settings = Run.load(whole).settings
    run.shares[0].epochs = 3
    run.save()
    damage(run.folder, 3)
    call("repair", run.folder, "--block", 3)
    text = call("repair", run.folder, "--block", "head").stderr
    assert "1 of 3 epochs; noprop train --resume run goes on" in text
    call("train", "--resume", run.folder)
    assert tensors_of(run.folder) == tensors_of(whole)


def test_a_repair_that_is_stopped_changes_nothing(train, toy_file, monkeypatch):
    run = train("run")
    damage(run, 1)
    sha, fit = tensors_of(run), repairing.fit

    def interrupted(*args, on_call, **options):
        def watch(progress, samples):
            on_call(progress, samples)
            signal.raise_signal(signal.SIGTERM)

        return fit(*args, on_call=watch, **options)

    monkeypatch.setattr(repairing, "fit", interrupted)
    text = call("repair", run, "--block", 1, code=143).stderr
    assert "interrupted: run is as it was" in text and tensors_of(run) == sha


def test_other_versions_are_told_before_a_repair(train):
    content, tensors = checkpoint.load(train("run"))
    content["versions"]["torch"] = "0.1"
    checkpoint.save(Path("run"), content, tensors)
    text = call("repair", "run", "--block", 1).stderr
    assert f"warning: torch was 0.1, is {torch.__version__}; the bits may differ" in text
    own, others = Run.load(Path("run")).shares
    assert own.versions == Run.load(Path("run")).model.versions()
    assert others.versions is not None and others.versions["torch"] == "0.1"
    assert [share.units for share in Run.load(Path("run")).shares] == [
        Units.of([1]), Units.parse("2-3,head"),
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["repair", "replace"])
def test_units_that_cannot_be_trained_again(train, toy_file, command):
    run = train("run", "--head", "none")
    more = ["--fresh", 1] if command == "replace" else []
    text = call(command, run, "--block", "4,head", *more, code=1).stderr
    assert "run has blocks 1-3, and not block 4 and the head" in text
    assert "must be like" in words(call(command, run, "--block", "x", *more, code=2).stderr)
    call("train", "--data", toy_file, *QUICK, "--epochs", 1, "--seeds", "0,1", "--out", "seeds")
    text = call(command, "seeds", "--block", 1, *more, code=1).stderr
    assert "seeds has no units of its own" in text


# others in their place


def test_a_new_block_of_another_seed(train):
    """The others, z_0 and the noise of the chain stay; it can be repaired too."""
    run, other = train("run"), train("other", "--seed", 7)
    before, of_seed = Run.load(run).model, Run.load(other).model
    call("replace", run, "--block", 1, "--fresh", 7)
    after = Run.load(run)
    assert after.model.blocks.seeds.tolist() == [7, 0, 0] and after.model.seeds == [0]
    whole = before.tensors()
    for name, value in after.model.tensors().items():
        if name.startswith("blocks."):
            assert torch.equal(value[1:], whole[name][1:]), name
            assert torch.equal(value[0], of_seed.tensors()[name][0]), name
        else:
            assert torch.equal(value, whole[name]), name
    assert "block 1 2 of 2 epochs, seed 7" in words(call("info", run).stdout)
    result = json.loads(call("eval", run, "--json").stdout)
    assert after.result is not None and after.result["accuracy_alone"] == result["accuracy_alone"]
    sha = tensors_of(run)
    damage(run, 1)
    call("repair", run, "--block", "1-2")
    assert tensors_of(run) == sha
    call("replace", run, "--block", 1, "--fresh", 0)  # its own again
    assert_units_of(before, Run.load(run).model)
    assert checkpoint.load_content(run)["format"] == 1


def test_a_block_of_another_run(train, toy_file):
    run, other = train("run"), train("other", "--seed", 7, "--epochs", 3)
    before = Run.load(run).model
    shown = call("replace", run, "--block", "2,head", "--from", other)
    assert "block 2 and the head: those of other, with other bits" in words(shown.stdout)
    after, source = Run.load(run).model, Run.load(other).model
    assert after.blocks.seeds.tolist() == [0, 7, 0] and after.blocks.updates.tolist() == [
        10,
        15,
        10,
    ]
    for name, value in after.tensors().items():
        mine, its = before.tensors()[name], source.tensors()[name]
        if name.startswith("blocks."):
            assert torch.equal(value[1], its[1]) and torch.equal(value[::2], mine[::2]), name
        else:
            assert torch.equal(value, its), name
    shown = words(call("info", run).stdout)
    assert "block 2 and the head 3 of 3 epochs, seed 7" in shown
    train("small", "--lr", 0.1)
    text = call("replace", run, "--block", 2, "--from", "small", code=1).stderr
    assert "do not belong together: the learning rate is 0.002 and 0.1" in text
    call("train", "--data", toy_file, *ALL, "--blocks", 1, "--out", "part")
    text = call("replace", run, "--block", 2, "--from", "part", code=1).stderr
    assert "part has block 1, and not block 2" in text
    for options in ([], ["--fresh", 1, "--from", other]):
        text = words(call("replace", run, "--block", 2, *options, code=2).stderr)
        assert "name one of --fresh SEED and --from RUN" in text


def test_a_fresh_block_that_is_not_finite_changes_nothing(train):
    run = train("run", "--lr", 1e30, "--on-nonfinite", "skip")
    sha = tensors_of(run)
    text = call("replace", run, "--block", 1, "--fresh", 3, code=1).stderr
    assert "error: run is as it was: fit: the loss of block 1 is" in text
    assert tensors_of(run) == sha


# trained on


def test_one_block_is_trained_on(train):
    run, longer = train("run"), train("longer", "--epochs", 4)
    before = Run.load(run).model
    call("train", "--resume", run, "--blocks", 2, "--epochs", 4)
    after, whole = Run.load(run), Run.load(longer)
    assert after.model.blocks.updates.tolist() == [10, 20, 10]
    for name, value in after.model.tensors().items():
        if name.startswith("blocks."):
            assert torch.equal(value[1], whole.model.tensors()[name][1]), name
            assert torch.equal(value[::2], before.tensors()[name][::2]), name
        else:
            assert torch.equal(value, before.tensors()[name]), name
    assert after.result is not None and after.settings.epochs == 2
    lines = metrics.read(run)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line.get("units") for line in lines] == [None, None, [2], [2]]
    call("train", "--resume", run, "--epochs", 4)
    assert tensors_of(run) == tensors_of(longer)
    assert checkpoint.load_content(run)["format"] == 1


def test_a_stopped_run_goes_on_block_by_block(toy_file, train, monkeypatch):
    """From within an epoch, in any order."""
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    fit = runs.fit

    def interrupted(*args, on_call, **options):
        def watch(progress, samples):
            on_call(progress, samples)
            if (progress.epoch, progress.head_steps) == (0, 4):
                signal.raise_signal(signal.SIGTERM)

        return fit(*args, on_call=watch, **options)

    monkeypatch.setattr(runs, "fit", interrupted)
    call("train", "--data", toy_file, *ALL, "--out", "run", code=143)
    monkeypatch.setattr(runs, "fit", fit)
    shown = call("train", "--resume", "run", "--blocks", "2,head").stdout
    assert "it lacks blocks 1, 3 to be trained" in words(shown)
    shown = words(call("info", "run").stdout)
    assert "block 2 and the head 2 of 2 epochs" in shown
    assert "blocks 1, 3 0 of 2 epochs, 5 steps of the next" in shown
    call("train", "--resume", "run")
    assert tensors_of("run") == tensors_of(train("straight"))
    assert checkpoint.load_content(Path("run"))["format"] == 1
    lines = metrics.read(Path("run"))
    straight = metrics.read(Path("straight"))
    assert [(line["epoch"], line["units"]) for line in lines] == [
        (1, [2, "head"]), (2, [2, "head"]), (1, [1, 3]), (2, [1, 3]),
    ]  # fmt: skip
    for line, whole in zip(lines, straight * 2, strict=True):
        want = [whole["loss"][t - 1] for t in line["units"] if t != "head"]
        assert line["loss"] == pytest.approx(want, rel=1e-12)


def test_blocks_that_cannot_be_trained_on(train):
    run = train("run", "--lr-schedule", "cosine")
    text = words(call("train", "--resume", run, "--blocks", 2, "--epochs", 4, code=2).stderr)
    assert "begun with 2 epochs and a cosine learning rate, which is 0 at their end" in text
    text = words(call("train", "--resume", run, "--blocks", 9, code=2).stderr)
    assert "the run has blocks 1-3 and the head, and not block 9" in text


def test_retrain_tells_its_samples(train, toy_file):
    run = Run.load(train("run"))
    split = Split.of(data.load(str(toy_file), None), 0.0)
    samples = []
    (exchange,) = retrain(run, Units.of([3]), split, on_call=samples.append) or []
    assert sum(samples) == 2 * 130 and exchange.same and exchange.seconds > 0
    assert run.result is not None
