"""The command line has one clear error for each mistake, and changes nothing then."""

from dataclasses import fields

import numpy as np
import pytest

from noprop import settings
from support.cli import call, tree

pytestmark = pytest.mark.usefixtures("alone")

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
