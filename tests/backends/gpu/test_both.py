"""Both backends on a GPU: the reference's answers, streams, captures, bad contents."""

import pytest
import torch

from noprop_kernels.backends import dispatch
from support.on_gpu import DEVICE, PLANS, B, M, T, data, indices, make

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    name = request.param
    gap = dispatch.triton_gap(DEVICE) if name == "triton" else dispatch.cuda_gap(None, DEVICE)
    if gap:
        pytest.skip(gap)
    return name


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("plan", PLANS)
def test_gradients_are_the_reference_s(backend: str, plan: str, precision: str) -> None:
    X, Y = data()
    ours, theirs = (make(name, plan, precision=precision) for name in (backend, "reference"))
    got, want = (blocks.gradients(X[:B], Y[:B]) for blocks in (ours, theirs))
    unit = {"float32": 2**-18, "tf32": 2**-9, "bfloat16": 2**-6}[precision]
    torch.testing.assert_close(got.loss, want.loss, rtol=unit, atol=0)
    for name, value in got.by_name.items():
        error = (value - want.by_name[name]).abs().max()
        assert error <= unit * want.by_name[name].abs().max().clamp_min(1e-6), name


def test_inside_the_caller_s_stream_and_capture(backend: str) -> None:
    X, Y = data()
    eager, captured = make(backend), make(backend)
    x, y = X[:B].clone(), Y[:B].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured.train_step(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step = captured.train_step(x, y)
    graph.replay()
    for _ in range(2):
        loss = eager.train_step(x, y).loss
    assert torch.equal(step.loss, loss)
    assert torch.equal(eager.hx.weight, captured.hx.weight)


@pytest.mark.parametrize("what", ["label", "index", "input"])
def test_bad_contents_skip_the_step_and_are_told_later(backend: str, what: str) -> None:
    X, Y = data()
    blocks, rows = make(backend), indices(1)
    if what == "label":
        Y[rows[0, 3]] = M
    elif what == "input":
        X[rows[0, 3], 2] = torch.inf
    else:
        rows[0, 3] = 500
    before = blocks.hx.weight.clone()
    blocks.train_steps(X, Y, rows)
    assert torch.equal(blocks.hx.weight, before)
    assert blocks.updates.tolist() == [0] * T and blocks.draws.tolist() == [1] * T
    with pytest.raises(ValueError, match="train_steps or gradients: in an earlier call"):
        blocks.train_step(*(value[:B] for value in data()))


def test_predict_and_autograd(backend: str) -> None:
    X, Y = data()
    ours, theirs = map(make, (backend, "reference"))
    got, want = (blocks.predict(X[:7], samples=2) for blocks in (ours, theirs))
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
    for blocks in (ours, theirs):
        blocks.loss(X[:B], Y[:B]).sum().backward()
    torch.testing.assert_close(ours.hx.weight.grad, theirs.hx.weight.grad, rtol=1e-3, atol=1e-6)
