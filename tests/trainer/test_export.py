"""to_module: predict's answers by PyTorch alone, through pickle, torch.export and ONNX."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import noprop
import noprop_kernels as nk
from noprop.export import z_0

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
    noprop.fit(model, *toy, epochs=2, batch_size=32)
    return model


def test_a_row_alone_gets_predicts_answer(trained, toy):
    module, x = trained.to_module(), toy[0][:6]
    want = torch.cat([trained.predict(row[None]).probs for row in x])
    close(module(x), want)
    assert not torch.allclose(trained.predict(x).probs[1:], want[1:], rtol=1e-3)  # z_0 by row


def test_a_batch_with_predicts_z_0_gets_its_answers(trained, toy):
    module, x = trained.to_module(), toy[0]
    module.z_0 = z_0(trained, len(x))[0]
    close(module(x), trained.predict(x).probs)
    for other in (x.float(), x.long()):
        close(module(other), trained.predict(x).probs)


@pytest.mark.parametrize("channels", [None, 3])
def test_batch_norm_one_hot_encoder_and_channels(toy, channels):
    encoder = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    blocks = nk.DenoisingBlocks(nk.plans.paper_dt(5, 3, 3), goal)
    normalize = channels and (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0]))
    model = noprop.Model(blocks, nk.OutputHead(3, 3, goal=goal), encoder, normalize=normalize)
    features = model.features(toy[0])
    for _ in range(3):  # running statistics that are not the initial ones
        blocks.train_step(features, toy[1])
    encoder.train()
    module = model.to_module()
    module.z_0 = z_0(model, len(toy[0]))[0]
    close(module(toy[0]), model.predict(toy[0]).probs)
    assert not module.training and encoder.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_with_noise_every_call_draws_the_papers_chain(trained, toy):
    module, x = trained.to_module(noise=True), toy[0]
    torch.manual_seed(0)
    drawn = torch.stack([module(x) for _ in range(200)])
    assert not torch.equal(drawn[0], drawn[1])
    chain = torch.softmax(trained.predict(x, noise=True, samples=200).logits, -1)
    assert (drawn.mean(0) - chain.mean(0)).abs().max() < 0.15
    assert drawn.mean(0).sub(chain.mean(0)).abs().mean() < 0.02
    quiet = torch.softmax(trained.predict(x, samples=200).logits, -1)
    spread = drawn.std(0).mean()
    assert spread == pytest.approx(chain.std(0).mean().item(), rel=0.1)
    assert spread != pytest.approx(quiet.std(0).mean().item(), rel=0.1)


def test_it_is_a_copy(trained, toy):
    module, x = trained.to_module(), toy[0]
    before = module(x)
    noprop.fit(trained, *toy, epochs=3, batch_size=32)
    assert torch.equal(module(x), before)


def test_it_is_loaded_and_runs_without_the_library(trained, toy, tmp_path):
    module, x = trained.to_module(), toy[0]
    torch.save((module, x, module(x)), tmp_path / "classifier.pt")
    command = [sys.executable, "-I", "-c", LOAD, str(tmp_path / "classifier.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


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


# what torch's exporter and its dependencies say to each other
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32], ids=["bytes", "floats"])
def test_onnx(trained, toy, kind, tmp_path):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    module, x = trained.to_module(), toy[0].to(kind)
    path = tmp_path / "classifier.onnx"
    shapes = ({0: torch.export.Dim("B")},)
    torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(path)
    for row in x[:3]:
        (got,) = session.run(None, {"x": row[None].numpy()})
        close(torch.from_numpy(got), trained.predict(row[None]).probs)
    (got,) = session.run(None, {"x": x.numpy()})
    close(torch.from_numpy(got), module(x))


def test_a_plan_with_more_inputs_is_refused():
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    layers = {"logits": nk.Dense(("x", "t", "z"), 3)}
    blocks = nk.DenoisingBlocks(nk.Plan({"x": (6,), "t": (2,), "z": (3,)}, layers), goal)
    model = noprop.Model(blocks, nk.OutputHead(3, 3, goal=goal))
    with pytest.raises(ValueError, match='to_module: plan must have "z" and one more input'):
        model.to_module()
