"""to_module: predict's answers by PyTorch alone, through pickle, torch.export and ONNX."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import noprop
import noprop_kernels as nk

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)
LOAD = """
import sys, torch
sys.modules["noprop"] = sys.modules["noprop_kernels"] = None  # importing one raises
module, x, want = torch.load(sys.argv[1], weights_only=False)
torch.testing.assert_close(module(x), want, rtol=0, atol=0)
"""


@pytest.fixture
def trained(toy, new_model):
    generator = torch.Generator().manual_seed(3)
    model = new_model(embedding=torch.randn(3, 4, generator=generator))
    noprop.fit(model, *toy, epochs=20, batch_size=32)
    return model


@pytest.fixture
def trained_gelu(toy):
    layers = {
        "h": nk.Dense(("x", "z"), 8, norm=nk.BatchNorm(), activation="gelu"),
        "logits": nk.Dense("h", 3),
    }
    plan, goal = nk.Plan({"x": (6,), "z": (3,)}, layers), nk.DT(nk.NoiseSchedule.cosine(T=2))
    model = noprop.Model(nk.DenoisingBlocks(plan, goal, optimizer=nk.AdamW(lr=1e-2), seed=5))
    noprop.fit(model, *toy, epochs=20, batch_size=32)
    return model


def assert_answers(module, model, x):
    labels, probs = module(x)
    want = model.predict(x)
    assert torch.equal(labels, want.labels)
    close(probs, want.probs)


def test_it_answers_as_predict_does(trained, toy):
    module, x = trained.to_module(), toy[0]
    assert_answers(module, trained, x)
    assert_answers(module, trained, x[7:8])
    for other in (x.float(), x.long()):
        assert_answers(module, trained, other)
    assert len(module(x)[0].unique()) == 3


def test_embeddings_of_unlike_lengths(toy, new_model):
    """A score without |u_y|^2 would take the longest for the likeliest."""
    model = new_model(embedding=torch.tensor([[4.0, 0.0], [0.3, 0.4], [0.0, -0.2]]), head=False)
    noprop.fit(model, *toy, epochs=20, batch_size=32)
    assert_answers(model.to_module(), model, toy[0])
    assert len(model.predict(toy[0]).labels.unique()) == 3


@pytest.mark.parametrize("channels", [None, 3])
def test_batch_norm_one_hot_encoder_and_channels(toy, channels):
    encoder = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    blocks = nk.DenoisingBlocks(nk.plans.paper_dt(5, 3, 3), goal)
    normalize = channels and (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0]))
    model = noprop.Model(blocks, encoder=encoder, normalize=normalize)
    features = model.features(toy[0])
    for _ in range(3):  # running statistics that are not the initial ones
        blocks.train_step(features, toy[1])
    encoder.train()
    module = model.to_module()
    assert_answers(module, model, toy[0])
    assert not module.training and encoder.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_with_noise_every_call_draws_the_papers_protocol(trained, toy):
    module, x = trained.to_module(noise=True), toy[0]
    torch.manual_seed(0)
    drawn = [module(x) for _ in range(200)]
    assert all(torch.equal(labels, probs.argmax(-1)) for labels, probs in drawn)
    drawn = torch.stack([probs for _, probs in drawn])
    assert not torch.equal(drawn[0], drawn[1])
    chain = torch.softmax(trained.predict_paper(x, samples=200), -1)
    assert (drawn.mean(0) - chain.mean(0)).abs().max() < 0.15
    assert drawn.mean(0).sub(chain.mean(0)).abs().mean() < 0.02
    assert drawn.std(0).mean() == pytest.approx(chain.std(0).mean().item(), rel=0.1)


def test_noise_needs_a_head(new_model):
    with pytest.raises(ValueError, match="to_module: the model must have a head"):
        new_model(head=False).to_module(noise=True)


def test_it_is_a_copy(trained, toy):
    module, x = trained.to_module(), toy[0]
    before = module(x)
    noprop.fit(trained, *toy, epochs=3, batch_size=32)
    for one, other in zip(module(x), before, strict=True):
        assert torch.equal(one, other)


def test_it_is_loaded_and_runs_without_the_library(trained, toy, tmp_path):
    module, x = trained.to_module(), toy[0]
    torch.save((module, x, module(x)), tmp_path / "classifier.pt")
    command = [sys.executable, "-I", "-c", LOAD, str(tmp_path / "classifier.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_gelu(trained_gelu, toy):
    module = trained_gelu.to_module()
    assert_answers(module, trained_gelu, toy[0])
    program = torch.export.export(module, (toy[0].float(),))
    close(program.module()(toy[0].float()), module(toy[0]))


@pytest.mark.parametrize("noise", [False, True])
def test_torch_export(trained, toy, noise):
    module, x = trained.to_module(noise=noise), toy[0].float()
    B = torch.export.Dim("B")
    program = torch.export.export(module, (x,), dynamic_shapes=({0: B},))
    for part in (x, x[:5]):
        torch.manual_seed(1)
        want = module(part)
        torch.manual_seed(1)
        close(program.module()(part), want)


def test_torch_export_says_that_one_row_is_too_few(trained, toy):
    shapes = ({0: torch.export.Dim("B")},)
    with pytest.raises(torch._dynamo.exc.UserError, match="dynamic.*constant"):
        torch.export.export(trained.to_module(), (toy[0][:1].float(),), dynamic_shapes=shapes)


# warnings among torch's exporter and its dependencies
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "model, kind",
    [("trained", torch.uint8), ("trained", torch.float32), ("trained_gelu", torch.uint8)],
    ids=["bytes", "floats", "gelu"],
)
def test_onnx(request, model, toy, kind, tmp_path):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    trained = request.getfixturevalue(model)
    module, x = trained.to_module(), toy[0].to(kind)
    path = tmp_path / "classifier.onnx"
    shapes = ({0: torch.export.Dim("B")},)
    example = x[: 1 if kind == torch.float32 else 2]
    torch.onnx.export(module, (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(path)
    for rows in (x, x[:1], x[5:8]):
        labels, probs = map(torch.from_numpy, session.run(None, {"x": rows.numpy()}))
        want = trained.predict(rows)
        assert torch.equal(labels, want.labels)
        close(probs, want.probs)


def test_a_plan_with_more_inputs_is_refused():
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    layers = {"logits": nk.Dense(("x", "t", "z"), 3)}
    blocks = nk.DenoisingBlocks(nk.Plan({"x": (6,), "t": (2,), "z": (3,)}, layers), goal)
    model = noprop.Model(blocks)
    with pytest.raises(ValueError, match='to_module: plan must have "z" and one more input'):
        model.to_module()
