"""Runs on images: saved, resumed, tested, exported; and a run from before there were any."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import noprop
from noprop import checkpoint, json_records
from noprop_kernels import plans
from support.cli import call, tensors_of
from support.images import image_model, toy_images

pytestmark = pytest.mark.usefixtures("alone")
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)
EARLIER = Path(__file__).with_name("earlier_run")  # written before plans had convolutions


@pytest.fixture
def trained():
    model = image_model(T=1)
    noprop.fit(model, *toy_images(64, 0), epochs=4, batch_size=32)
    return model


def test_a_run_on_images_goes_on_bit_for_bit_and_is_tested_again(image_file, tmp_path):
    paper = ("--data", image_file, "--preset", "paper", "--T", 1, "--batch-size", 32)
    call("train", *paper, "--epochs", 1, "--out", "run")
    call("train", "--resume", "run", "--epochs", 2, "--preset", "paper")
    call("train", *paper, "--epochs", 2, "--out", "straight")
    assert tensors_of("run") == tensors_of("straight")
    saved = checkpoint.load_content(Path("run"))["training"]["result"]
    outcome = json.loads(call("eval", "run", "--json").stdout)
    for name in ("test_accuracy", "accuracy_per_block", "accuracy_alone", "paper_accuracy"):
        assert outcome[name] == saved[name]
    assert "dropout 0.2" in call("info", "run").stdout


def test_a_model_for_images_comes_back_whole(trained, tmp_path):
    trained.save(tmp_path)
    again, (x, _) = noprop.load(tmp_path), toy_images(30, 1)
    assert again.blocks.plan == trained.blocks.plan
    assert torch.equal(again.predict(x).scores, trained.predict(x).scores)
    states = again.tensors(), trained.tensors()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_every_layer_s_record_is_read():
    plan = plans.paper_dt((1, 14, 14), 196, 3, z_image=True)
    record = json.loads(json.dumps(json_records.plan_to_json(plan)))
    assert json_records.plan_from_json(record) == plan


def test_predictions_of_files_of_images(trained, tmp_path):
    x, _ = toy_images(30, 1)
    trained.save("model")
    np.savez("new.npz", x=x)
    lines = call("predict", "model", "new.npz").stdout.splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == trained.predict(x).names
    assert len({*trained.predict(x).names}) == 3


def test_images_without_this_library(trained, tmp_path):
    """As a module, by torch.export and in ONNX."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    x = torch.from_numpy(toy_images(30, 1)[0])
    want = trained.predict(x)
    module = trained.to_module()
    for given in (x, x.flatten(1), x[7:8]):
        labels, probs = module(given)
        close(probs, want.probs[7:8] if len(given) == 1 else want.probs)
    trained.save("model")
    call("export", "model", "--torch", "model.pt2")
    call("export", "model", "--onnx", "model.onnx")
    labels, probs = torch.export.load("model.pt2").module()(x.flatten(1))
    assert torch.equal(labels, want.labels)
    close(probs, want.probs)
    session = runtime.InferenceSession("model.onnx")
    labels, probs = session.run(None, {session.get_inputs()[0].name: x.flatten(1).numpy()})
    assert labels.tolist() == want.labels.tolist()
    close(torch.from_numpy(probs), want.probs)


PROBS = [[0.14634360, 0.83917868, 0.01447772], [0.19765837, 0.78331774, 0.01902385]]


def test_an_earlier_run_is_loaded_tested_and_gone_on_with(toy_file):
    shutil.copytree(EARLIER, "run")
    x = np.load(toy_file)["x_test"]
    model = noprop.load("run")
    close(model.predict(x[:2]).probs, torch.tensor(PROBS), atol=1e-4)
    outcome = json.loads(call("eval", "run", "--data", toy_file, "--json").stdout)
    assert outcome["test_accuracy"] == pytest.approx(59 / 60) and outcome["embedding"] == "one-hot"
    told = call("train", "--resume", "run", "--data", toy_file, "--epochs", 8, "--json")
    outcome = json.loads(told.stdout)
    assert (outcome["preset"], outcome["block_updates"]) == ("mlp", 8 * 5)
    assert outcome["test_accuracy"] > 0.9
