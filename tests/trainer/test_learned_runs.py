"""Runs that learn embeddings or gamma: training, resuming, files, evaluation and exports."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import (
    Progress,
    checkpoint,
    evaluation,
    learned_metrics,
    metrics,
    schedule_picture,
)
from support.cli import call, words

pytestmark = pytest.mark.usefixtures("alone")
SMALL = ("--hidden", 8, "--batch-size", 32, "--lr-schedule", "constant", "--lr", 0.01)
LEARNED = {
    "dt learned": ("--variant", "dt", "--embedding", "learned", "--embed-dim", 5),
    "dt prototype all-t": ("--variant", "dt", "--embedding", "prototype", "--order", "all-t"),
    "dt learned sampled": ("--variant", "dt", "--embedding", "learned", "--order", "sampled"),
    "dt radial detached": (
        *("--variant", "dt", "--embedding", "learned", "--detach-target"),
        *("--head", "radial", "--head-sigma", 0.5, "--embed-init", "normal"),
    ),
    "ct gamma": ("--variant", "ct", "--schedule", "learned", "--gamma-hidden", 16),
    "ct both": (
        *("--variant", "ct", "--schedule", "learned", "--gamma-hidden", 16, "--gamma-0", -2),
        *("--embedding", "prototype", "--head", "radial", "--embed-scale", 2),
    ),
    "fm learned": ("--variant", "fm", "--embedding", "learned", "--embed-dim", 4),
    "fm prototype": ("--variant", "fm", "--embedding", "prototype", "--detach-target"),
}
FIXED = {
    "dt radial": ("--variant", "dt", "--head", "radial", "--head-sigma", 0.4),
    "ct radial": ("--variant", "ct", "--head", "radial"),
}
EVERY = LEARNED | FIXED


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Fewer steps of an evaluation, and of the paper's protocol."""
    monkeypatch.setattr(evaluation, "STEPS", (1, 2, 10))
    monkeypatch.setattr(evaluation, "NOISY_STEPS", (10,))
    monkeypatch.setattr(evaluation, "STEPS_ON_THE_WAY", 10)


def command(name, file, *more):
    options = EVERY[name]
    three = ("--T", 3) if "dt" in options else ("--steps", 10)
    return ("train", "--data", file, *options, *three, *SMALL, *more)


def state_of(folder):
    return checkpoint.load(Path(folder))[1]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("name", EVERY)
def test_a_run_goes_on_with_the_same_bits_and_is_asked(name, toy_file, toy):
    out = call(*command(name, toy_file, "--epochs", 4, "--out", "straight", "--json"))
    call(*command(name, toy_file, "--epochs", 2, "--out", "run"))
    call("train", "--resume", "run", "--epochs", 4)
    assert_same(state_of("run"), state_of("straight"))
    before = call(*command(name, toy_file, "--epochs", 1, "--out", "short")) and state_of("short")
    learned = [part for part in before if part.startswith("shared.") and part.endswith("W_embed")]
    learned += [part for part in before if part.startswith("shared.gamma") and part[-2] != "_"]
    assert all(not torch.equal(before[part], state_of("run")[part]) for part in learned)
    assert bool(learned) == (name in LEARNED)

    outcome = json.loads(out.stdout)
    assert outcome["parameters"] == noprop.load("run").num_parameters()
    again = json.loads(call("eval", "run", "--json").stdout)
    for figure in ("test_accuracy", "paper_accuracy", "accuracy_per_block", "accuracy_by_steps"):
        assert again[figure] == outcome[figure]
    model = noprop.load("run")
    answer = model.predict(toy[0])
    Path("rows.csv").write_text("\n".join(",".join(map(str, row)) for row in toy[0].tolist()))
    labels = [line.split(",")[0] for line in call("predict", "run", "rows.csv").stdout.split()]
    assert labels[1:] == answer.names
    text = words(call("info", "run").stdout)
    assert f"head {'radial' if 'radial' in EVERY[name] else 'softmax'}" in text
    changed = call("train", "--resume", "run", "--head", "none", code=2).stderr
    assert "was begun with" in words(changed)


@pytest.mark.parametrize("name", LEARNED)
def test_a_training_that_stops_anywhere_goes_on(name, toy_file, toy, monkeypatch):
    """Within a pass, at the end of one and in calls of other sizes, with a falling rate."""
    call(*command(name, toy_file, "--epochs", 1, "--out", "run"))
    order = json.loads(Path("run/model.json").read_text())["training"]["settings"]["order"]
    fit = partial(noprop.fit, x=toy[0], y=toy[1], batch_size=32, lr_schedule="cosine", epochs=2)
    fit = partial(fit, order=order or "paper")
    straight = noprop.load("run")
    fit(straight)
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0)  # a step a call
    for calls in (2, 5, 9):
        model, done = noprop.load("run"), []
        stop = partial(lambda done, calls: len(done) >= calls, done, calls)
        at = fit(model, stop=stop, on_call=partial(lambda done, *_: done.append(1), done))
        model.save("stopped")
        model = noprop.load("stopped")
        fit(model, progress=Progress(**at.to_json()))
        assert_same(model.tensors(), straight.tensors())


@pytest.mark.parametrize("name", EVERY)
def test_exports_answer_as_predict_does(name, toy_file, toy):
    call(*command(name, toy_file, "--epochs", 3, "--out", "run"))
    model, x = noprop.load("run"), toy[0]
    want = model.predict(x)
    modules = [model.to_module()]
    if name in ("dt learned", "ct gamma", "fm prototype"):
        call("export", "run", "--torch", "model.pt2")
        modules.append(torch.export.load("model.pt2").module())
    for module in modules:
        labels, probs = module(x)
        assert torch.equal(labels, want.labels)
        torch.testing.assert_close(probs, want.probs, rtol=1e-4, atol=1e-4)
    drawn, reads = model.to_module(noise=True), []
    torch.manual_seed(0)
    for _ in range(100):
        labels, probs = drawn(x)
        assert torch.equal(labels, probs.argmax(-1))
        reads.append(probs)
    chain = torch.softmax(model.predict_paper(x, samples=100), -1)
    apart = torch.stack(reads).mean(0).sub(chain.mean(0)).abs().mean()
    assert apart < chain.std(0).mean() * (2 / 100) ** 0.5 + 1e-3


# what a run records and says


def test_the_lines_of_the_epochs(toy_file):
    shown = call(*command("ct both", toy_file, "--epochs", 2, "--out", "run")).stdout
    lines, model = metrics.read(Path("run")), noprop.load("run")
    last = lines[-1]
    assert len(lines) == 2 and last["embedding"] == learned_metrics.distances(model)
    assert last["schedule"]["gamma"][0] == pytest.approx(model.goal.gamma.ends()[0].item())
    assert lines[0]["schedule"] != last["schedule"]
    assert f"embeddings {last['embedding']['least_distance']:.3g} apart, norms " in words(shown)
    assert f"gamma {last['schedule']['gamma'][0]:.3g} to " in words(shown)
    call(*command("dt radial", toy_file, "--epochs", 1, "--out", "fixed"))
    assert not {"embedding", "schedule"} & metrics.read(Path("fixed"))[0].keys()


def test_a_collapse_is_told_once(toy_file, monkeypatch):
    monkeypatch.setattr(learned_metrics, "LEAST_NOISE", 1e3)
    told = call(*command("fm learned", toy_file, "--epochs", 3, "--out", "run")).stderr
    assert told.count("noprop: warning: after epoch 1 the embeddings of ") == 1
    assert told.count("they collapse") == 1


def test_the_schedule_is_drawn(toy_file):
    pytest.importorskip("matplotlib")
    call(*command("ct gamma", toy_file, "--epochs", 7, "--out", "run"))
    told = call("info", "run", "--plot", "gamma.svg").stderr
    assert "gamma.svg: the schedule after epochs 1, 3, 4, 5, 7" in told
    text = Path("gamma.svg").read_text()
    for part in ("linear", "epoch 7", "SNR(t)", "weight(t), snr"):
        assert f"<!-- {part} -->" in text
    call(*command("ct radial", toy_file, "--epochs", 1, "--out", "fixed"))
    for arguments, code, text in (
        (("fixed", "--plot", "gamma.png"), 1, "there is no learned schedule to draw"),
        (("run", "--plot", "gamma.txt"), 1, "gamma.txt must end with .svg, .png or .pdf"),
        (("--plot", "gamma.png"), 2, "--plot: it needs a run"),
    ):
        assert text in words(call("info", *arguments, code=code).stderr)
    assert not Path("gamma.png").exists()


def test_the_line_beside_a_learned_schedule():
    settings = {"variant": "ct", "eta": 1.0, "weight": "snr", "stratified": False}
    settings |= {"gamma_0": -3.0, "gamma_1": 6.0, "schedule": "learned", "gamma_hidden": 8}
    line = schedule_picture.linear(settings, 3)
    assert line["gamma"] == [6.0, 1.5, -3.0]
    assert line["weight"] == pytest.approx([4.5 * math.exp(-gamma) for gamma in line["gamma"]])


@pytest.mark.parametrize("variant", ["dt", "ct", "fm"])
@pytest.mark.parametrize("embedding", ["learned", "prototype"])
def test_the_papers_network(variant, embedding, image_file):
    """With prototypes z is an image, with convolutions of its own."""
    own = ("--T", 2) if variant == "dt" else ("--steps", 3)
    options = (*own, "--variant", variant, "--embedding", embedding, "--preset", "paper")
    options = ("--data", image_file, *options, "--batch-size", 32)
    call("train", *options, "--epochs", 1, "--out", "run")
    call("train", "--resume", "run", "--epochs", 2)
    outcome = json.loads(
        call("train", *options, "--epochs", 2, "--out", "straight", "--json").stdout
    )
    assert_same(state_of("run"), state_of("straight"))
    model, width = noprop.load("run"), 20 if embedding == "learned" else 768
    make = nk.plans.paper_dt if variant == "dt" else nk.plans.paper_ct
    assert model.blocks.plan == make((3, 16, 16), width, 3, z_image=embedding == "prototype")
    assert model.shared.optimizer.kind == ("AdamW" if variant == "dt" else "Adam")
    head = "softmax" if variant == "fm" else "paper"
    assert (outcome["head"], outcome["paper_accuracy"] is not None) == (head, True)
