"""The command line: results, one clear error for each mistake, and runs that stop and go on."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
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
    settings,
    training,
    variants,
)
from noprop.cli import options
from noprop_kernels.backends import dispatch
from support.cli import QUICK, call


def environment() -> dict[str, str]:
    """Of a process that finds the library where this one does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture(autouse=True)
def work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # messages in one line
    monkeypatch.delenv("NOPROP_DATA", raising=False)
    # auto is the CPU, in this process and those that it starts
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(toy_file, tmp_path):
    """A finished run of two epochs."""
    call("train", "--data", toy_file, *QUICK, "--epochs", 2, "--out", tmp_path / "run")
    return tmp_path / "run"


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


def tensors_of(folder: Path) -> str:
    return checkpoint.load_content(folder)["tensors"]["sha256"]


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


USAGE = [
    (["--frobnicate"], "No such option"),
    (["--variant", "rl"], "'rl' is not available, there is: dt, ct, fm"),
    (["--variant", "ct", "--T", "3"], "--T: only variant dt has it, not ct"),
    (["--variant", "fm", "--eta", "1"], "--eta: only variant dt and ct has it, not fm"),
    (["--variant", "fm", "--weight", "snr"], "--weight: only variant ct has it, not fm"),
    (["--variant", "fm", "--gamma-0", "1"], "--gamma-0: only variant ct has it, not fm"),
    (["--gamma-1", "1"], "--gamma-1: only variant ct has it, not dt"),
    (["--stratified"], "--stratified: only variant ct and fm has it, not dt"),
    (["--variant", "ct", "--sigma", "1"], "--sigma: only variant fm has it, not ct"),
    (["--sampler", "euler"], "--sampler: only variant ct and fm has it, not dt"),
    (["--steps", "5"], "--steps: only variant ct and fm has it, not dt"),
    (["--variant", "fm", "--head", "paper"], "are read by the nearest embedding: leave it none"),
    (["--variant", "ct", "--sampler", "dpm"], "'dpm' is not available, there is: ancestral, ddim"),
    (["--variant", "fm", "--sampler", "ddim"], "sampler must be one of ('euler', 'heun', 'rk4')"),
    (["--variant", "ct", "--steps", "65536"], "steps must be"),
    (["--variant", "ct", "--weight", "snr2"], "'snr2' is not available, there is: snr, uniform, m"),
    (["--variant", "ct", "--weight", "min-snr:k"], "'min-snr:k' is not available"),
    (["--variant", "ct", "--weight", "min-snr:0"], "weight's k must be above 0"),
    (["--variant", "ct", "--gamma-0", "7"], "gamma_1 must be above gamma_0, got 6.0 and 7.0"),
    (["--variant", "fm", "--sigma", "-1"], "sigma must be at least 0"),
    (["--optimizer", "sgd"], "'sgd' is not available, there is: adamw, adam"),
    (["--preset", "cnn"], "'cnn' is not available, there is: mlp, paper"),
    (["--preset", "paper"], "at least 14 x 14 pixels, got 8 x 8: use --preset mlp"),
    (["--preset", "paper", "--hidden", "9"], "--hidden: only preset mlp has it"),
    (["--embedding", "two"], "'two' is not available, there is: one-hot, learned, prototype"),
    (["--embed-dim", "9"], "--embed-dim: only embedding learned has it, not one-hot"),
    (["--embedding", "prototype", "--embed-dim", "9"], "embedding learned has it, not prototype"),
    (["--embedding", "prototype", "--embed-init", "normal"], "embedding learned has it, not proto"),
    (["--embed-scale", "2"], "--embed-scale: only embedding learned and prototype has it, not one"),
    (
        ["--detach-target"],
        "--detach-target: only embedding learned and prototype has it, not one",
    ),
    (["--order", "all-t"], "--order: only embedding learned and prototype has it, not one-hot"),
    (
        ["--variant", "ct", "--embedding", "learned", "--order", "all-t"],
        "variant dt has it, not ct",
    ),
    (
        ["--embedding", "learned", "--order", "t"],
        "'t' is not available, there is: paper, all-t, sa",
    ),
    (["--embedding", "learned", "--embed-init", "zero"], "there is: orthogonal, normal"),
    (["--embedding", "learned", "--embed-scale", "0"], "scale must be above 0"),
    (["--embedding", "learned", "--head", "none"], "learns from its loss: leave it softmax"),
    (
        ["--variant", "fm", "--embedding", "learned", "--head", "radial"],
        "is of logits: leave it sof",
    ),
    (["--schedule", "learned"], "--schedule: only variant ct has it, not dt"),
    (
        ["--variant", "ct", "--schedule", "cosine"],
        "'cosine' is not available, there is: linear",
    ),
    (
        ["--variant", "ct", "--gamma-hidden", "9"],
        "--gamma-hidden: only schedule learned has it, not",
    ),
    (["--gamma-hidden", "9"], "--gamma-hidden: only schedule learned has it"),
    (
        ["--head", "softmax", "--head-sigma", "1"],
        "--head-sigma: only head radial has it, not",
    ),
    (["--head", "radial", "--head-sigma", "0"], "sigma must be above 0"),
    (["--device", "tpu"], "'tpu' is not available, there is: auto, cpu, cuda, cuda:N"),
    (["--data", "imagenet"], "'imagenet' is not available, there is: digits"),
    (["--backend", "abacus"], "backend must be one of"),
    (["--augment", "noise"], "'noise' is not available, there is: none, crop-flip"),
    (["--hidden", "0"], "--hidden"),
    (["--T", "ten"], "--T"),
    (["--epochs", "0"], "--epochs"),
    (["--lr", "nan"], "--lr|lr"),
    (["--head", "two"], "'two' is not available, there is: none, paper, softmax, radial"),
    (["--on-nonfinite", "panic"], "'panic' is not available, there is: stop, skip"),
    (["--checkpoint-seconds", "-1"], "--checkpoint-seconds"),
    (["--eta", "0"], "eta must be above 0"),
    (["--val-fraction", "1"], "--val-fraction"),
    (["--seed", str(2**63)], "seed must be an int64"),
    (["--out", "full"], "full is not an empty folder"),
    (["--out", "full/file"], "full/file is not an empty folder"),
    (["--resume", "full", "--out", "other"], "leave --out away"),
]


@pytest.mark.parametrize("args, text", USAGE, ids=lambda value: " ".join(value)[:30])
def test_usage_errors(args, text, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    before = tree(tmp_path)
    result = call("train", *args, code=2)
    assert any(part in result.stderr for part in text.split("|")), result.stderr
    assert tree(tmp_path) == before


OTHER = [
    (["train", "--data", "mnist", "--data-dir", "nowhere"], "folder nowhere does not exist"),
    (["train", "--data", "none.npz"], "none.npz cannot be read"),
    (["train", "--data", "broken.npz"], "broken.npz cannot be read"),
    (["train", "--data", "mnist", "--data-dir", "data"], "train-images-idx3-ubyte"),
    (["train", "--backend", "cuda"], "\n  cuda: "),
    (["train", "--resume", "nowhere"], "nowhere/model.json: No such file"),
    (["train", "--resume", "broken"], "broken/model.json is corrupt"),
    (["eval", "nowhere"], "nowhere/model.json: No such file"),
    (["eval", "broken"], "broken/model.json is corrupt"),
    (["info", "broken"], "broken/model.json is corrupt"),
]


@pytest.mark.parametrize("args, text", OTHER, ids=lambda value: " ".join(value)[:40])
def test_other_errors(args, text, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.json").write_text('{"format": 1')
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(b"broken")
    before = tree(tmp_path)
    result = call(*args, code=1)
    assert result.stderr.count("noprop: error:") == 1 and text in result.stderr
    assert result.stdout == "" and tree(tmp_path) == before


OTHERWISE = {  # for every setting, what a run was not begun with
    **{"hidden": 9, "lr": 0.1, "T": 4, "batch_size": 16, "weight_decay": 0.5, "eta": 0.2},
    **{"seed": 7, "val_fraction": 0.1, "precision": "bfloat16", "lr_schedule": "cosine"},
    **{"head": "paper", "label": "y", "early_weight_decay": 0.25},
    **{"variant": "ct", "preset": "paper", "embedding": "learned"},
    "augment": "crop-flip",
    **{"optimizer": "adam", "weight": "uniform", "gamma_0": 1, "gamma_1": 2, "stratified": None},
    **{"sigma": 1, "sampler": "euler", "steps": 5, "schedule": "learned", "gamma_hidden": 5},
    **{"embed_dim": 7, "embed_init": "normal", "embed_scale": 2, "detach_target": None},
    **{"head_sigma": 2, "order": "all-t", "seeds": "0,1"},
}


@pytest.mark.parametrize("item", [item.name for item in fields(settings.Settings)])
def test_a_run_does_not_change_its_settings(run, tmp_path, item):
    if item in (*settings.MOVABLE, *settings.CHANGEABLE):
        return  # checked by content, or by tests of their own
    assert item in settings.FIXED
    before, option = tree(tmp_path), "--" + (item if item == "T" else item.replace("_", "-"))
    value = OTHERWISE[item]
    text = call("train", "--resume", run, option, *[value] * (value is not None), code=2).stderr
    assert option in text and "was begun with" in text
    assert tree(tmp_path) == before


def test_settings_that_may_change_are_few():
    assert set(settings.MOVABLE + settings.CHANGEABLE) == {"data", "labels", "epochs"}


def test_epochs_by_default_are_what_the_rows_need(toy_file):
    options = (*QUICK, "--val-fraction", 0.1, "--dry-run", "--json")
    outcome = json.loads(call("train", "--data", toy_file, *options).stdout)
    assert outcome["epochs"] == defaults.default_epochs(117, 32)


def test_other_data_are_refused(run, toy_file, tmp_path):
    arrays = dict(np.load(toy_file))
    arrays["x"][0, 0] ^= 1
    np.savez(toy_file, **arrays)
    before = tree(tmp_path)
    for command in (["train", "--resume", run, "--epochs", 9], ["eval", run]):
        assert "not those that" in call(*command, code=1).stderr
    assert tree(tmp_path) == before


def test_a_model_without_a_run_is_no_run(tmp_path, new_model):
    new_model().save(tmp_path / "model")
    assert "no run to go on with" in call("eval", "model", code=1).stderr
    assert "dt" in call("info", "model").stdout.lower()


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
