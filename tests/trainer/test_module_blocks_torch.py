"""ModuleBlocks under torch.compile and autocast, on a GPU, with torch's other optimizers."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import noprop
from support.networks import GOALS, F, M, changed, own_blocks, own_encoder, rows, state

# torch's own compiler looks at the .grad of a tensor inside the graph where it is interrupted
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

X, Y = rows(60)
INDICES = torch.randint(60, (6, 16), generator=torch.Generator().manual_seed(1))


class Seen(nn.Module):
    """Keeps the dtype of what its layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.dtypes = nn.Linear(F + 4, M), []

    def forward(self, x, z):
        logits = self.logits(torch.cat([x, z], 1))
        self.dtypes.append(logits.dtype)
        return logits


def seen_blocks(**options) -> noprop.ModuleBlocks:
    make = partial(torch.optim.SGD, lr=0.5)
    torch.manual_seed(0)
    options |= {"embedding": torch.eye(M, 4) + 0.1, "optimizer": make}
    return noprop.ModuleBlocks([Seen() for _ in range(3)], GOALS["dt"], M, **options)


# aot_eager traces and runs the same graphs without minutes of g++
@pytest.mark.parametrize("share", [False, True])
def test_compiled_networks_train_and_predict_as_eager_ones(share):
    torch._dynamo.reset()
    options = {"encoder": own_encoder(), "share_encoder": share}
    eager, compiled = (own_blocks(**options) for _ in range(2))
    for part in (*compiled.networks, *compiled.encoders):
        part.dropout.p = 0.0
        part.compile(backend="aot_eager", fullgraph=True)
    for part in (*eager.networks, *eager.encoders):
        part.dropout.p = 0.0
    losses = [each.train_steps(X, Y, INDICES) for each in (eager, compiled)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    answers = [each.predict(X, samples=2).z for each in (eager, compiled)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    assert state(eager).keys() == state(compiled).keys()


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_compiled_forward_is_whole(device):
    torch._dynamo.reset()
    blocks = own_blocks().eval()
    z = torch.zeros(len(X), M)
    run = torch.compile(lambda x, z: blocks(x, z), backend="aot_eager", fullgraph=True)
    try:
        torch.set_default_device(device)
        torch.testing.assert_close(run(X, z), blocks(X, z))
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("by", ["precision", "caller"])
def test_networks_run_in_bfloat16_and_losses_in_float32(by):
    blocks = seen_blocks(**({"precision": "bfloat16"} if by == "precision" else {}))
    with torch.autocast("cpu", torch.bfloat16, enabled=by == "caller"):
        first = blocks.train_steps(X, Y, INDICES[:1])
        later = blocks.train_steps(X, Y, INDICES[:1].expand(30, -1))
        answer = blocks.predict(X, noise=False)
        logits = blocks(X, torch.zeros(len(X), 4))
    seen = {dtype for network in blocks.networks for dtype in network.dtypes}
    assert seen == {torch.bfloat16}
    for value in (first, answer.logits, answer.z, logits, *blocks.parameters()):
        assert value.dtype == torch.float32
    # a product of bfloat16 would have rounded it
    u_hat = answer.logits.softmax(-1) @ blocks.W_embed
    torch.testing.assert_close(answer.u_hat, u_hat, rtol=1e-6, atol=1e-6)
    # the caller's autocast keeps no casts of weights that an optimizer has moved since
    assert (later[-1] < 0.8 * first[0]).all()
    plain = seen_blocks()
    torch.testing.assert_close(plain.train_steps(X, Y, INDICES[:1]), first, rtol=0.02, atol=1e-3)
    assert not torch.equal(plain.predict(X, noise=False).z, answer.z)


@pytest.mark.parametrize("name", ["float64", "bfloat16", "meta"])
def test_no_default_changes_a_bit(name):
    blocks = [own_blocks(kind, encoder=own_encoder()) for kind in GOALS]
    others = copy.deepcopy(blocks)

    def run(those: list[noprop.ModuleBlocks]) -> list[torch.Tensor]:
        found = []
        for each in those:
            steps = {} if each.T > 1 else {"steps": 3}
            found += [each.train_steps(X, Y, INDICES), each.predict(X, **steps).z]
            found += [each.predict(X, noise=False, **steps).z]
            found += state(each).values()
        return found

    want = run(blocks)
    dtype = torch.get_default_dtype()
    try:
        if name == "meta":
            torch.set_default_device(name)
        else:
            torch.set_default_dtype(getattr(torch, name))
        got = run(others)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
    for one, other in zip(got, want, strict=True):
        # torch's optimizers count their steps in the default dtype
        assert torch.equal(one.to(other.dtype), other)
        assert one.dtype == other.dtype or not one.ndim


OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.05),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.01),
    "NAdam": partial(torch.optim.NAdam, lr=0.01),
    "Adafactor": partial(torch.optim.Adafactor, lr=0.01),
}


class Counting(torch.optim.Optimizer):
    """Keeps a whole number and another beside each parameter."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                kept = self.state[param]
                kept["steps"] = kept.get("steps", 0) + 1
                kept["shrink"] = kept.get("shrink", 1.0) * 0.9
                kept["last"] = None
                param.sub_(param.grad, alpha=group["lr"] * kept["shrink"] / kept["steps"])


@pytest.mark.parametrize("make", [*OPTIMIZERS.values(), Counting], ids=[*OPTIMIZERS, "own"])
def test_every_optimizers_state_is_kept(make):
    """A state_dict, and a deep copy, go on with the bits of the original."""
    blocks, loaded = own_blocks(optimizer=make), own_blocks(optimizer=make)
    blocks.train_steps(X, Y, INDICES[:3])
    loaded.load_state_dict(state(blocks))
    copied = copy.deepcopy(blocks)
    for each in (blocks, loaded, copied):
        each.train_steps(X, Y, INDICES[3:])
    for each in (loaded, copied):
        assert state(each).keys() == state(blocks).keys()
        assert not changed(state(each), state(blocks))


def test_some_parameters_alone():
    """An optimizer may leave out parameters; a network may have frozen ones."""
    blocks = own_blocks(optimizer=lambda params: torch.optim.SGD(params[:1], lr=0.1))
    blocks.block(1).norm.requires_grad_(False)
    before = state(blocks)
    blocks.train_steps(X, Y, INDICES)
    moved = changed(before, state(blocks))
    assert {name for name in moved if name.endswith(("weight", "bias"))} == {
        f"networks.{i}.hidden.weight" for i in range(3)
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", GOALS)
def test_a_gpu_follows_the_cpu(kind):
    blocks = [own_blocks(kind, encoder=own_encoder()) for _ in range(2)]
    for each in blocks:
        each.apply(lambda part: setattr(part, "p", 0.0) if isinstance(part, nn.Dropout) else None)
    blocks[1].train_steps(X, Y, INDICES[:2])  # so that the optimizers' state moves too
    blocks[0].train_steps(X, Y, INDICES[:2])
    blocks[1].to("cuda")
    here = blocks[0].train_steps(X, Y, INDICES[2:])
    there = blocks[1].train_steps(X.cuda(), Y.cuda(), INDICES[2:].cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)
    steps = {"steps": 4} if blocks[0].goal.timed else {}
    got, want = blocks[1].predict(X.cuda(), **steps).z, blocks[0].predict(X, **steps).z
    torch.testing.assert_close(got.cpu(), want, rtol=1e-2, atol=1e-2)
    for each in blocks:  # back on the CPU it goes on
        each.to("cpu").train_steps(X, Y, INDICES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dropout_on_a_gpu_follows_from_seed_block_and_step():
    one, other = (own_blocks().to("cuda") for _ in range(2))
    given = X.cuda(), Y.cuda()
    one.train_steps(*given, INDICES.cuda())
    for k in range(len(INDICES)):
        torch.rand(3, device="cuda")
        before = torch.cuda.get_rng_state()
        other.train_steps(*given, INDICES[k : k + 1].cuda())
        assert torch.equal(torch.cuda.get_rng_state(), before)
    for name, value in state(one).items():
        torch.testing.assert_close(value, state(other)[name], rtol=1e-3, atol=1e-4)


def test_a_model_trains_in_the_callers_autocast():
    model = noprop.Model(own_blocks())
    with torch.autocast("cpu", torch.bfloat16):
        noprop.fit(model, X, Y, epochs=20, batch_size=16)
        assert (model.predict(X).labels == Y).float().mean() > 0.9
