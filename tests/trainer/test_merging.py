"""Runs of some units become one run, of every bit of a run of all."""

import json
import shutil
from pathlib import Path

import pytest

from noprop import apart, checkpoint, metrics
from noprop.errors import InputError
from noprop.runs import Run
from noprop.units import Units
from support.cli import QUICK, call, words

pytestmark = pytest.mark.usefixtures("alone")

ALL = [*QUICK, "--epochs", 2, "--head", "paper"]
SECONDS = ("seconds", "epoch_seconds")


@pytest.fixture
def train(toy_file):
    """Trains some units into a folder."""

    def run(out: str, blocks: str | None = None, *options: object) -> Path:
        some = [] if blocks is None else ["--blocks", blocks]
        call("train", "--data", toy_file, *ALL, *some, *options, "--out", out)
        return Path(out)

    return run


def without_seconds(record: dict) -> dict:
    return {name: it for name, it in record.items() if name not in SECONDS}


def test_units_trained_apart_are_the_whole_run(train):
    whole = train("whole")
    parts = [train("a", "3"), train("b", "1,head"), train("c", "2")]
    shown = call("merge", *parts, "--out", "merged").stdout
    assert "merged: blocks 1-3 and the head of 3 runs" in words(shown)
    mine, its = (checkpoint.load_content(path) for path in (Path("merged"), whole))
    assert mine["tensors"] == its["tensors"] and mine["format"] == its["format"] == 1
    assert mine["model"] == its["model"] and mine["versions"] == its["versions"]
    training = mine["training"]
    assert training["result"] is None and training["settings"] == its["training"]["settings"]
    assert without_seconds(training["progress"]) == without_seconds(its["training"]["progress"])
    trained = sum(share.progress.seconds for part in parts for share in Run.load(part).shares)
    assert training["progress"]["seconds"] == pytest.approx(trained, rel=1e-12)
    lines = metrics.read(Path("merged"))
    assert [line["epoch"] for line in lines] == [1] * 3 + [2] * 3
    assert [line["units"] for line in lines[:3]] == [[3], [1, "head"], [2]]
    results = [json.loads(call("eval", path, "--json").stdout) for path in ("merged", whole)]
    for name in ("test_accuracy", "accuracy_per_block", "accuracy_alone", "paper_accuracy"):
        assert results[0][name] == results[1][name]
    call("train", "--resume", "merged")  # there is nothing to train: it is tested
    assert Run.load(Path("merged")).result is not None


def test_a_run_of_all_units_and_of_no_head(train):
    train("a", "1-2", "--head", "none")
    train("b", "3", "--head", "none")
    record = json.loads(call("merge", "a", "b", "--out", "merged", "--json").stdout)
    assert record["units"] == [1, 2, 3] and record["missing"] == []
    whole = train("whole", None, "--head", "none")
    a, b = (checkpoint.load_content(Path(path))["tensors"] for path in ("merged", whole))
    assert a == b
    apart.merge([whole], "copy")
    assert checkpoint.load_content(Path("copy"))["tensors"] == b


def test_units_that_are_not_trained_yet(train):
    """Their run goes on after it was merged."""
    train("a", "1-2,head", "--lr-schedule", "constant")
    content, _ = checkpoint.load(train("b", "3", "--lr-schedule", "constant", "--epochs", 1))
    model, tensors = checkpoint.load(Path("b"))
    model["training"]["settings"]["epochs"] = 2
    model["training"]["shares"][0]["epochs"] = 2
    checkpoint.save(Path("b"), model, tensors, format=3)
    text = call("merge", "a", "b", "--out", "merged").stderr
    assert "block 3: 1 of 2 epochs; noprop train --resume merged goes on" in text
    assert checkpoint.load_content(Path("merged"))["format"] == 3
    shown = words(call("info", "merged").stdout)
    assert "block 3 1 of 2 epochs" in shown and "blocks 1-2 and the head 2 of 2 epochs" in shown
    call("train", "--resume", "merged")
    whole = train("whole")
    merged = checkpoint.load_content(Path("merged"))
    assert merged["tensors"] == checkpoint.load_content(whole)["tensors"]
    assert merged["format"] == 1 and merged["training"]["result"] is not None


REFUSED = {
    "seed": (["--seed", 1], "seed is 0 and 1"),
    "noise": (["--eta", 0.2], "the weight of the loss is 0.1 and 0.2"),
    "plan": (["--hidden", 9], "the plan, in its hidden width is 8 and 9"),
    "rate": (["--lr", 0.1], "the learning rate is 0.002 and 0.1"),
    "schedule": (["--lr-schedule", "cosine"], "the schedule of the learning rate is constant and"),
    "batch": (["--batch-size", 16], "batch size is 32 and 16"),
    "optimizer": (["--optimizer", "adam", "--weight-decay", 1.0], "optimizer is adamw and adam"),
    "decay": (["--weight-decay", 0.1], "weight decay is 1.0 and 0.1"),
    "early": (["--early-weight-decay", 2.0], "early weight decay is None and 2.0"),
    "precision": (["--precision", "bfloat16"], "precision is float32 and bfloat16"),
    "epochs": (["--epochs", 3], "epochs is 2 and 3"),
    "held out": (["--val-fraction", 0.5, "--weight-decay", 1.0], "val fraction is 0.0 and 0.5"),
    "head": (["--head", "none"], "head is paper and none"),
}


def test_runs_that_do_not_belong_together(train, toy_file):
    train("a", "1-2,head", "--weight-decay", 1.0)
    for name, (options, says) in REFUSED.items():
        decay = [] if "--weight-decay" in options else ["--weight-decay", 1.0]
        train(name, "3", *options, *decay)
        text = call("merge", "a", name, "--out", "merged", code=1).stderr
        assert f"a and {name} do not belong together: {says}" in text, text
    train("T", "4", "--weight-decay", 1.0, "--T", 4)
    text = call("merge", "a", "T", "--out", "merged", code=1).stderr
    assert "do not belong together: the number of blocks is 3 and 4" in text
    assert not Path("merged").exists()


FACTS = {
    "data": (
        lambda record: record["training"].update(data_sha256="0" * 64),
        "their data are others",
    ),
    "normalisation": (
        lambda record: record["model"]["normalisation"].update(mean=[0.5]),
        "their normalisations are not the same",
    ),
    "noise": (
        lambda record: record["model"]["goal"]["alpha_bar"].__setitem__(1, 0.2),
        "the schedules of their noise are not the same",
    ),
    "classes": (
        lambda record: record["model"].update(class_names=["a", "b", "c"]),
        "their classes are not the same",
    ),
    "optimizer": (
        lambda record: record["model"]["optimizers"]["blocks"].update(eps=1e-7),
        "the optimizers of their blocks are not the same",
    ),
}


@pytest.mark.parametrize(("change", "says"), FACTS.values(), ids=FACTS)
def test_facts_that_settings_do_not_tell(train, change, says):
    train("a", "1-2,head")
    content, tensors = checkpoint.load(train("b", "3"))
    change(content)
    checkpoint.save(Path("b"), content, tensors, format=3)
    with pytest.raises(InputError, match=f"a and b do not belong together: {says}"):
        apart.merge(["a", "b"], "merged")
    assert not Path("merged").exists()


def test_each_unit_has_one_owner(train):
    a, b, c = train("a", "1-2,head"), train("b", "2-3,head"), train("c", "3")
    with pytest.raises(InputError, match="block 2 must be in one run, a and b have it"):
        apart.merge([a, b], "merged")
    with pytest.raises(InputError, match="a run must have block 3, none has"):
        apart.merge([a], "merged")
    with pytest.raises(InputError, match="a run must have blocks 1-2 and the head, none has"):
        apart.merge([c], "merged")
    with pytest.raises(InputError, match="runs must be at least one"):
        apart.merge([], "merged")
    d = train("d", "3,head")  # the same head, trained twice
    assert apart.merge([a, d], "merged").model.units == Units.parse("1-3,head")
    content, tensors = checkpoint.load(d)
    tensors["head.logits.bias"] += 1e-3
    checkpoint.save(d, content, tensors, format=3)
    with pytest.raises(InputError, match="the head must be one, those of a and d differ"):
        apart.merge([a, d], "other")
    with pytest.raises(InputError, match="merged is not an empty folder"):
        apart.merge([a, c], "merged")
    train("none", "1-3")
    with pytest.raises(InputError, match="a run must have the head, none has"):
        apart.merge(["none"], "other")
    assert not Path("other").exists()


def test_runs_without_units(toy_file, train):
    call("train", "--data", toy_file, *QUICK, "--epochs", 1, "--seeds", "0,1", "--out", "seeds")
    text = call("merge", "seeds", "--out", "merged", code=1).stderr
    assert "seeds has no units of its own: several seeds are trained at once" in text


def test_other_versions_are_recorded_for_each_block_and_told(train):
    train("a", "1-2,head")
    content, tensors = checkpoint.load(train("b", "3"))
    content["training"]["shares"][0]["versions"]["instruction_set"] = "another"
    checkpoint.save(Path("b"), content, tensors, format=3)
    shutil.copytree("b", "c")
    text = call("merge", "a", "b", "--out", "merged").stderr
    own = content["versions"]["instruction_set"]
    assert (
        f"block 3, against blocks 1-2 and the head: instruction_set was {own}, is another" in text
    )
    shares = checkpoint.load_content(Path("merged"))["training"]["shares"]
    assert [share["versions"]["instruction_set"] for share in shares] == [own, "another"]
    assert "instruction_set another" in words(call("info", "merged").stdout)
    text = call("train", "--resume", "merged").stderr
    assert "warning: of block 3 instruction_set was another" in text
