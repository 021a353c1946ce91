"""Plans with convolutions, pools and dropout: every public call beside the reference."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import tuning
from support.blocks import (
    GOAL,
    IMAGE,
    IMAGES,
    B,
    D,
    M,
    T,
    images,
    make_images,
    numbers,
    snapshot,
)

Call = Callable[[nk.DenoisingBlocks], list[Tensor]]
ROWS = torch.arange(2 * B).view(2, B)
MEAN_STD = ([0.4, 0.5], [0.2, 0.3])
CALLS: dict[str, Call] = {}


def call(function: Call) -> Call:
    CALLS[function.__name__] = function
    return function


def bytes_of(x: Tensor) -> Tensor:
    return (255 * x).to(torch.uint8)


@call
def train_step(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, y = images()
    step = blocks.train_step(x, y, input_grad=True, levels_grad=True)
    assert step.d_x.shape == (2 * T, B, *IMAGE)
    return [step.loss, step.error, step.d_x, step.d_signal, step.d_noise, step.d_W_embed]


@call
def train_step_of_each_slice_s_images(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, y = images(2 * T * B)
    x = x.view(2 * T, B, *IMAGE)
    step = blocks.train_step(x, y[:B], z=numbers(2 * T, B, D), input_grad=True)
    return [step.loss, step.d_x, step.d_z]


@call
def train_steps(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    return [blocks.train_steps(*images(20), ROWS)]


@call
def train_steps_by_replica(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    return [blocks.train_steps(*images(30), torch.arange(4 * B).view(2, 2, B), blocks=[3, 1])]


@call
def train_steps_on_bytes(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, y = images(20)
    return [blocks.train_steps(bytes_of(x), y, ROWS, normalize=MEAN_STD)]


@call
def train_steps_on_bfloat16(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, y = images(20)
    return [blocks.train_steps(x.bfloat16(), y, ROWS)]


@call
def train_steps_on_batches(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, y = images(20)
    return [blocks.train_steps(x[ROWS], y[ROWS], None)]


@call
def train_steps_on_batches_of_bytes(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, y = images(20)
    return [blocks.train_steps(bytes_of(x[ROWS]), y[ROWS], None, normalize=MEAN_STD)]


@call
def gradients_and_update(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    gradients = blocks.gradients(*images(), step=5, first_row=3, rows=20)
    assert blocks.update(gradients).all()
    return [gradients.loss, *gradients.by_name.values(), *gradients.stats.values()]


@call
def loss(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, y = images()
    x.requires_grad_()
    losses = blocks.loss(x, y, blocks=[2, 3])
    losses.sum().backward()
    return [losses, x.grad, *(p.grad for p in blocks.parameters())]


@call
def loss_of_the_caller_s_own(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, z = images()[0].requires_grad_(), numbers(2 * T, B, D).requires_grad_()
    logits = blocks(x, z)
    (logits.square() * numbers(*logits.shape)).sum().backward()
    return [logits, x.grad, z.grad, *(p.grad for p in blocks.parameters())]


@call
def backward_update(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    logits = blocks(images()[0].requires_grad_(), numbers(B, D), blocks=2)
    update = blocks.backward_update(logits, numbers(*logits.shape))
    assert update.applied.all() and update.d_x.shape == (2, B, *IMAGE)
    return [update.d_x]


@call
def forward_in_eval(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    return [blocks.eval()(images()[0], numbers(B, D)), blocks(images(0)[0], numbers(0, D))]


@call
def predict(blocks: nk.DenoisingBlocks) -> list[Tensor]:
    x, options = images()[0], {"samples": 2, "keep": "all", "first_row": 5, "seed": 9}
    made = [blocks.predict(x, noise=False), blocks.predict(x, **options), blocks.predict(x[:1])]
    made += [blocks.predict(torch.stack([x, 2 * x])), blocks.predict(x[:0])]
    return [value for each in made for value in (each.logits, each.u_hat, each.z)]


def assert_close(got: Tensor, want: Tensor, name: str) -> None:
    """Equal up to another order of sums in float32."""
    scale = want.abs().max().item() if want.numel() else 0.0
    torch.testing.assert_close(
        got, want, rtol=1e-5, atol=1e-6 + 1e-5 * scale, msg=lambda m: f"{name}: {m}"
    )


@pytest.mark.parametrize("name", CALLS)
def test_the_cpu_kernels_do_what_the_reference_does(name: str) -> None:
    sgd = nk.SGD(lr=0.1, momentum=0.9)  # Adam would make much of the rounding of a tiny gradient
    made = [
        make_images(backend=backend, seed=[0, 1], optimizer=sgd) for backend in ("cpu", "reference")
    ]
    results = [CALLS[name](blocks) for blocks in made]
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        assert_close(got.detach(), want.detach(), f"result {i}")
    states = [snapshot(blocks) for blocks in made]
    for key, want in states[1].items():
        assert_close(states[0][key], want, key)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backends_refuse_convolutions_by_name(backend: str, name: str, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    blocks = make_images(backend=backend, seed=[0, 1])
    before = snapshot(blocks)
    text = f"{backend}: has no kernels for Conv2d layers, which cpu and reference can run"
    with pytest.raises(nk.BackendError, match=text):
        CALLS[name](blocks)
    assert all(torch.equal(value, before[key]) for key, value in snapshot(blocks).items())


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_noise_of_such_blocks_is_refused_too_and_explain_says_why(backend: str) -> None:
    blocks = make_images(backend=backend)
    with pytest.raises(nk.BackendError, match="no kernels for Conv2d layers"):
        blocks.add_noise(images()[1])
    with pytest.raises(nk.BackendError, match="no kernels for Conv2d layers"):
        tuning.tune(blocks, *images())
    text = nk.explain(blocks)
    assert f"no backend can run it (forced by backend={backend!r})".replace("'", '"') in text
    assert f"{backend}: has no kernels for Conv2d layers, which cpu and reference can run" in text
    assert nk.explain(IMAGES).startswith("Plan on cpu, float32: cpu\n")


# the forms that images come in


def test_images_may_be_rows_and_those_of_one_channel_have_no_channels(backend) -> None:
    x, y = images()
    losses = [make_images().train_step(rows, y).loss for rows in (x, x.flatten(1))]
    assert torch.equal(*losses)
    plan = nk.Plan(
        {"x": (1, 5, 6), "z": (D,)},
        {"c": nk.Conv2d("x", 2), "logits": nk.Dense(("c", "z"), M)},
    )
    x = torch.rand(B, 1, 5, 6)
    made = [nk.DenoisingBlocks(plan, GOAL) for _ in range(3)]
    forms = (x, x[:, 0], x.flatten(1))
    losses = [blocks.train_step(form, y).loss for blocks, form in zip(made, forms, strict=True)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    data = [blocks.train_steps(x, y, ROWS[:1] % B) for blocks, x in zip(made, forms, strict=True)]
    assert torch.equal(data[0], data[1]) and torch.equal(data[0], data[2])


def test_rows_that_lie_apart_are_images_too(backend) -> None:
    x, y = images()
    channels_last = x.contiguous(memory_format=torch.channels_last)
    wide = torch.full((B, 2, 12, 14), torch.nan)
    wide[..., 1:12] = x
    losses = [make_images().train_step(v, y).loss for v in (x, channels_last, wide[..., 1:12])]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


@pytest.mark.parametrize(
    "x, text",
    [
        (torch.rand(B, 12, 11, 2), r"x must have its channels first, \(..., 2, 12, 11\), got"),
        (torch.rand(B, 12, 11), r"x must be images \(..., B, 2, 12, 11\) or rows \(..., B, 264\)"),
        (torch.rand(2, 12, 11), r"x must be images .*, got \(2, 12, 11\)"),
        (torch.rand(B, 263), r"x must be images .*, got \(6, 263\)"),
        (torch.rand(264), r"x must be images .*, got \(264,\)"),
        (torch.rand(2, B, *IMAGE), r"x must have shape \(3, any, 264\), got \(2, 6, 264\)"),
        (torch.rand(B, *IMAGE).double(), "x must be torch.float32"),
        (torch.full((B, *IMAGE), torch.nan), "x must be finite"),
    ],
)
def test_what_is_no_image_of_the_plan_is_refused(backend, x: Tensor, text: str) -> None:
    blocks = make_images()
    for run in (blocks.train_step, blocks.loss):
        with pytest.raises(ValueError, match=f"{run.__name__}: {text}|forward: {text}"):
            run(x, images()[1])
    if x.ndim in (3, 4) and x.dtype == torch.float32 and x.isfinite().all():
        with pytest.raises(ValueError, match=f"train_steps: {text.replace('x must', 'X must')}"):
            blocks.train_steps(x, images()[1][: len(x)], ROWS[:1])


def test_z_may_be_an_image(backend) -> None:
    shape = (2, 8, 8)
    plan = nk.Plan(
        {"x": shape, "z": shape},
        {
            "c": nk.Conv2d("x", 3, activation="relu", pool=nk.MaxPool2d(), dropout=0.2),
            "d": nk.Conv2d("z", 3, activation="relu", pool=nk.MaxPool2d(), dropout=0.2),
            "logits": nk.Dense(("c", "d"), M),
        },
    )
    x, y = torch.rand(B, *shape), images()[1]
    embedding = torch.rand(M, 128, generator=torch.Generator().manual_seed(1))
    first, again = (nk.DenoisingBlocks(plan, GOAL, embedding=embedding) for _ in range(2))
    z = first.add_noise(y)
    assert z.shape == (T, B, 128)
    step = first.train_step(x, y, z=z.view(T, B, *shape), input_grad=True)
    assert step.d_z.shape == (T, B, *shape)
    assert torch.equal(step.loss, again.train_step(x, y, z=z).loss)
    leaves = z.clone().requires_grad_(), z.view(T, B, *shape).clone().requires_grad_()
    for leaf in leaves:
        first(x, leaf).square().sum().backward()
    assert torch.equal(leaves[0].grad.view(T, B, *shape), leaves[1].grad)
    assert first.predict(x).z.shape == (1, 1, B, 128)


# plain modules, copies, the compiler


def test_plain_modules_and_exported_programs_compute_what_blocks_do(backend) -> None:
    x, z = images()[0], numbers(B, D)
    blocks, other = make_images(), make_images(seed=5).eval()
    blocks.train_step(*images())
    blocks.eval()
    modules, want = blocks.to_modules(), blocks(x, z)
    for rows in (x, x.flatten(1)):
        assert_close(torch.stack([module(rows, z) for module in modules]), want, "modules")
    assert_close(blocks.block(2)(x, z), want[1], "block")
    other.load_modules(modules)
    assert torch.equal(other(x, z), want)
    program = torch.export.export(modules[0], (x, z)).module()
    assert_close(program(x, z), want[0], "program")


def test_copies_go_on_with_the_same_dropout(backend) -> None:
    blocks = make_images()
    blocks.train_step(*images())
    loaded = make_images(seed=0)
    loaded.load_state_dict(blocks.state_dict())
    copies = [copy.deepcopy(blocks), pickle.loads(pickle.dumps(blocks)), loaded]
    want = blocks.train_step(*images()).loss
    assert all(torch.equal(each.train_step(*images()).loss, want) for each in copies)


def test_forward_compiles_whole_and_backward_has_its_dropout() -> None:
    """Bit for bit eager code's, at each draw, with other steps counted before backward."""
    blocks, twin = (make_images(seed=[0, 1]) for _ in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, z: blocks(x, z, blocks=[3, 1]), backend="aot_eager", fullgraph=True
    )
    x, z = images()[0].requires_grad_(), numbers(4, B, D).requires_grad_()
    before = None
    for _ in range(2):
        got, want = compiled(x, z), twin(x, z, blocks=[3, 1])
        assert torch.equal(got, want) and (before is None or not torch.equal(got, before))
        before = got
        blocks.draws[:] += 1
        twin.draws[:] += 1
        grads = [
            torch.autograd.grad(value.square().sum(), [x, z, *each.parameters()])
            for value, each in ((got, blocks), (want, twin))
        ]
        assert all(map(torch.equal, *grads))
    states = [snapshot(each) for each in (blocks, twin)]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_predict_compiles_whole() -> None:
    blocks, x = make_images(), images()[0]
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: blocks.predict(x).z, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), blocks.predict(x).z)
