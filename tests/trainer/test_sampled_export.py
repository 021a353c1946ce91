"""to_module of CT and FM: predict's answers by PyTorch alone, with the sampler unrolled."""

from functools import partial
from pathlib import Path

import pytest
import torch

import noprop
import noprop_kernels as nk
from support.cli import call, words
from support.images import toy_images

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
UNLIKE = torch.tensor([[4.0, 0.0], [0.3, 0.4], [0.0, -0.2]])  # embeddings of unlike lengths


@pytest.fixture(params=[None, UNLIKE], ids=["one-hot", "unlike"])
def trained(request, toy, sampled):
    model = sampled(request.param)
    noprop.fit(model, *toy, epochs=15, batch_size=32)
    return model


def assert_answers(module, model, x, steps=None):
    labels, probs = module(x)
    want = model.predict(x, steps=steps)
    assert torch.equal(labels, want.labels)
    close(probs, want.probs)


@pytest.mark.parametrize("steps", [None, 1, 5])
def test_it_answers_as_predict_does(trained, toy, steps):
    module, x = trained.to_module(steps=steps), toy[0]
    assert_answers(module, trained, x, steps)
    assert_answers(module, trained, x[7:8], steps)
    assert len(module(x)[0].unique()) == 3


def test_every_sampler(toy, sampled):
    base = sampled()
    noprop.fit(base, *toy, epochs=15, batch_size=32)
    for kind in base.goal.samplers:
        if kind != "ancestral":  # which has no form without noise
            model = noprop.Model(base.blocks, normalize=base.normalize, sampler=(kind, 4))
            assert_answers(model.to_module(), model, toy[0])


def test_what_depends_on_x_alone_is_computed_once(trained):
    module = trained.to_module(steps=7)
    calls = [node.target for node in module.graph.nodes if node.op == "call_module"]
    counts = {name: calls.count(f"block.{name}") for name in trained.blocks.plan.layers}
    assert counts == {"hx": 1, "hz": 7, "ht": 7, "f": 7, "logits": 7}


def test_convolutions(sampled):
    x, y = toy_images(64, seed=0)
    goal = sampled.goal()
    model = noprop.Model(nk.DenoisingBlocks(nk.plans.paper_ct((3, 16, 16), 3, 3), goal))
    noprop.fit(model, x, y, epochs=4, batch_size=32)
    module = model.to_module(steps=3)
    assert_answers(module, model, torch.as_tensor(x), 3)
    calls = [node.target for node in module.graph.nodes if node.op == "call_module"]
    assert calls.count("block.c3") == 1 and calls.count("block.f2") == 3


def test_with_noise_every_call_draws_the_papers_protocol(toy, sampled):
    of_ct = sampled.goal is nk.CT
    paper = ("ancestral" if of_ct else "euler", 6)
    model, x = sampled(head=of_ct, paper_sampler=paper), toy[0]
    noprop.fit(model, *toy, epochs=6, batch_size=32)
    module = model.to_module(noise=True, steps=6)
    torch.manual_seed(0)
    drawn = [module(x) for _ in range(200)]
    assert all(torch.equal(labels, probs.argmax(-1)) for labels, probs in drawn)
    drawn = torch.stack([probs for _, probs in drawn])
    chain = torch.softmax(model.predict_paper(x, samples=200), -1)
    assert drawn.mean(0).sub(chain.mean(0)).abs().mean() < 0.02
    assert drawn.std(0).mean() == pytest.approx(chain.std(0).mean().item(), rel=0.1)


def test_steps_that_are_not_written_out(sampled, new_model):
    with pytest.raises(ValueError, match="steps must be at most 100, got 101: each is written"):
        sampled().to_module(steps=101)
    with pytest.raises(ValueError, match="steps must be at most 100, got 200"):
        sampled(sampler=("euler", 200)).to_module()
    with pytest.raises(ValueError, match="to_module: steps must be"):
        sampled().to_module(steps=0)
    with pytest.raises(ValueError, match="steps must be the 3 blocks, got 4"):
        new_model(T=3).to_module(steps=4)


def test_torch_export(trained, toy):
    module, x = trained.to_module(), toy[0].float()
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("B")},))
    for part in (x, x[:5]):
        close(program.module()(part), module(part))


# warnings among torch's exporter and its dependencies
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("variant", ["ct", "fm"])
def test_the_command_writes_files_that_answer_as_predict_does(variant, toy_file, toy, alone):
    command = ("--variant", variant, "--hidden", 16, "--epochs", 2, "--steps", 20)
    call("train", "--data", toy_file, *command, "--out", "run")
    model, x = noprop.load("run"), toy[0]
    call("export", "run", "--torch", "model.pt2", "--steps", 6)
    answer = torch.export.load("model.pt2").module()
    assert_answers(answer, model, x, 6)
    text = words(call("export", "run", "--torch", "other.pt2", "--steps", 101, code=2).stderr)
    assert "--steps" in text and "at most 100, got 101" in text and not Path("other.pt2").exists()

    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    call("export", "run", "--onnx", "model.onnx")
    session = runtime.InferenceSession("model.onnx")

    def by_onnx(rows):
        return tuple(map(torch.from_numpy, session.run(None, {"x": rows.numpy()})))

    for rows in (x, x[:1], x[5:8]):
        assert_answers(by_onnx, model, rows)
