"""Runs of CT and FM: training, resuming, evaluation and the command line."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import Progress, checkpoint, epoch_reports, evaluation, metrics, progress
from noprop.epochs import Epoch
from noprop_kernels import plans
from support.cli import call, tensors_of, words

pytestmark = pytest.mark.usefixtures("alone")
VARIANTS = ("ct", "fm")
MNIST = os.environ.get("NOPROP_DATA")  # before the fixture `alone` takes it away
SMALL = ("--hidden", 16, "--batch-size", 32, "--lr-schedule", "constant")


@pytest.fixture
def few_steps(monkeypatch):
    """Fewer steps of an evaluation."""
    monkeypatch.setattr(evaluation, "STEPS", (1, 2, 10))
    monkeypatch.setattr(evaluation, "NOISY_STEPS", (10,))
    monkeypatch.setattr(evaluation, "STEPS_ON_THE_WAY", 10)


# fit


def test_a_stopped_training_goes_on_with_the_same_bits(
    toy, sampled, assert_same_state, monkeypatch
):
    """Within an epoch, of the blocks or of the head, and in calls of other sizes."""
    fit = partial(noprop.fit, x=toy[0], y=toy[1], batch_size=32, lr_schedule="cosine", epochs=3)
    new = partial(sampled, head=sampled.goal is nk.CT)
    straight = new()
    fit(straight)
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0)  # a step a call
    for calls in (3, 7, 12):
        model, done = new(), []
        stop = partial(lambda done, calls: len(done) >= calls, done, calls)
        at = fit(model, stop=stop, on_call=partial(lambda done, *_: done.append(1), done))
        assert at.epoch < 3 and at.block_steps > 0
        fit(model, progress=Progress(**at.to_json()))
        assert_same_state(straight, model)


def test_an_epoch_has_a_loss_and_no_error(toy, sampled):
    """Rows have weights of their own, which no mean takes back."""
    epochs = []
    noprop.fit(sampled(), *toy, epochs=2, batch_size=32, on_epoch=epochs.append)
    assert all(epoch.error == [None] and epoch.loss[0] > 0 for epoch in epochs)
    text = progress.summary(epochs[0], "train accuracy 90%")
    assert text.startswith(f"loss {epochs[0].loss[0]:.4f}  train accuracy")


def test_a_loss_that_is_not_finite_is_told_as_such():
    epoch = Epoch(1, [None], [None], None, 0.1, [32], 1.0, 1.0)
    assert progress.summary(epoch, "").startswith("error not finite")


@pytest.mark.parametrize("variant", VARIANTS)
def test_digits_are_learned_in_a_few_epochs(variant, few_steps):
    command = ("train", "--variant", variant, "--epochs", 20, "--json")
    outcome = json.loads(call(*command).stdout)
    assert outcome["test_accuracy"] > 0.95 and outcome["epochs"] == 20
    assert outcome["run"] == f"runs/digits-{variant}-mlp-1"


@pytest.mark.parametrize("variant", VARIANTS)
def test_mnist_is_learned_in_an_epoch(variant, few_steps):
    if MNIST is None or not Path(MNIST, "MNIST", "raw").is_dir():
        pytest.skip("NOPROP_DATA does not name a folder with MNIST/raw")
    command = ("train", "--data", "mnist", "--data-dir", MNIST, "--variant", variant)
    outcome = json.loads(call(*command, "--epochs", 1, "--hidden", 64, "--json").stdout)
    assert outcome["test_accuracy"] > 0.9


# evaluation


def test_figures_by_their_definitions(toy, sampled, few_steps):
    of_ct = sampled.goal is nk.CT
    noisy = "ancestral" if of_ct else "euler"
    x, y = toy
    model = sampled(head=of_ct, sampler=("heun", 3), paper_sampler=(noisy, 7))
    noprop.fit(model, x, y, epochs=1, batch_size=32)  # unsure yet, so that every draw counts
    outcome = noprop.evaluate(model, x, y, samples=4, seed=9)
    features, blocks = model.features(x), model.blocks

    def right(scores):
        return (scores.argmax(-1) == y).double().mean(-1)

    def chain(kind, steps, **options):
        return blocks.predict(features, sampler=kind, steps=steps, **options)

    draws = {"samples": 4, "seed": 9}
    assert outcome.test_accuracy == right(model.predict(x).scores).item()
    for steps, share in outcome.accuracy_by_steps.items():
        assert share == right(chain("heun", steps, noise=False).z[0, 0]).item()
    assert list(outcome.accuracy_by_steps) == [1, 2, 10]
    share = right(chain(noisy, 10, **draws).z[:, 0]).mean().item()
    assert outcome.accuracy_by_steps_with_noise == {10: pytest.approx(share)}
    way = chain("heun", 10, noise=False, keep="all").z[:, 0, 0]
    assert outcome.accuracy_by_t == right(way).tolist()  # one-hot: the largest of z_t
    last = chain(noisy, 7, **draws)
    papers = right(model.predict_paper(x, samples=4, seed=9))
    assert outcome.paper_accuracy == pytest.approx(papers.mean().item())
    assert outcome.paper_accuracy_std == pytest.approx(papers.std().item())
    if of_ct:
        assert outcome.paper_accuracy_last_block == right(last.logits[:, 0]).mean().item()
    else:
        assert outcome.paper_accuracy_last_block is None
    assert outcome.accuracy_per_block is outcome.accuracy_alone is None
    assert len({outcome.test_accuracy, *outcome.accuracy_by_t, outcome.paper_accuracy}) > 2
    assert outcome.to_json()["accuracy_by_steps"].keys() == {"1", "2", "10"}


def test_the_way_is_read_at_its_own_level(toy, sampled):
    """Of embeddings of unlike lengths: the likeliest class given z_t ~ q(z_t | y)."""
    W = torch.tensor([[4.0, 0.0], [0.3, 0.4], [0.0, -0.2]])
    model, t, z = sampled(W), 0.3, torch.tensor([[0.9, 0.1], [0.1, 0.1]])
    levels = model.goal.levels(torch.tensor(t, dtype=torch.float64))
    distance = torch.cdist(z, levels.signal * W).square()
    near = -distance / 2 + z.square().sum(1, keepdim=True) / 2
    torch.testing.assert_close(model.scores(z, t), near)
    assert not torch.allclose(model.scores(z, t), model.scores(z))


def test_without_a_head_a_ct_has_no_papers_figures(toy, few_steps):
    blocks = nk.DenoisingBlocks(plans.mlp(6, 3, 3, hidden=8, time=True), nk.CT())
    outcome = noprop.evaluate(noprop.Model(blocks), *toy, samples=2)
    assert outcome.paper_accuracy is outcome.paper_accuracy_std is None
    assert outcome.paper_accuracy_last_block is None


def test_batching_changes_no_figure(toy, sampled, few_steps, monkeypatch):
    model = sampled()
    noprop.fit(model, *toy, epochs=1, batch_size=32)
    whole = noprop.evaluate(model, *toy)
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 7)
    assert noprop.evaluate(model, *toy) == whole


def test_epochs_are_watched_in_few_steps(toy_file, monkeypatch, few_steps):
    asked, predict = [], noprop.Model.predict

    def watched(self, x, *, steps=None, **options):
        asked.append(steps)
        return predict(self, x, steps=steps, **options)

    monkeypatch.setattr(noprop.Model, "predict", watched)
    for variant, steps in (("ct", 5), ("fm", 5), ("dt", None)):
        call("train", "--data", toy_file, "--variant", variant, *SMALL, "--epochs", 2)
        assert asked[:2] == [steps, steps]
        asked.clear()
    call("train", "--data", toy_file, "--variant", "fm", *SMALL, "--steps", 3, "--epochs", 1)
    assert asked[0] == 3
    assert epoch_reports.WATCHED_STEPS == 5


# the command line


OPTIONS = {
    "ct": {"weight": "min-snr:5", "gamma-0": -2, "gamma-1": 5, "eta": 0.5, "sampler": "heun"},
    "fm": {"sigma": 0.1, "sampler": "rk4"},
}
MADE = {
    "ct": nk.CT(nk.Gamma.linear(-2, 5), 0.5, ("min-snr", 5), True),
    "fm": nk.FM(0.1, True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_reaches_the_run(variant, toy_file, few_steps):
    given = OPTIONS[variant] | {"optimizer": "adam", "steps": 4}
    command = [part for name, value in given.items() for part in (f"--{name}", value)]
    command += ["--variant", variant, "--stratified", *SMALL, "--epochs", 2, "--json"]
    outcome = json.loads(call("train", "--data", toy_file, *command, "--out", "run").stdout)
    assert {name: outcome[name.replace("-", "_")] for name in given} == given
    assert outcome["stratified"] is True and outcome["T"] is None
    assert outcome["weight_decay"] == 1e-3 and outcome["block_updates"] == 10
    model = noprop.load("run")
    assert model.goal == MADE[variant]
    assert model.sampler == model.paper_sampler == (given["sampler"], 4)
    assert model.blocks.optimizer == nk.Adam(lr=2e-3, weight_decay=1e-3)
    assert [line["error"] for line in metrics.read(Path("run"))] == [[None], [None]]


def test_ancestral_is_ddim_without_noise(toy_file, few_steps):
    for given in ((), ("--sampler", "ancestral")):
        folder = f"run{len(given)}"
        command = ("--variant", "ct", *given, *SMALL, "--epochs", 1, "--out", folder)
        call("train", "--data", toy_file, *command)
        model = noprop.load(folder)
        assert (model.sampler, model.paper_sampler) == (("ddim", 20), ("ancestral", 1000))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_is_shown_gone_on_with_tested_and_asked(variant, toy_file, few_steps):
    head = ("--head", "paper") if variant == "ct" else ()
    command = ("train", "--data", toy_file, "--variant", variant, *SMALL, *head)
    shown = call(*command, "--epochs", 2, "--out", "run").stdout
    for text in (
        "accuracy by the sampler's",
        "without noise",
        "with noise",
        "on the way, at t = ",
        "the test: up to 10 steps of the sampler, 5 draws",
    ):
        assert text in words(shown)
    how = "nearest embedding, 5 draws" if variant == "fm" else "head on z_T, 5 draws"
    assert how in words(shown)
    call("train", "--resume", "run", "--epochs", 4, "--variant", variant)
    call(*command, "--epochs", 4, "--out", "straight")
    assert tensors_of("run") == tensors_of("straight")

    saved = checkpoint.load_content(Path("run"))["training"]["result"]
    outcome = json.loads(call("eval", "run", "--json").stdout)
    for name in ("test_accuracy", "paper_accuracy", "accuracy_by_steps", "accuracy_by_t"):
        assert outcome[name] == saved[name]
    text = words(call("info", "run").stdout)
    kind = "CT, one block of all t, eta = 1.0, weight = snr" if variant == "ct" else "FM, one block"
    assert kind in text and "stratified = False" in text
    assert f"sampler kind {'ddim' if variant == 'ct' else 'euler'}, steps 20" in text
    assert "paper sampler kind" in text
    Path("rows.csv").write_text("\n".join(["40,120,40,40,40,40"] * 2))
    lines = call("predict", "run", "rows.csv").stdout.splitlines()
    assert len(lines) == 3 and lines[0].startswith("label,p(0)")
    other = call("train", "--resume", "run", "--weight", "uniform", code=2).stderr
    assert "was begun with" in words(other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_papers_network(variant, image_file, few_steps):
    command = ("--variant", variant, "--preset", "paper", "--batch-size", 32, "--epochs", 2)
    options = ("--steps", 3, "--json", "--out", "run")
    outcome = json.loads(call("train", "--data", image_file, *command, *options).stdout)
    plan = plans.paper_ct((3, 16, 16), 3, 3)
    assert outcome["parameters_per_block"] == plan.num_parameters()
    assert (outcome["lr"], outcome["weight_decay"], outcome["lr_schedule"]) == (
        *(1e-3, 1e-3, "constant"),
    )
    assert outcome["optimizer"] == "adam"
    assert outcome["head"] == ("paper" if variant == "ct" else "none")
    assert outcome["eta"] == (1.0 if variant == "ct" else None)
    assert outcome["paper_accuracy"] is not None


def test_a_dry_run_says_what_would_be_trained(toy_file):
    for variant in VARIANTS:
        told = call("train", "--data", toy_file, "--variant", variant, "--dry-run", "--json")
        outcome = json.loads(told.stdout)
        assert outcome["trainable"] and outcome["why_not"] is None
        assert outcome["sampler"] == ("ancestral" if variant == "ct" else "euler")
        plan = plans.mlp(6, 3, 3, hidden=256, time=True)
        assert outcome["parameters_per_block"] == plan.num_parameters() == outcome["parameters"]
        assert "1 block of" in told.stderr
