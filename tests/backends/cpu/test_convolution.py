"""Convolutions on the CPU kernels: results, gradients and steps beside torch's in float64."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import philox, plans
from noprop_kernels.plan import Conv2d, Dense, MaxPool2d
from support.compare import assert_matches
from support.convolutions import F64, PLANS, D, M, Twin, blocks_of, plan_of, results, rows_apart

ROWS = (1, 7, 16, 33, 128)
CASES = [(plan, ROWS[(p + i) % 5]) for p, plan in enumerate(PLANS) for i in (0, 2)]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty then holds NaN: outputs, and what a forward saves for its backward."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_all_match(got: dict, inputs: dict, blocks: nk.DenoisingBlocks, objective) -> None:
    exact, plain = (results(blocks, inputs, objective, dtype) for dtype in (F64, torch.float32))
    for name, value in got.items():
        assert_matches(value.detach(), exact[name], plain[name], terms=16, name=name)


@pytest.mark.parametrize("plan, B", CASES)
def test_autograd(plan: str, B: int) -> None:
    blocks = blocks_of(PLANS[plan])
    blocks.draws += 6
    n = len(blocks)
    inputs = rows_apart([Twin(blocks, i, F64) for i in range(n)], B)
    d_logits = torch.randn(n, B, M, generator=torch.Generator().manual_seed(B))
    leaves = {name: x.expand(n, -1, -1).clone().requires_grad_() for name, x in inputs.items()}
    logits = blocks(leaves["x"], leaves["z"])
    logits.backward(d_logits)
    got = {name: value.grad for name, value in blocks.named_parameters()}
    got |= {f"d_{name}": leaf.grad for name, leaf in leaves.items()} | {"logits": logits}
    assert_all_match(got, inputs, blocks, lambda twin, logits: (logits * d_logits[twin.i]).sum())


@pytest.mark.parametrize("plan, B", CASES)
def test_step(plan: str, B: int) -> None:
    """Of SGD with momentum, whose first m is the gradient."""
    lr = 0.5  # whose products are exact
    blocks = blocks_of(PLANS[plan], optimizer=nk.SGD(momentum=0.9, lr=lr))
    n, before = len(blocks), copy.deepcopy(blocks)
    inputs = rows_apart([Twin(blocks, i, F64) for i in range(n)], B)
    y = torch.randint(M, (B,), generator=torch.Generator().manual_seed(B))
    z = inputs["z"].expand(n, B, -1).contiguous()
    step = blocks.train_step(inputs["x"], y, z=z, input_grad=True)
    state = blocks.state_dict()
    got = {name: state[f"{name}_m"] for name in blocks.plan.parameters()}
    got |= {"d_x": step.d_x.flatten(2), "d_z": step.d_z.flatten(2), "value": step.loss}
    assert_all_match(got, inputs, before, lambda twin, logits: twin.loss(twin.error(logits, y)))
    for name, m in got.items():
        if name in blocks.plan.parameters():
            assert torch.equal(state[name], before.state_dict()[name] - lr * m), name
    before.train_step(inputs["x"], y, z=z)  # the input's gradient does not change a bit
    assert_state(before, state)


def assert_state(blocks: nk.DenoisingBlocks, state: dict[str, Tensor]) -> None:
    for name, value in blocks.state_dict().items():
        assert torch.equal(value.nan_to_num(7), state[name].nan_to_num(7)), name


# an eps far above the roundings of gradients, whose signs would else decide an update
RULES = {
    "sgd": (nk.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (nk.Adam, torch.optim.Adam, {"lr": 0.002, "eps": 1e-3}),
    "adamw": (nk.AdamW, torch.optim.AdamW, {"lr": 0.002, "eps": 1e-3, "weight_decay": 0.1}),
}


TERMS = 4096  # batch norm of a few rows magnifies each rounding of three steps


@pytest.mark.parametrize("rule, dropout", [("sgd", 0.2), ("adam", 0.0), ("adamw", 0.2)])
def test_three_steps_of_the_paper_s_block(rule: str, dropout: float) -> None:
    """Beside torch.optim in float64; the reference obeys the same rule."""
    B, (ours, of_torch, options) = 6, RULES[rule]
    plan = plans.paper_dt((1, 14, 14), M, M, dropout=dropout)
    made = [
        blocks_of(plan, embedding=None, optimizer=ours(**options), backend=backend)
        for backend in ("cpu", "reference")
    ]
    exact, plain = ([Twin(made[0], i, dtype) for i in range(2)] for dtype in (F64, torch.float32))
    optimizers = {twin: of_torch(twin.params.values(), **options) for twin in (*exact, *plain)}
    for step in range(3):
        y = torch.randint(M, (B,), generator=torch.Generator().manual_seed(step))
        z = made[0].add_noise(y)
        x = rows_apart(exact, B, z, seed=step, margin=1e-5)["x"]
        losses = []
        for twin, optimizer in optimizers.items():
            rows = {"x": x.to(twin.dtype), "z": z[twin.i].to(twin.dtype)}
            loss = twin.loss(twin.error(twin.logits(rows), y))
            optimizer.zero_grad()
            loss.backward()
            for name, layer in plan.dense.items():
                if layer.norm is not None:  # the batch's mean takes the bias away
                    twin.params[f"{name}.bias"].grad.zero_()
            optimizer.step()
            losses.append(loss.detach())
        for blocks in made:
            loss = blocks.train_step(x, y).loss
            assert_matches(loss, torch.stack(losses[:2]), torch.stack(losses[2:]), TERMS, "loss")
    # f1's norm takes sum.norm.bias away, whose gradient is then of roundings alone: its move has
    # the size of the gradients that cancel, times at most lr / eps of Adam
    grads = [param.grad.abs().max() for twin in exact for param in twin.params.values()]
    summand = float(max(grads)) * options["lr"] / options.get("eps", 1.0)
    for blocks in made:
        state = blocks.state_dict()
        for group in ("params", "stats"):
            for name in getattr(exact[0], group):
                truth, torch_s = (
                    torch.stack([getattr(twin, group)[name].detach() for twin in twins])
                    for twins in (exact, plain)
                )
                cancels = summand if name == "sum.norm.bias" else 0.0
                place = f"{blocks.backend}: {name}"
                assert_matches(state[name], truth, torch_s, TERMS, place, cancels)


def test_a_step_that_is_not_finite_changes_no_parameter() -> None:
    """Of two blocks one is not; an x that is not finite stops both before any write."""
    blocks = blocks_of(PLANS["pools"], optimizer=nk.AdamW())
    x, y = torch.randn(40, 162), torch.arange(40) % M
    with torch.no_grad():
        blocks.get_parameter("a.bias")[1, 12] = torch.nan
    before = copy.deepcopy(blocks)
    for bad in (torch.nan, torch.inf):
        given = x.clone()
        given[39, 0] = bad
        with pytest.raises(ValueError, match="x must be finite"):
            blocks.train_step(given, y)
    assert_state(blocks, before.state_dict())
    step = blocks.train_step(x, y)
    assert step.applied.tolist() == [True, False] and step.loss[1].isnan()
    state, old = blocks.state_dict(), before.state_dict()
    for name in (*blocks.plan.parameters(), "updates"):
        assert torch.equal(state[name][1].nan_to_num(7), old[name][1].nan_to_num(7)), name
        assert not torch.equal(state[name][0], old[name][0]), name
    x[0, 0], x[0, 1] = 3e38, -3e38  # finite, but their convolution is not
    with torch.no_grad():
        blocks.get_parameter("a.weight")[0].fill_(9.0)[:, :, :, 1].fill_(-9.0)
    before = copy.deepcopy(blocks)
    assert not blocks.train_step(x, y).applied.any()
    for name in (*blocks.plan.parameters(), "updates"):
        got, kept = blocks.state_dict()[name], before.state_dict()[name]
        assert torch.equal(got.nan_to_num(7), kept.nan_to_num(7)), name


def test_the_first_of_equal_pixels_gets_the_gradient() -> None:
    """Of sums that are exact: all pixels of a window are equal, or two of them."""
    plan = plan_of((1, 5, 5), a=Conv2d("x", 13, 2, pool=MaxPool2d()), logits=Dense(("a", "z"), M))
    blocks = blocks_of(plan)
    with torch.no_grad():
        for name in ("a.weight", "a.bias"):
            value = blocks.get_parameter(name)
            value.copy_((value * 16).round() / 16)
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.ones(2, 25), torch.randint(3, (38, 25), generator=rng).float()])
    inputs = {"x": x, "z": torch.zeros(40, 4)}
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    blocks(leaves["x"], leaves["z"]).sum().backward()
    exact = results(blocks, inputs, lambda twin, logits: logits.sum(), F64)
    torch.testing.assert_close(leaves["x"].grad.to(F64), exact["d_x"].sum(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("plan", ["pools", "more strips", "two readers", "dense reads x"])
@pytest.mark.parametrize("B", [3, 40])
def test_predict(plan: str, B: int) -> None:
    blocks = blocks_of(PLANS[plan], T=3)
    x = torch.randn(B, blocks.plan.widths["x"], generator=torch.Generator().manual_seed(B))
    made = blocks.predict(x, samples=2, first_row=5)
    chains = [[chain(blocks, x, sample, dtype) for sample in (0, 1)] for dtype in (F64, x.dtype)]
    for field in ("logits", "u_hat", "z"):
        exact, plain = (torch.stack([each[field] for each in samples]) for samples in chains)
        assert_matches(getattr(made, field)[:, 0], exact, plain, 16, field)


def chain(blocks: nk.DenoisingBlocks, x: Tensor, sample: int, dtype: torch.dtype) -> dict:
    """The chain of a sample by the twins, for rows from 5 on."""

    def draw(block: int) -> Tensor:
        address = (blocks.seeds[:1], philox.STREAM_INFERENCE, 0, sample, block)
        return philox.normal(*address, len(x), D, first_row=5, dtype=dtype)[0]

    z = draw(philox.BLOCK_Z_0)
    table = blocks.goal.table("ancestral", blocks.T)
    for i, numbers in enumerate(zip(table.a, table.b, table.sqrt_c, strict=True)):
        a, b, sqrt_c = (number.float().to(dtype) for number in numbers)
        twin = Twin(blocks, i, dtype)
        with torch.no_grad():
            logits = twin.logits({"x": x.to(dtype), "z": z}, training=False)
            u_hat = logits.softmax(-1) @ blocks.W_embed.to(dtype)
        z = a * u_hat + b * z + sqrt_c * draw(i)
    return {"logits": logits, "u_hat": u_hat, "z": z}
