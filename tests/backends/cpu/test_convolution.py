"""Convolutions on the CPU kernels: results, gradients and steps beside torch's in float64."""

import copy
from collections.abc import Iterator

import pytest
import torch

import noprop_kernels as nk
from support.compare import assert_matches
from support.convolutions import F64, M, PLANS, Twin, blocks_of, results, rows_apart

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
    got |= {"d_x": step.d_x, "d_z": step.d_z, "value": step.loss}
    assert_all_match(got, inputs, before, lambda twin, logits: twin.loss(twin.error(logits, y)))
    for name, m in got.items():
        if name in blocks.plan.parameters():
            assert torch.equal(state[name], before.state_dict()[name] - lr * m), name
    before.train_step(inputs["x"], y, z=z)  # the input's gradient does not change a bit
    for name, value in before.state_dict().items():
        assert torch.equal(value, state[name]), name
