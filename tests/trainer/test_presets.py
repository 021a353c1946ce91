"""The presets of `noprop train`: the paper's network and settings, and what cannot be trained."""

import json

import pytest

from noprop import presets
from noprop.cli.options import EMBEDDINGS
from noprop_kernels import plans
from support.cli import call, words

pytestmark = pytest.mark.usefixtures("alone")
PAPER = ("--preset", "paper", "--T", 2, "--batch-size", 32)


def test_the_paper_s_network_and_protocol(image_file):
    options = (*PAPER, "--epochs", 6, "--json")
    outcome = json.loads(call("train", "--data", image_file, *options, "--out", "run").stdout)
    plan = plans.paper_dt((3, 16, 16), 3, 3)
    assert outcome["parameters_per_block"] == plan.num_parameters()
    table_4 = {"lr": 1e-3, "weight_decay": 1e-3, "eta": 0.1, "lr_schedule": "constant"}
    assert {name: outcome[name] for name in table_4} == table_4
    assert (outcome["head"], outcome["embedding"], outcome["T"]) == ("paper", "one-hot", 2)
    assert (outcome["batch_size"], outcome["block_updates"]) == (32, 12)
    assert outcome["test_accuracy"] > 0.9 and outcome["accuracy_per_block"][-1] > 0.9
    assert 0 <= outcome["paper_accuracy"] <= 1 and outcome["samples"] == 5


@pytest.mark.parametrize(
    "data, epochs", [("mnist", 100), ("fashion-mnist", 100), ("cifar10", 150), ("cifar100", 150)]
)
def test_table_4(data, epochs):
    assert presets.settings("paper", data) == {
        **{"batch_size": 128, "epochs": epochs, "lr": 1e-3, "weight_decay": 1e-3, "T": 10},
        **{"eta": 0.1, "lr_schedule": "constant", "head": "paper"},
    }
    assert presets.settings("mlp", data) == {}
    epochs = {"cifar10": 500, "cifar100": 1000}.get(data, 100)
    common = {"batch_size": 128, "epochs": epochs, "lr": 1e-3, "weight_decay": 1e-3}
    common |= {"lr_schedule": "constant", "optimizer": "adam"}
    assert presets.settings("paper", data, "ct") == common | {"eta": 1.0, "head": "paper"}
    assert presets.settings("paper", data, "fm") == common | {"head": "none"}
    assert presets.settings("mlp", data, "ct") == {}


def test_what_is_given_wins(image_file):
    given = {"epochs": 1, "lr": 0.5, "weight_decay": 0.25, "eta": 0.2, "head": "none", "T": 1}
    given |= {"lr_schedule": "cosine", "batch_size": 64}
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    options = [str(part).replace("_", "-") for part in options]
    out = call("train", "--data", image_file, "--preset", "paper", *options, "--json").stdout
    assert {name: json.loads(out)[name] for name in given} == given


def test_rows_that_are_no_images_are_refused(toy_file):
    text = words(call("train", "--data", toy_file, "--preset", "paper", code=2).stderr)
    assert "preset paper is for images of at least 14 x 14 pixels, got rows of 6 numbers" in text
    assert "use --preset mlp" in text


def test_the_least_image():
    plan = presets.plan_of("dt", "paper", "one-hot", (1, 14, 14), 3, 256)
    assert plan.shapes["c3"] == (128, 1, 1)
    for shape in ((1, 13, 14), (1, 14, 13)):
        with pytest.raises(ValueError, match="got 1[34] x 1[34]: use --preset mlp"):
            presets.plan_of("dt", "paper", "one-hot", shape, 3, 256)
        with pytest.raises(ValueError):
            plans.paper_dt(shape, 3, 3)


# table 5 of the paper, by variant and data: one-hot, learned (20 dimensions), prototype
TABLE_5 = {
    ("dt", "mnist"): (919_946, 922_506, 1_401_738),
    ("dt", "cifar10"): (1_215_434, 1_217_994, 1_992_714),
    ("dt", "cifar100"): (1_250_084, 1_229_604, 2_004_324),
    ("ct", "mnist"): (867_722, 870_282, 1_482_122),
    ("ct", "cifar10"): (1_163_210, 1_165_770, 2_073_098),
    ("ct", "cifar100"): (1_197_860, 1_177_380, 2_084_708),
}


TABLE_5 |= {("fm", data): sizes for (variant, data), sizes in TABLE_5.items() if variant == "ct"}


@pytest.mark.parametrize("variant, data", TABLE_5)
def test_table_5_without_data(variant, data, tmp_path):
    for embedding, parameters in zip(EMBEDDINGS, TABLE_5[variant, data], strict=True):
        network = ("--preset", "paper", "--variant", variant, "--embedding", embedding)
        network += ("--T", 1) if variant == "dt" else ()
        command = ("train", "--data", data, "--data-dir", "none", *network)
        told = call(*command, "--dry-run", "--json")
        outcome = json.loads(told.stdout)
        assert outcome["parameters_per_block"] == parameters
        assert f"{parameters:,} parameters" in told.stderr and "; not read" in told.stderr
        assert outcome["trainable"] is True and outcome["why_not"] is None
        assert outcome["epochs"] == presets.PAPER_EPOCHS[variant][data]
        assert outcome["backend"] == "cpu" and outcome["bytes"]["workspace"] > 0
    assert not [*tmp_path.iterdir()]


def test_a_size_without_convolutions_and_of_own_images(toy_file, image_file):
    command = ("train", "--data", toy_file, "--hidden", 8, "--dry-run", "--json")
    sizes = {"learned": plans.mlp(6, 20, 3, hidden=8), "prototype": plans.mlp(6, 6, 3, hidden=8)}
    for embedding, plan in sizes.items():
        outcome = json.loads(call(*command, "--embedding", embedding).stdout)
        assert outcome["parameters_per_block"] == plan.num_parameters()
        W, head = 3 * plan.widths["z"], 3 * plan.widths["z"] + 3
        assert outcome["parameters"] == 10 * plan.num_parameters() + W + head
        assert outcome["bytes"]["moments"] == 2 * 4 * outcome["parameters"]
    told = words(call(*command[:-1], "--embedding", "learned").stdout)
    assert "in all, the head and what all share and learn too" in told
    command = ("train", "--data", image_file, "--preset", "paper", "--dry-run", "--json")
    outcome = json.loads(call(*command, "--embedding", "prototype").stdout)
    plan = plans.paper_dt((3, 16, 16), 768, 3, z_image=True)
    assert outcome["parameters_per_block"] == plan.num_parameters()
