"""The CUDA backend on a GPU: the reference's answers, launches of any length, streams, captures."""

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cuda import clocks, describe, placement
from noprop_kernels.backends.cuda.placement import Layout

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
if reason := dispatch.cuda_gap(None, DEVICE):
    pytest.skip(reason, allow_module_level=True)

T, B, F, M = 3, 96, 50, 10
GOAL = nk.DT(nk.NoiseSchedule.cosine(T))
PLANS = {"mlp": nk.plans.mlp(F, M, M, hidden=130), "paper_dt": nk.plans.paper_dt(F, M, M)}


def make(plan: str = "mlp", backend: str = "cuda", **options) -> nk.DenoisingBlocks:
    return nk.DenoisingBlocks(PLANS[plan], GOAL, backend=backend, **options).to(DEVICE)


def data(rows: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(rows, F, generator=generator)
    return X.to(DEVICE), torch.randint(M, (rows,), generator=generator).to(DEVICE)


def indices(K: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(500, (K, B), generator=generator).to(DEVICE)


def same(a: nk.DenoisingBlocks, b: nk.DenoisingBlocks) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("plan", PLANS)
def test_gradients_are_the_reference_s(plan: str, precision: str) -> None:
    X, Y = data()
    ours, theirs = (make(plan, backend, precision=precision) for backend in ("cuda", "reference"))
    got, want = (blocks.gradients(X[:B], Y[:B]) for blocks in (ours, theirs))
    unit = {"float32": 2**-18, "tf32": 2**-9, "bfloat16": 2**-6}[precision]
    torch.testing.assert_close(got.loss, want.loss, rtol=unit, atol=0)
    for name, value in got.by_name.items():
        error = (value - want.by_name[name]).abs().max()
        assert error <= unit * want.by_name[name].abs().max().clamp_min(1e-6), name


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("plan", PLANS)
def test_no_bit_depends_on_groups_blocks_or_launches(
    plan: str, precision: str, monkeypatch
) -> None:
    X, Y = data()
    rows = indices(5)
    single = make(plan, precision=precision)
    losses = torch.stack([single.train_step(X[i], Y[i]).loss for i in rows])
    for layout in ((1, 1), (1, 7), (2, 40), (3, 44)):
        monkeypatch.setattr(placement, "layout", lambda *sizes, layout=layout: Layout(*layout))
        blocks = make(plan, precision=precision)
        assert torch.equal(blocks.train_steps(X, Y, rows), losses), layout
        assert same(blocks, single), layout


def test_a_long_call_meets_its_barriers() -> None:
    X, Y = data()
    whole, parts = make(), make(blocks_per_launch=2)
    rows = indices(3000)
    losses = whole.train_steps(X, Y, rows)
    assert torch.equal(torch.cat([parts.train_steps(X, Y, r) for r in rows.split(999)]), losses)
    assert same(whole, parts) and losses[-100:].mean() < losses[:100].mean()


def test_inside_the_caller_s_stream_and_capture() -> None:
    X, Y = data()
    eager, captured = make(), make()
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
def test_bad_contents_skip_the_step_and_are_told_later(what: str) -> None:
    X, Y = data()
    blocks, rows = make(), indices(1)
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


def test_predict_and_autograd() -> None:
    X, Y = data()
    ours, theirs = (make(backend=backend) for backend in ("cuda", "reference"))
    got, want = (blocks.predict(X[:7], samples=2) for blocks in (ours, theirs))
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
    for blocks in (ours, theirs):
        blocks.loss(X[:B], Y[:B]).sum().backward()
    torch.testing.assert_close(ours.hx.weight.grad, theirs.hx.weight.grad, rtol=1e-3, atol=1e-6)


def test_cycles_of_every_stage() -> None:
    if reason := clocks.gap():
        pytest.skip(reason)
    blocks = make("paper_dt")
    with clocks.count() as found:
        blocks.train_steps(*data(), indices(3))
    (launch,) = found
    work, wait = launch.cycles.unbind(1)
    assert (work > 0).all() and (wait >= 0).all() and wait[-1] > 0


def test_explain_has_the_device_s_facts() -> None:
    blocks = make()
    place = describe.placement_of(blocks, B)
    assert 1 <= place.layout.groups * place.layout.blocks
    assert place.l2 == torch.cuda.get_device_properties(DEVICE).L2_cache_size
    assert describe.describe(blocks, B) in nk.explain(blocks, batch=B)
