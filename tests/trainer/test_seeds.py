"""noprop train --seeds: several models at once, each the run of its seed; figures over them."""

import json
import math
import signal
from pathlib import Path

import pytest
import torch

import noprop
from noprop import checkpoint, evaluation, metrics, runs, seeds
from noprop.errors import InputError
from noprop.runs import progress_from_json
from noprop.settings import Settings
from support.cli import QUICK, call, tensors_of, words

pytestmark = pytest.mark.usefixtures("alone")
SMALL = ("--hidden", 8, "--batch-size", 32, "--lr-schedule", "constant")
KINDS = {
    "dt": (*QUICK, "--head", "paper"),
    "ct": ("--variant", "ct", "--head", "paper", *SMALL),
    "radial": (*QUICK, "--head", "radial", "--head-sigma", 0.4),
    "fm": ("--variant", "fm", *SMALL),
}
LIST = (0, 3, 7)


@pytest.fixture
def few_steps(monkeypatch):
    """Fewer steps of an evaluation."""
    monkeypatch.setattr(evaluation, "STEPS", (1, 2, 10))
    monkeypatch.setattr(evaluation, "NOISY_STEPS", (10,))
    monkeypatch.setattr(evaluation, "STEPS_ON_THE_WAY", 10)


@pytest.fixture
def several(toy_file, tmp_path):
    """A finished run of three seeds, of two epochs."""
    command = ("--data", toy_file, *KINDS["dt"], "--epochs", 2, "--seeds", "0,3,7")
    call("train", *command, "--out", tmp_path / "several")
    return tmp_path / "several"


# lists and figures


def test_lists_of_seeds():
    assert seeds.parse("0-2") == (0, 1, 2)
    assert seeds.parse("0,3,7") == LIST
    assert seeds.parse("5, 1-2") == (5, 1, 2)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("4", r"2 to 1,000 different ones \(one is --seed\), got 4"),
        ("1,2,1", "different ones"),
        ("2-0", "different ones"),
        ("0-99999999999", "got 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and more"),
        ("a-b", "must be like 0-2 or 0,3,7, got 'a-b' in it"),
        ("1,,2", "got '' in it"),
        ("-1,2", "got '-1' in it"),
        ("1-2-3", "got '1-2-3' in it"),
        ("1,²", "got '²' in it"),
        (f"1,{2**63}", r"must be in 0\.\.2\^63 - 1"),
    ],
)
def test_what_is_no_list(text, reason):
    with pytest.raises(ValueError, match=reason):
        seeds.parse(text)


RECORDS = [
    {
        "test_accuracy": accuracy,
        "accuracy_per_block": [accuracy / 2, accuracy],
        "accuracy_by_steps": {"1": 0.5, "2": accuracy},
        "accuracy_alone": None,
        "paper_accuracy": accuracy - 0.1,
        "paper_accuracy_std": std,
        "samples": 5,
    }
    for accuracy, std in ((0.8, 0.03), (0.9, 0.04))
]


def test_the_deviations_over_seeds_and_over_draws_are_apart():
    made, sd = seeds.summary([4, 9], RECORDS), math.sqrt(0.005)
    assert made["test_accuracy"] == pytest.approx(0.85)
    assert made["accuracy_per_block"] == pytest.approx([0.425, 0.85])
    assert made["accuracy_by_steps"] == pytest.approx({"1": 0.5, "2": 0.85})
    assert made["accuracy_alone"] is None and made["samples"] == 5
    over = made["std_over_seeds"]
    assert over["test_accuracy"] == over["paper_accuracy"] == pytest.approx(sd)
    assert over["accuracy_per_block"] == pytest.approx([sd / 2, sd])
    assert over["accuracy_by_steps"] == pytest.approx({"1": 0, "2": sd})
    assert over["accuracy_alone"] is None and "paper_accuracy_std" not in over
    assert made["paper_accuracy_std"] == pytest.approx(math.sqrt((0.03**2 + 0.04**2) / 2))
    assert made["by_seed"] == [{"seed": 4} | RECORDS[0], {"seed": 9} | RECORDS[1]]
    none = [record | {"paper_accuracy_std": None} for record in RECORDS]
    assert seeds.summary([4, 9], none)["paper_accuracy_std"] is None


# runs


@pytest.mark.parametrize("kind", KINDS)
def test_each_model_is_the_run_of_its_seed(kind, toy_file, few_steps):
    """In every bit, and in every figure; with the same rows held out."""
    command = ("train", "--data", toy_file, *KINDS[kind], "--epochs", 2, "--val-fraction", 0.3)
    both = json.loads(call(*command, "--seeds", "0,3,7", "--out", "several", "--json").stdout)
    lines = metrics.read(Path("several"))
    assert (both["seed"], both["seeds"]) == (None, [0, 3, 7])
    assert [(line["epoch"], line["seed"]) for line in lines] == [
        (epoch, seed) for epoch in (1, 2) for seed in LIST
    ]
    found = []
    for replica, seed in enumerate(LIST):
        folder = f"alone{seed}"
        alone = json.loads(call(*command, "--seed", seed, "--out", folder, "--json").stdout)
        call("split", "several", "--replica", replica, "--out", f"split{seed}")
        assert tensors_of(f"split{seed}") == tensors_of(folder)
        record = both["by_seed"][replica]
        assert record.pop("seed") == seed
        assert record == {name: alone[name] for name in record} and "val_accuracy" in record
        of_split, own = metrics.read(Path(f"split{seed}")), metrics.read(Path(folder))
        for one, other in zip(of_split, own, strict=True):
            assert one.keys() == other.keys()
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
            assert one["val_accuracy"] == other["val_accuracy"]
        for name in ("parameters", "train_rows", "batch_size"):
            assert both[name] == alone[name]
        found.append(alone["test_accuracy"])
    assert both["test_accuracy"] == pytest.approx(sum(found) / 3)
    spread = torch.tensor(found, dtype=torch.float64).std().item()
    assert both["std_over_seeds"]["test_accuracy"] == pytest.approx(spread)


def test_so_it_is_of_augmented_images(image_file):
    paper = ("--data", image_file, "--preset", "paper", "--T", 1, "--batch-size", 32)
    command = ("train", *paper, "--epochs", 2, "--augment", "crop-flip")
    call(*command, "--seeds", "4-5", "--out", "several")
    call("split", "several", "--replica", 1, "--out", "split")
    call(*command, "--seed", 5, "--out", "alone")
    assert tensors_of("split") == tensors_of("alone")


def test_a_run_of_several_seeds_goes_on_bit_for_bit(several, toy_file):
    command = ("--data", toy_file, *KINDS["dt"], "--epochs", 4)
    call("split", several, "--replica", 2, "--out", "split")
    call("train", "--resume", "split", "--epochs", 4, "--seed", 7)
    call("train", *command, "--seed", 7, "--out", "alone")
    assert tensors_of("split") == tensors_of("alone")
    call("train", "--resume", several, "--epochs", 4, "--seeds", "0,3,7")
    call("train", *command, "--seeds", "0,3,7", "--out", "straight")
    assert tensors_of(several) == tensors_of("straight")
    assert len(metrics.read(several)) == 12
    for other in (("--seeds", "0-2"), ("--seed", 3)):
        text = words(call("train", "--resume", several, *other, code=2).stderr)
        assert "and a run that goes on cannot change it" in text


def test_a_run_split_within_an_epoch_goes_on_as_alone(toy_file, monkeypatch):
    """With the losses of the steps before."""
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    advance = runs.fit

    def interrupted(*args, on_call, **options):
        def watch(progress, samples):
            on_call(progress, samples)
            if progress.head_steps == 3:
                signal.raise_signal(signal.SIGTERM)

        return advance(*args, on_call=watch, **options)

    monkeypatch.setattr(runs, "fit", interrupted)
    command = ("train", "--data", toy_file, *KINDS["dt"], "--epochs", 1)
    call(*command, "--seeds", "0,3,7", "--out", "several", code=143)
    monkeypatch.setattr(runs, "fit", advance)
    call("split", "several", "--replica", 1, "--out", "split")
    progress = checkpoint.load_content(Path("split"))["training"]["progress"]
    lengths = {name: len(it) for name, it in progress.items() if isinstance(it, list)}
    of_blocks, of_head = ("loss_sum", "skipped"), ("head_loss_sum", "head_skipped")
    assert lengths == {**dict.fromkeys(of_blocks, 3), **dict.fromkeys(of_head, 1), "seen": 0}
    call("train", "--resume", "split")
    call(*command, "--seed", 3, "--out", "alone")
    assert tensors_of("split") == tensors_of("alone")
    (mine,), (its,) = metrics.read(Path("split")), metrics.read(Path("alone"))
    for name in ("loss", "head_loss"):
        assert mine[name] == pytest.approx(its[name], rel=1e-12)
    assert mine["skipped"] == its["skipped"] and len(mine["loss"]) == 3


def test_it_is_shown(several):
    shown = words(call("eval", several).stdout)
    result = checkpoint.load_content(several)["training"]["result"]
    mean, over = result["test_accuracy"], result["std_over_seeds"]
    assert f"test accuracy: {mean:.2%} +- {over['test_accuracy']:.2%} over 3 seeds" in shown
    paper, draws = result["paper_accuracy"], result["paper_accuracy_std"]
    assert (
        f"the paper's protocol: {paper:.2%} +- {over['paper_accuracy']:.2%} over 3 seeds, "
        f"+- {draws:.2%} over draws (noise in every step" in shown
    )
    assert "the blocks, the mean of 3 seeds" in shown and "parameters of each seed" in shown
    for record in result["by_seed"]:
        texts = (f"{record[name]:.2%}" for name in ("test_accuracy", "paper_accuracy"))
        assert f"│ {record['seed']} │ {' │ '.join(texts)} +- " in " ".join(
            call("eval", several).stdout.split()
        )
    again = json.loads(call("eval", several, "--json").stdout)
    for name in ("by_seed", "std_over_seeds", "test_accuracy"):
        assert again[name] == result[name]
    text = words(call("info", several).stdout)
    assert "seeds 0, 3, 7" in text and f"test accuracy {mean:.2%} +- " in text


def test_epochs_are_shown_by_their_mean(toy_file):
    out = call("train", "--data", toy_file, *QUICK, "--epochs", 1, "--seeds", "0,1").stdout
    record = metrics.read(Path("runs/toy-dt-mlp-1"))
    mean = sum(line["train_accuracy"] for line in record) / 2
    error = sum(sum(line["error"]) / 3 for line in record) / 2
    assert f"error {error:.4f}  train accuracy {mean:.2%} +- " in out and " over 2 seeds" in out
    assert out.count("epoch 1/1") == 1


def test_one_model_of_several_is_asked(several):
    x = "\n".join(["40,120,40,40,40,40", "120,40,40,40,40,40"])
    Path("rows.csv").write_text(x)
    for replica, seed in enumerate(LIST):
        call("split", several, "--replica", replica, "--out", f"split{seed}")
        asked = call("predict", several, "rows.csv", "--replica", replica).stdout
        assert asked == call("predict", f"split{seed}", "rows.csv").stdout
    call("export", several, "--replica", 1, "--torch", "one.pt2")
    rows = torch.tensor([[40, 120, 40, 40, 40, 40], [120, 40, 40, 40, 40, 40]], dtype=torch.uint8)
    probs = torch.export.load("one.pt2").module()(rows)[1]
    torch.testing.assert_close(probs, noprop.load("split3").predict(rows).probs)
    assert noprop.load(several).seeds == list(LIST)


def test_a_split_run_has_its_result(several):
    call("split", several, "--replica", 1, "--out", "split")
    result = checkpoint.load_content(Path("split"))["training"]["result"]
    again = json.loads(call("eval", "split", "--json").stdout)
    times = {"train_seconds", "eval_seconds", "samples_per_second"}
    assert result.keys() == again.keys() and result["seed"] == 3
    assert {name for name in result if result[name] != again[name]} <= times
    assert checkpoint.load_content(Path("split"))["format"] == 1


def test_which_one_must_be_said(several):
    Path("rows.csv").write_text("40,120,40,40,40,40")
    commands = (("predict", several, "rows.csv"), ("export", several, "--onnx", "x"))
    for command in (*commands, ("split", several, "--out", "split")):
        for given in ((), ("--replica", 3)):
            text = words(call(*command, *given, code=2).stderr)
            assert "has the models 0..2, of the seeds 0, 3, 7: name one" in text
    assert not Path("split").exists()
    call("split", several, "--replica", 0, "--out", "split")
    text = words(call("split", several, "--replica", 1, "--out", "split", code=2).stderr)
    assert "split is not an empty folder" in text
    text = words(call("split", "split", "--out", "again", code=2).stderr)
    assert "split has one model, of seed 0" in text
    assert call("predict", "split", "rows.csv", "--replica", 0).stdout.startswith("label,")


def test_models_whose_losses_are_not_finite(toy_file):
    arguments = ("train", "--data", toy_file, *QUICK, "--epochs", 2, "--lr", 1e30)
    text = call(*arguments, "--seeds", "0,3", "--out", "run").stderr
    for replica, seed in enumerate((0, 3)):
        assert text.count(f"of replica {replica}, seed {seed}, is") == 1
    assert text.count("all replicas go on") == 2 and "NaN" not in Path("run/model.json").read_text()
    text = call(*arguments, "--seeds", "0,3", "--on-nonfinite", "stop", code=1).stderr
    assert text.count("noprop: error:") == 1 and "--on-nonfinite skip" in text


def test_memory_for_all_that_is_not_there_is_one_line(toy_file):
    command = ("train", "--data", toy_file, "--hidden", 10**7, "--seeds", "0-2")
    assert "noprop: error: no memory for 30 blocks of" in call(*command, code=1).stderr


def test_the_sizes_of_several(toy_file):
    command = ("train", "--data", toy_file, *KINDS["dt"], "--dry-run", "--json")
    one = json.loads(call(*command).stdout)
    told = call(*command, "--seeds", "0-2")
    three = json.loads(told.stdout)
    assert three["parameters"] == one["parameters"]
    for name in ("weights", "moments"):
        assert three["bytes"][name] == 3 * one["bytes"][name]
    assert f"3 models of 3 blocks of {one['parameters_per_block']:,} parameters" in told.stderr
    assert f"{3 * one['parameters']:,} in all, the head too" in told.stderr


USAGE = [
    (("--seeds", "0-2", "--seed", "1"), "--seeds has all seeds: leave --seed away"),
    (("--seeds", "5"), "--seeds: seeds must be 2 to 1,000 different ones (one is --seed), got 5"),
    (("--seeds", "x"), "--seeds: 'x' must be like 0-2 or 0,3,7"),
    (
        ("--seeds", "0-2", "--embedding", "learned", "--preset", "paper", "--dry-run"),
        "--seeds: embeddings that are learned learn from the blocks of one model",
    ),
    (
        ("--seeds", "0-2", "--variant", "ct", "--schedule", "learned"),
        "--seeds: a schedule that is learned takes each step on one batch",
    ),
]


@pytest.mark.parametrize("given, text", USAGE)
def test_what_does_not_fit_is_refused(given, text, toy_file):
    assert text in words(call("train", "--data", toy_file, *given, code=2).stderr)
    assert not Path("runs").exists()


# records


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"seeds": None}, {"seeds": [1]}, {"seeds": [1, 1]}, {"seeds": [1, "2"]},
     {"seeds": [1, True]}, {"seeds": "0-2"}],
)  # fmt: skip
def test_settings_of_other_seeds_are_refused(change, several):
    record = checkpoint.load_content(several)["training"]["settings"]
    assert Settings.from_json(record).each_seed == list(LIST)
    with pytest.raises(InputError, match="the run's (seed|seeds) "):
        Settings.from_json(record | change)


def test_the_head_of_an_early_run_counted_as_one():
    early = {"head_loss_sum": 1.5, "head_skipped": 2, "loss_sum": [1.0], "skipped": [0]}
    progress = progress_from_json(early)
    assert (progress.head_loss_sum, progress.head_skipped) == ([1.5], [2])
    with pytest.raises(InputError, match="must count from 0 on, got head_skipped"):
        progress_from_json(early | {"head_skipped": -1})
