"""Convolutions on the CPU kernels: what changes no bit, and pixels that nothing depends on."""

import copy
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.backends.cpu import extension
from noprop_kernels.plan import Conv2d, Dense
from support.blocks import snapshot
from support.convolutions import BOTH, POOL, RELU, D, M, blocks_of, plan_of

# 9 x 8 pixels of a, of which the last row is dropped; a and b have channels in several strips and
# tiles, c is read in torch's order, d by a convolution too
PLAN = plan_of(
    (3, 11, 10),
    a=Conv2d("x", 40, **BOTH, dropout=0.25),
    b=Conv2d("a", 26, 2, **RELU, dropout=0.2),
    c=Conv2d("b", 26, 1, add="b"),
    d=Conv2d("c", 5, 2, **RELU, dropout=0.5),
    h=Dense(("c", "z"), 16, **RELU),
    logits=Dense(("d", "h", "x"), M),
)
B, T = 70, 3


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty then holds NaN: outputs, and what a forward saves for its backward."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(held: list[int] | None = None, **options) -> nk.DenoisingBlocks:
    options = {"optimizer": nk.AdamW(), "T": T} | options
    return blocks_of(PLAN, held, **options)


def draw(rows: int = B, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, PLAN.widths["x"], generator=generator)
    return x, torch.randint(M, (rows,), generator=generator)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert value.isfinite().all(), name
        assert torch.equal(got[name], value), name


def everything(blocks: nk.DenoisingBlocks, which: list[int] | None) -> dict[str, Tensor]:
    """Results of every kind of call of training."""
    x, y = draw()
    grads = blocks.gradients(x, y, blocks=which)
    leaf = x.clone().requires_grad_()
    loss = blocks.loss(leaf, y, blocks=which)
    loss.sum().backward()
    found = dict(grads.by_name) | {"loss": loss.detach(), "d_x by autograd": leaf.grad}
    found |= {f"{name} by autograd": value.grad for name, value in blocks.named_parameters()}
    blocks.zero_grad()
    step = blocks.train_step(x, y, blocks=which, input_grad=True, levels_grad=True)
    found |= {name: getattr(step, name) for name in ("error", "d_x", "d_signal", "d_W_embed")}
    indices = torch.randint(B, (3, B), generator=torch.Generator().manual_seed(1))
    found["losses"] = blocks.train_steps(x, y, indices, blocks=which)
    return found | snapshot(blocks)


@pytest.mark.parametrize(
    "threads, which, precision",
    [(2, [2], "bfloat16"), (5, [2], "float32"), (2, None, "float32"), (5, None, "bfloat16")],
)
def test_threads_change_no_bit(
    kernels: ModuleType, threads: int, which: list[int] | None, precision: str, monkeypatch
) -> None:
    monkeypatch.setattr(extension, "threads", lambda: threads)
    if which:
        assert kernels.team_size(PLAN, 1, B) > 1
    got = everything(make(precision=precision), which)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    assert_same(got, everything(make(precision=precision), which))


def test_a_block_alone_is_itself_among_others() -> None:
    together = everything(make(), None)
    for t in range(1, T + 1):
        alone = everything(make([t]), None)
        for name, value in alone.items():
            if name in ("W_embed", "d_x by autograd"):  # of all blocks
                continue
            of_all = together[name]
            of_all = of_all[:, t - 1 : t] if name == "losses" else of_all[t - 1 : t]
            assert torch.equal(value, of_all), (t, name)


def test_steps_are_the_same_in_one_call_or_several() -> None:
    """And with rows of a data set or given, packed for all blocks or not, in halves or whole."""
    K, (X, Y) = 3, draw(100)
    indices = torch.randint(100, (K, B), generator=torch.Generator().manual_seed(2))
    at_once = make()
    losses = at_once.train_steps(X, Y, indices)
    expected = snapshot(at_once)
    assert losses.isfinite().all()

    def check(run) -> None:
        blocks = make()
        got = run(blocks)
        assert torch.equal(torch.as_tensor(got), losses)
        assert_same(snapshot(blocks), expected)

    def one_by_one(blocks: nk.DenoisingBlocks) -> Tensor:
        return torch.cat([blocks.train_steps(X, Y, indices[k : k + 1]) for k in range(K)])

    def step_by_step(blocks: nk.DenoisingBlocks) -> Tensor:
        return torch.stack([blocks.train_step(X[i], Y[i]).loss for i in indices])

    def by_block(blocks: nk.DenoisingBlocks) -> Tensor:
        made = [blocks.train_steps(X, Y, indices, blocks=t) for t in range(1, T + 1)]
        return torch.cat(made, 1)

    def in_halves(blocks: nk.DenoisingBlocks) -> Tensor:
        found = []
        for i in indices:
            grads = blocks.gradients(X[i], Y[i])
            assert blocks.update(grads).all()
            found.append(grads.loss)
        return torch.stack(found)

    rows = X[indices].unflatten(-1, PLAN.shapes["x"])
    for run in (one_by_one, step_by_step, by_block, in_halves):
        check(run)
    check(lambda blocks: blocks.train_steps(rows, Y[indices], None))


def test_dropout_knows_a_row_by_its_place_in_the_whole_batch() -> None:
    blocks = make()
    x, y = draw()
    whole = blocks.gradients(x, y)
    cuts = (0, 5, 38, B)
    parts = [
        blocks.gradients(x[first:last], y[first:last], first_row=first, rows=B)
        for first, last in zip(cuts, cuts[1:], strict=False)
    ]
    assert torch.equal(torch.cat([part.error for part in parts], 1), whole.error)
    total = parts[0] + parts[1] + parts[2]
    for name, value in whole.by_name.items():
        torch.testing.assert_close(total.by_name[name], value, msg=name)
    moved = blocks.gradients(x, y, first_row=1)
    assert not torch.equal(moved.error, whole.error)


@pytest.mark.parametrize("threads, precision", [(1, "float32"), (2, "float32"), (2, "bfloat16")])
def test_rows_are_predicted_alone_or_together(
    kernels: ModuleType, threads: int, precision: str, monkeypatch
) -> None:
    monkeypatch.setattr(extension, "threads", lambda: threads)
    blocks, (x, _) = make(precision=precision), draw(64)
    whole = blocks.predict(x, samples=3, keep="all")
    assert all(getattr(whole, field).isfinite().all() for field in ("logits", "u_hat", "z"))

    def check(first: int, rows: int, samples: int) -> None:
        part = blocks.predict(x[first : first + rows], samples=samples, first_row=first, keep="all")
        for field in ("logits", "u_hat", "z"):
            expected = getattr(whole, field)[:, :samples, :, first : first + rows]
            assert torch.equal(getattr(part, field), expected), (field, first, rows, samples)

    for row in range(64):
        check(row, 1, 1)
    for rows in (1, 2, 3, 5, 8, 9, 31, 64):
        half = (rows + 1) // 2
        check(0, rows, 1)
        for first, count in ((0, rows), (0, half), (half, rows - half), (64 - rows, rows)):
            if count > 0:
                check(first, count, 3)
    check(0, 64, 2)
    blocks.eval()
    z = torch.randn(T, 64, D, generator=torch.Generator().manual_seed(3))
    logits = blocks(x, z)
    for rows in (1, 5, 31):
        assert torch.equal(blocks(x[:rows], z[:, :rows]), logits[:, :rows]), rows


DEAD = {  # of x, in which the last rows and columns that nothing reads
    "one pool": (plan_of((2, 9, 9), a=Conv2d("x", 13, **BOTH), l=Dense(("a", "z"), M)), 1, 1),
    "many channels": (
        plan_of((40, 8, 9), a=Conv2d("x", 13, 2, **POOL), l=Dense(("a", "z"), M)), 1, 0
    ),
    "behind each other": (
        plan_of(
            (2, 12, 13),
            a=Conv2d("x", 26, **BOTH, dropout=0.2),
            b=Conv2d("a", 5, **BOTH),
            l=Dense(("b", "z"), M),
        ), 2, 3
    ),
    "other readers": (
        plan_of(
            (3, 8, 13),
            a=Conv2d("x", 13, 1),
            b=Conv2d("a", 5, **POOL),
            c=Conv2d("a", 5, 5, **BOTH),
            l=Dense(("b", "c", "z"), M),
        ), 0, 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DEAD)
@pytest.mark.parametrize("B", [2, 35])
def test_pixels_that_nothing_reads(case: str, B: int) -> None:
    plan, rows, columns = DEAD[case]
    C, height, width = plan.shapes["x"]
    live = torch.zeros(height, width, dtype=torch.bool)
    live[: height - rows, : width - columns] = True
    generator = torch.Generator().manual_seed(B)
    x = torch.randn(B, C, height, width, generator=generator)
    y = torch.randint(M, (B,), generator=generator)
    huge = x.clone()
    huge[..., ~live] = 1e30

    def run(x: Tensor) -> dict[str, Tensor]:
        blocks = blocks_of(plan, optimizer=nk.AdamW())
        leaf = x.clone().requires_grad_()
        blocks.loss(leaf, y).sum().backward()
        found = {f"d_{name}": value.grad for name, value in blocks.named_parameters()}
        blocks.zero_grad()
        step = blocks.train_step(x, y, input_grad=True)
        d_x = step.d_x
        for gradient in (d_x, leaf.grad):
            assert (gradient[..., ~live] == 0).all()
            assert gradient[..., live].flatten(0, -2).abs().amax(0).min() > 0
        found |= {"d_x": d_x, "d_x by autograd": leaf.grad, "loss": step.loss}
        found["losses"] = blocks.train_steps(x, y, torch.arange(B).expand(2, B).contiguous())
        found["logits"] = blocks.predict(x).logits
        found["logits of a row"] = blocks.predict(x[:1]).logits
        return found | snapshot(blocks)

    assert_same(run(huge), run(x))


@pytest.mark.parametrize("which", [[3], None])
def test_bytes_and_bfloat16_are_what_they_stand_for(which: list[int] | None) -> None:
    (X, Y), K = draw(100), 2
    indices = torch.randint(100, (K, B), generator=torch.Generator().manual_seed(2))
    byte = (X * 40 + 128).clamp(0, 255).to(torch.uint8).view(-1, *PLAN.shapes["x"])
    mean, std = torch.tensor([[0.1, 0.5, 0.7], [0.2, 0.3, 0.6]], dtype=torch.float64)
    shape = (3, 1, 1)
    shift, scale = (255 * mean).float().view(shape), (1 / (255 * std)).float().view(shape)
    half = X.to(torch.bfloat16)
    pairs = [
        ((byte, (mean, std)), ((byte.float() - shift) * scale, None)),
        ((half, None), (half.float(), None)),
    ]
    for given in pairs:
        made = []
        for data, normalize in given:
            blocks = make()
            losses = blocks.train_steps(data, Y, indices, normalize=normalize, blocks=which)
            made.append({"losses": losses} | snapshot(blocks))
        assert_same(*made)
        one = make()
        rows = given[1][0][indices[0]]
        loss = one.train_step(rows, Y[indices[0]], blocks=which).loss
        assert torch.equal(loss, made[0]["losses"][0])


def test_replicas_have_batches_of_their_own() -> None:
    X, Y = draw(100)
    indices = torch.randint(100, (2, 2, B), generator=torch.Generator().manual_seed(2))
    both = make(seed=[3, 8])
    losses = both.train_steps(X, Y, indices)
    for r, seed in enumerate((3, 8)):
        alone = make(seed=seed)
        part = slice(r * T, (r + 1) * T)
        assert torch.equal(alone.train_steps(X, Y, indices[:, r]), losses[:, part])
        state = snapshot(both)
        for name, value in snapshot(alone).items():
            assert torch.equal(value, state[name] if name == "W_embed" else state[name][part]), name


def test_a_backward_can_be_run_again() -> None:
    """It reads what the forward saved, and leaves it as it was."""
    blocks, (x, y) = make(), draw()
    loss = blocks.loss(x, y).sum()
    loss.backward(retain_graph=True)
    first = {name: value.grad.clone() for name, value in blocks.named_parameters()}
    blocks.zero_grad()
    copy.deepcopy(blocks).train_step(x, y)  # other work in the same memory
    loss.backward()
    assert_same({name: value.grad for name, value in blocks.named_parameters()}, first)
