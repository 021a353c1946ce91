"""The command line: results, runs that go on, and what it says of itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import (
    augmentation,
    checkpoint,
    data,
    defaults,
    devices,
    metrics,
    training,
    variants,
)
from noprop.cli import options
from noprop_kernels.backends import dispatch
from support.cli import QUICK, call, tensors_of, tree

pytestmark = pytest.mark.usefixtures("alone")


def environment() -> dict[str, str]:
    """Of a process that finds the library where this one does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_digits_are_learned_in_a_few_epochs():
    result = call(
        *("train", "--hidden", 64, "--batch-size", 32, "--epochs", 10, "--json"),
        *("--val-fraction", 0.1),
    )
    outcome = json.loads(result.stdout)
    assert outcome["test_accuracy"] > 0.9 and outcome["val_accuracy"] > 0.9
    assert outcome["accuracy_per_block"][0] > 0.9
    assert "after it in the chain" in result.stderr and "test accuracy:" in result.stderr
    assert outcome["run"] == "runs/digits-dt-mlp-1"
    assert Path(outcome["run"], checkpoint.RECORD).is_file()


SCHEMA = {
    **dict.fromkeys(["test_accuracy", "accuracy_last_block"], float),
    **dict.fromkeys(["accuracy_per_block", "accuracy_alone"], list),
    **dict.fromkeys(["paper_accuracy", "paper_accuracy_std", "paper_accuracy_last_block"], float),
    **dict.fromkeys(["train_seconds", "eval_seconds", "samples_per_second"], float),
    **dict.fromkeys(["lr", "weight_decay", "eta", "val_fraction"], float),
    **dict.fromkeys(["parameters", "parameters_per_block", "epochs", "seed", "T", "hidden"], int),
    **dict.fromkeys(["batch_size", "samples", "rows", "train_rows", "threads"], int),
    **dict.fromkeys(["block_updates", "head_updates"], int),
    **dict.fromkeys(["backend", "run", "data", "variant", "preset", "embedding"], str),
    **dict.fromkeys(["precision", "head", "augment", "optimizer"], str),
    **dict.fromkeys(["noprop", "torch", "python", "machine", "device"], str),
}
NOT_OF_DT = {"weight", "gamma_0", "gamma_1", "stratified", "sigma", "sampler", "steps"}
NOT_OF_DT |= {"schedule", "gamma_hidden", "order", "head_sigma"}
NOT_OF_DT |= {"embed_dim", "embed_init", "embed_scale", "detach_target"}
NOT_OF_DT |= {"accuracy_by_steps", "accuracy_by_steps_with_noise", "accuracy_by_t"}


def test_the_json_line(toy_file, tmp_path):
    options = (*QUICK, "--epochs", 2, "--seed", 3, "--head", "paper", "--json")
    result = call("train", "--data", toy_file, *options)
    assert result.stdout.count("\n") == 1
    outcome = json.loads(result.stdout)
    assert {name: type(outcome[name]) for name in SCHEMA} == SCHEMA
    others = {"instruction_set", "compiler", "lr_schedule", "triton", "label", "labels"}
    others |= NOT_OF_DT | {"seeds", "early_weight_decay"}
    assert all(outcome[name] is None for name in (*NOT_OF_DT, "seeds"))
    assert set(outcome) - set(SCHEMA) == others
    for name in ("accuracy_per_block", "accuracy_alone"):
        assert len(outcome[name]) == 3 and all(0 <= value <= 1 for value in outcome[name])
    block = 8 * 6 + 8 + 8 * 3 + 8 + 8 * 16 + 8 + 3 * 8 + 3
    assert outcome["parameters_per_block"] == block
    assert outcome["parameters"] == 3 * block + 3 * 3 + 3
    assert (outcome["block_updates"], outcome["head_updates"]) == (2 * 5, 3 * 2 * 5)
    assert (outcome["train_rows"], outcome["rows"], outcome["seed"]) == (130, 60, 3)
    speed = 2 * 130 / outcome["train_seconds"]
    assert outcome["samples_per_second"] == pytest.approx(speed)
    assert outcome["data"] == str(toy_file)
    assert {line["epoch"] for line in metrics.read(Path(outcome["run"]))} == {1, 2}


def test_a_run_keeps_its_precision(toy_file, tmp_path):
    names = ("float32", "bfloat16")
    for name in names:
        options = (*QUICK, "--epochs", 1, "--out", name, "--precision", name, "--json")
        outcome = json.loads(call("train", "--data", toy_file, *options).stdout)
        assert outcome["precision"] == name
        assert noprop.load(name).blocks.precision == name
        resumed = call("train", "--resume", name, "--epochs", 1, "--json")
        assert json.loads(resumed.stdout)["precision"] == name
    weights = [noprop.load(name).blocks.state_dict()["hx.weight"] for name in names]
    assert not torch.equal(*weights)


def test_dry_run_writes_nothing(toy_file, tmp_path):
    before = tree(tmp_path)
    result = call("train", "--data", toy_file, *QUICK, "--dry-run", "--out", "run", "--json")
    assert tree(tmp_path) == before
    outcome = json.loads(result.stdout)
    parameters = outcome["parameters"]
    assert outcome["bytes"]["weights"] == 4 * parameters
    assert outcome["bytes"]["moments"] == 8 * parameters
    assert outcome["bytes"]["gradients"] == 0
    assert outcome["bytes"]["activations"] == 4 * 32 * (8 + 8 + 8 + 3) * outcome["workers"]
    for text in ("3 blocks of 251 parameters", "gradients", "DenoisingBlocks on cpu", "chosen"):
        assert text in result.stderr


def test_eval_and_info_change_nothing(run, tmp_path):
    before = tree(tmp_path)
    saved = checkpoint.load_content(run)["training"]["result"]
    outcome = json.loads(call("eval", run, "--json").stdout)
    for name in ("test_accuracy", "accuracy_per_block", "accuracy_alone"):
        assert outcome[name] == saved[name]
    assert json.loads(call("eval", run, "--samples", 2, "--json").stdout)["samples"] == 2
    text = call("info", run).stdout
    for part in ("mlp", "schedule", "epochs done", "test accuracy"):
        assert part in text
    assert json.loads(call("info", run, "--json").stdout)["training"]["progress"]["epoch"] == 2
    assert tree(tmp_path) == before


def test_a_longer_run_is_the_shorter_one_gone_on_with(run, toy_file):
    metrics.append(run, {"epoch": 3})  # of epochs that a killed process had not saved
    call("train", "--resume", run, "--epochs", 5, "--hidden", 8)
    call("train", "--data", toy_file, *QUICK, "--epochs", 5, "--out", "straight")
    assert tensors_of(run) == tensors_of(Path("straight"))
    assert [line["epoch"] for line in metrics.read(run)] == [1, 2, 3, 4, 5]


def test_a_cosine_fixes_the_epochs(toy_file):
    """Learning rates fall to 0 over all epochs, so that the last one hardly moves a weight."""
    args = [*QUICK[:-2], "--epochs", 3, "--out"]
    call("train", "--data", toy_file, *args, "cosine", "--lr-schedule", "cosine")
    call("train", "--data", toy_file, *args, "default")
    assert tensors_of(Path("cosine")) == tensors_of(Path("default"))
    refused = call("train", "--resume", "cosine", "--epochs", 5, code=2)
    assert "begun with 3 epochs and a cosine learning rate" in " ".join(refused.stderr.split())


def test_threads_and_calls_change_no_bit(run, toy_file):
    again = ["train", "--data", toy_file, *QUICK, "--epochs", 2, "--threads", 2, "--out", "again"]
    call(*again)
    assert tensors_of(run) == tensors_of(Path("again"))


def test_another_build_is_told(run):
    content, tensors = checkpoint.load(run)
    content["versions"]["instruction_set"] = "neon"
    checkpoint.save(run, content, tensors)
    assert "instruction_set was neon, is" in call("train", "--resume", run, "--epochs", 3).stderr


def test_epochs_by_default_are_what_the_rows_need(toy_file):
    options = (*QUICK, "--val-fraction", 0.1, "--dry-run", "--json")
    outcome = json.loads(call("train", "--data", toy_file, *options).stdout)
    assert outcome["epochs"] == defaults.default_epochs(117, 32)


def test_info_without_a_run_is_this_machine():
    text = call("info").stdout
    for part in ("CPU kernels:", "backends on cpu:", "cpu: runs here"):
        assert part in text
    assert "CPU kernels:" in json.loads(call("info", "--json").stdout)["lines"]


def test_version_and_help():
    assert call("--version").stdout.startswith("noprop ")
    text = call("train", "--help").stdout
    for option in ("--data-dir", "--val-fraction", "--resume", "--dry-run", "--json", "--T"):
        assert option in text
    for command in ("train", "eval", "predict"):
        assert "cpu, triton, cuda, reference" in " ".join(call(command, "--help").stdout.split())


def test_the_names_in_the_help_are_those_that_there_are():
    assert options.DATA == data.NAMES
    assert options.LR_SCHEDULES == training.LR_SCHEDULES
    assert options.AUGMENTATIONS == augmentation.NAMES
    assert options.NONFINITE == training.NONFINITE
    assert options.DEVICES == devices.NAMES
    assert options.BACKENDS == tuple(dispatch.BACKENDS)
    assert options.VARIANTS == tuple(variants.VARIANTS)
    assert options.OPTIMIZERS == tuple(variants.OPTIMIZERS)
    assert options.SAMPLERS == nk.CT().samplers


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_torch(option):
    code = (
        "import sys; sys.modules['torch'] = None; from noprop.cli import app; app()"
        if option == "--help"
        else "import sys; from importlib import metadata; metadata.version = lambda name: '1';"
        "sys.modules['torch'] = None; from noprop.cli import app; app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, option], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
