"""What ModuleBlocks refuses, by name and before anything has changed."""

import copy

import pytest
import torch
from torch import nn

import noprop
import noprop_kernels as nk
from support.networks import GOALS, F, M, Net, changed, own_blocks, own_encoder, rows, state

X, Y = rows(40)
INDICES = torch.arange(32).view(2, 16)
DT = GOALS["dt"]


def nets(count: int = 3) -> list[nn.Module]:
    return [Net() for _ in range(count)]


def with_shared_layer() -> list[nn.Module]:
    networks = nets()
    networks[2].logits = networks[0].logits
    return networks


def with_shared_memory() -> list[nn.Module]:
    networks = nets()
    networks[1].logits.weight = nn.Parameter(networks[0].logits.weight.detach())
    return networks


def with_shared_statistics() -> list[nn.Module]:
    networks = nets()
    networks[2].norm.running_mean = networks[1].norm.running_mean
    return networks


def of_two_rates(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": params[:1], "lr": 0.0}, {"params": params[1:], "lr": 0.1}])


@pytest.mark.parametrize(
    "networks, options, wrong",
    [
        (nets(2), {}, "networks must be 3, T of each seed, got 2"),
        (nets(3), {"seed": [1, 2]}, "networks must be 6, T of each seed, got 3"),
        (Net(), {}, "networks must be a list or a function of t, got Net"),
        (7, {}, "networks must be a list or a function of t, got int"),
        ([1, 2, 3], {}, "networks must be nn.Modules, got int among them"),
        (lambda t: None, {}, "networks must be nn.Modules, got NoneType among them"),
        ([Net()] * 3, {}, "networks must share no tensor"),
        (with_shared_layer(), {}, "got logits.weight of network 1 and logits.weight of network 3"),
        (with_shared_memory(), {}, "got logits.weight of network 1 and logits.weight of network 2"),
        (with_shared_statistics(), {}, "got norm.running_mean of network 2 and norm.running_mean"),
        ([nn.LazyLinear(3) for _ in range(3)], {}, "must be initialised, got a lazy one"),
        ([Net().double() for _ in range(3)], {}, "must be torch.float32, got torch.float64"),
        ([Net().to("meta") for _ in range(3)], {}, "must be on the CPU"),
        ([nn.Identity() for _ in range(3)], {}, "network 1 must have parameters that require"),
        (nets(), {"embedding": torch.ones(4, 2)}, "embedding must have shape"),
        (nets(), {"x_shape": 6}, "x_shape must be a tuple of sizes, got 6"),
        (nets(), {"x_shape": (3, 0)}, "x_shape must be an integer of at least 1, got 0"),
        (nets(), {"time_width": 4}, "time_width must be even, and None under a DT, got 4"),
        (nets(), {"encoder": 3}, "encoder must be an nn.Module, got int"),
        (nets(), {"share_encoder": True}, "share_encoder must be true or false, and false without"),
        (nets(), {"precision": "tf32"}, "precision must be one of"),
        (nets(), {"seed": "a"}, "seed must be an int64"),
        (nets(), {"optimizer": lambda params: None}, "optimizer must make a torch.optim.Optimizer"),
        (nets(), {"optimizer": torch.optim.LBFGS}, "must take its steps without a closure"),
        (nets(), {"optimizer": of_two_rates}, "must have a first rate above 0"),
        (
            nets(),
            {"optimizer": lambda params: torch.optim.SGD(Net().parameters())},
            "optimizer must make an optimizer of the parameters that it is given, got one with",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments(networks, options, wrong):
    with pytest.raises(ValueError, match="ModuleBlocks: ") as raised:
        noprop.ModuleBlocks(networks, DT, M, **options)
    assert wrong in str(raised.value)


@pytest.mark.parametrize(
    "goal, wrong",
    [
        (3, "goal must be a DT, CT or FM, got int"),
        (nk.CT(nk.GammaNetwork(4)), "goal must have a fixed schedule, got a GammaNetwork"),
    ],
    ids=str,
)
def test_goals(goal, wrong):
    with pytest.raises(ValueError, match=wrong):
        noprop.ModuleBlocks(nets(), goal, M)


def test_one_optimizer_for_all_is_refused():
    """It would have every block's parameters, whichever block asks."""
    networks = nets()
    optimizer = torch.optim.SGD([p for net in networks for p in net.parameters()], lr=0.1)
    with pytest.raises(ValueError, match="got one with others for network 1"):
        noprop.ModuleBlocks(networks, DT, M, optimizer=lambda params: optimizer)


class Wrong(nn.Module):
    """Answers as a Net does, then as `answer` makes of it, from the second call on."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.net, self.answer, self.calls = Net(), answer, 0

    def forward(self, x, z):
        self.calls += 1
        logits = self.net(x, z)
        return logits if self.calls == 1 else self.answer(logits)


@pytest.mark.parametrize(
    "answer, wrong",
    [
        (lambda logits: logits[:, :2], r"network 3 must return logits \(16, 3\) for 16 rows"),
        (lambda logits: logits[:4], r"must return logits \(16, 3\) .*, got \(4, 3\)"),
        (lambda logits: logits.argmax(1), r"got \(16,\) torch.int64"),
        (lambda logits: (logits, None), "must return a tensor of logits, got tuple"),
        (lambda logits: logits.detach(), "got some that require no gradient"),
        (lambda logits: 1 / 0, "division by zero"),
    ],
)
def test_a_wrong_answer_changes_nothing(answer, wrong):
    """Neither weights, nor running statistics, nor moments, nor counters, of any block."""
    networks = [Net(), Net(), Wrong(answer)]
    blocks = noprop.ModuleBlocks(networks, DT, M)
    blocks.train_steps(X, Y, INDICES[:1])
    before = state(blocks)
    with pytest.raises((ValueError, ZeroDivisionError), match=wrong):
        blocks.train_steps(X, Y, INDICES[:1])
    after = state(blocks)
    assert before.keys() == after.keys() and not changed(before, after)
    assert all(parameter.grad is None for parameter in blocks.parameters())


def test_a_wrong_encoder():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x).flatten()

    for share in (False, True):
        encoder = Flat(F, 5)
        options = {"x_shape": (F,), "encoder": encoder, "share_encoder": share}
        blocks = own_blocks(**options)
        before = state(blocks)
        with pytest.raises(ValueError, match=r"encoder must return a tensor of 16 rows, got \(80,"):
            blocks.train_steps(X, Y, INDICES)
        assert not changed(before, state(blocks))


@pytest.mark.parametrize(
    "given, wrong",
    [
        ((X[:, :0], Y[:3], INDICES), "X and Y must have the same rows"),
        ((X.double(), Y, INDICES), "X must be torch.float32 or"),
        ((X.tolist(), Y, INDICES), "X must be a tensor, got list"),
        ((X, Y.float(), INDICES), "Y must be torch.int64"),
        ((X, Y + 1, INDICES), "labels must be in 0..2, got 3"),
        ((X, Y, INDICES + 20), "indices must name rows of the data, got 40"),
        ((X, Y, INDICES.view(2, 2, 8)), "indices must have shape"),
        ((X, Y, INDICES[:, :1]), "a batch must have at least 2 rows in training with batch norm"),
    ],
)
def test_data(given, wrong):
    blocks = own_blocks()
    before = state(blocks)
    with pytest.raises(ValueError, match="train_steps: ") as raised:
        blocks.train_steps(*given)
    assert wrong in str(raised.value) and not changed(before, state(blocks))


def test_rows_of_another_shape():
    blocks = own_blocks(encoder=own_encoder())
    with pytest.raises(ValueError, match=r"X must be images .* or rows \(..., B, 6\), got"):
        blocks.train_steps(torch.ones(40, 7), Y, INDICES)
    with pytest.raises(ValueError, match="x must be images"):
        blocks.predict(torch.ones(40, 7))
    got = blocks.predict(X.view(40, 3, 2, 1), noise=False)
    assert torch.equal(got.z, blocks.predict(X, noise=False).z)


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"lr": -1.0}, "lr must be finite and at least 0"),
        ({"lr": [1.0, 2.0, 3.0]}, "lr must be a number or have shape"),
        ({"blocks": 4}, "blocks must be distinct t in 1..3"),
        ({"blocks": []}, "blocks must be distinct t in 1..3"),
        ({"normalize": (0.5, 0.0)}, "normalize must have a std above 0"),
        ({"row_weight": torch.ones(3)}, "row_weight must have shape"),
        ({"row_weight": -torch.ones(40)}, "row_weight must be finite and at least 0, got -1.0"),
    ],
    ids=str,
)
def test_options_of_steps(options, wrong):
    with pytest.raises(ValueError, match=wrong):
        own_blocks().train_steps(X, Y, INDICES, **options)


def test_options_of_chains():
    dt, ct = own_blocks(), own_blocks("ct")
    for blocks, options, wrong in [
        (dt, {"steps": 4}, "steps must be the 3 blocks"),
        (dt, {"replica": 1}, "replica must be in"),
        (dt, {"keep": 2}, "keep must be"),
        (dt, {"seed": [1, 2]}, "seed must be one or 1"),
        (dt, {"samples": 0}, "samples must be an integer of at least 1"),
        (ct, {"sampler": "ancestral", "noise": False}, "sampler must be one of"),
        (ct, {"sampler": "none"}, "sampler must be one of"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            blocks.predict(X, **options)
    with pytest.raises(ValueError, match="t must be a tensor"):
        ct(X, X[:, :M])
    with pytest.raises(ValueError, match="t must be None under a DT"):
        dt(X, X[:, :M], t=Y.double())
    with pytest.raises(ValueError, match="x and z must have the same rows, got 40 and 3"):
        dt(X, X[:3, :M])


def test_modes_and_optimizers():
    with pytest.raises(ValueError, match="optimizer must not be None here"):
        own_blocks(optimizer=None).train_steps(X, Y, INDICES)
    with pytest.raises(ValueError, match="mode must be that of train"):
        own_blocks().eval().train_steps(X, Y, INDICES)


@pytest.mark.parametrize("convert", ["double", "half"])
def test_parameters_stay_float32(convert):
    blocks = own_blocks()
    with pytest.raises(ValueError, match="parameters must stay torch.float32"):
        getattr(blocks, convert)()
    with pytest.raises(ValueError, match="have values, got torch.float32 on meta"):
        blocks.to("meta")
    blocks.train_steps(X, Y, INDICES)


def without(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    "spoil, wrong",
    [
        (without("networks.1.hidden.bias"), "without ['networks.1.hidden.bias']"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "with ['more']"),
        (
            lambda tensors: tensors.update(seeds=torch.ones(3).long()),
            "seeds must be [5, 5, 5], got",
        ),
        (lambda tensors: tensors.update(draws=-torch.ones(3).long()), "draws must be in 0.."),
        (
            lambda tensors: tensors.update({"networks.2.hidden.bias": torch.ones(4)}),
            "networks.2.hidden.bias must have shape (16,), got (4,)",
        ),
        (
            lambda tensors: tensors.update({"optimizers.3.0.exp_avg": torch.ones(4)}),
            "state_dict must be of 3 optimizers",
        ),
        (
            lambda tensors: tensors.update({"optimizers.0.99.exp_avg": torch.ones(4)}),
            "got optimizers.0.99.exp_avg",
        ),
        (
            lambda tensors: tensors.update({"optimizers.0.0.exp_avg": torch.ones(9, 16)}),
            "optimizers.0.0.exp_avg must have shape (16, 9), got (9, 16)",
        ),
    ],
)
def test_another_state(spoil, wrong):
    source, blocks = own_blocks(), own_blocks()
    source.train_steps(X, Y, INDICES)
    tensors = state(source)
    spoil(tensors)
    before = state(blocks)
    with pytest.raises(ValueError, match="load_state_dict") as raised:
        blocks.load_state_dict(tensors)
    assert wrong in str(raised.value) and not changed(before, state(blocks))


def test_ways_of_loading():
    blocks = own_blocks()
    for options in ({"strict": False}, {"assign": True}):
        with pytest.raises(ValueError, match="strict must be true and assign false"):
            blocks.load_state_dict(state(blocks), **options)
    trained = copy.deepcopy(blocks)
    trained.train_steps(X, Y, INDICES)
    with pytest.raises(ValueError, match="no optimizers where there are none"):
        own_blocks(optimizer=None).load_state_dict(state(trained))


def test_an_optimizer_that_keeps_something_else():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            self.state[self.param_groups[0]["params"][0]]["history"] = [1, 2]

    blocks = own_blocks(optimizer=Odd)
    blocks.train_steps(X, Y, INDICES)
    with pytest.raises(ValueError, match="must keep tensors and numbers, got history of Odd, list"):
        blocks.state_dict()
