"""Dropout by address, the gradients of maps, and pixels that nothing reads."""

import dataclasses

import torch

import noprop_kernels as nk
from noprop_kernels import philox
from support.blocks import GOAL, B, D, assert_close, images, make_images, numbers

ROWS = torch.arange(2 * B).view(2, B)


def two_maps(kernel_size: int, rates: tuple[float, float], **options) -> nk.DenoisingBlocks:
    """logits = a map of x + a map of z, each with its dropout, as blocks in train mode."""
    c1, c2 = (
        nk.Conv2d(source, 3, kernel_size, activation="relu", dropout=rate, **options)
        for source, rate in zip(("x", "z"), rates, strict=True)
    )
    plan = nk.Plan(
        {"x": (1, 6, 7), "z": (2, 6, 7)}, {"c1": c1, "c2": dataclasses.replace(c2, add="c1")}
    )
    M = plan.widths["c2"]
    return nk.DenoisingBlocks(plan, GOAL, embedding=numbers(M, 84), seed=[5, 6])


def test_dropout_is_by_address(backend) -> None:
    """Sites 0 and 1 of stream 3, a column for each channel of a pixel in turn; none in eval."""
    blocks, rates = two_maps(3, (0.25, 0.6), pool=nk.MaxPool2d()), (0.25, 0.6)
    with torch.no_grad():
        for name, value in blocks.named_parameters():  # maps of 1 and 10, and kept parts decode
            value.fill_({"c1.bias": 1.0, "c2.bias": 10.0}.get(name, 0.0))
    x, z = torch.rand(50, 1, 6, 7), torch.rand(50, 84)
    blocks.advance()
    blocks.advance()
    got = blocks(x, z, blocks=[3, 1])
    seeds, draw, block = torch.tensor([5, 5, 6, 6]), 2, torch.tensor([2, 0, 2, 0])
    want = torch.zeros(4, 50, 12)
    for site, (rate, size) in enumerate(zip(rates, (1, 10), strict=True)):
        uniform = philox.uniform(seeds, philox.STREAM_DROPOUT, site, draw, block, 50, 12)
        by_pixel = uniform.unflatten(-1, (4, 3)).mT.flatten(-2)
        want += torch.where(by_pixel >= rate, size / (1 - rate), 0)
    torch.testing.assert_close(got, want)
    assert torch.equal(blocks.eval()(x, z), torch.full((6, 50, 12), 11.0))


def test_a_block_s_dropout_does_not_depend_on_which_blocks_run(backend) -> None:
    x, y = images()
    alone, held = make_images(), make_images(held=[3])
    want = make_images()(x, numbers(B, D))[2]
    assert torch.equal(alone(x, numbers(B, D), blocks=3)[0], want)
    assert torch.equal(make_images()(x, numbers(B, D), blocks=[3, 1])[0], want)
    assert torch.equal(held(x, numbers(B, D))[0], want)
    losses = make_images().train_steps(*images(20), ROWS)[:, 2:]
    assert torch.equal(alone.train_steps(*images(20), ROWS, blocks=3), losses)


def test_parts_of_a_batch_have_the_dropout_of_the_whole(backend) -> None:
    blocks = two_maps(3, (0.25, 0.6))
    x, y = numbers(9, 1, 6, 7), torch.arange(9)
    whole = blocks.gradients(x, y)
    parts = blocks.gradients(x[:4], y[:4], rows=9)
    parts = parts + blocks.gradients(x[4:], y[4:], first_row=4, rows=9)
    assert_close(parts.error, whole.error, "error")
    for name, want in whole.by_name.items():
        assert_close(parts.by_name[name], want, name)


def test_a_gradient_is_zero_exactly_where_the_result_is(backend) -> None:
    blocks = two_maps(1, (0.5, 0.5))
    with torch.no_grad():
        for name in ("c2.weight", "c2.bias", "c1.bias"):
            blocks.get_parameter(name).zero_()
        weight = blocks.get_parameter("c1.weight")
        weight[:, 0], weight[:, 1:] = 1.0, -1.0  # one channel of three is ever active
    x = (torch.rand(B, 1, 6, 7) + 0.1).requires_grad_()
    result = blocks(x, torch.ones(B, 84), blocks=2)[0]
    result.backward(torch.ones_like(result))
    active = result.view(B, 3, 6, 7)[:, :1] != 0
    assert active.any() and not active.all()
    assert torch.equal(x.grad != 0, active)


def test_pixels_that_no_live_window_reads_change_nothing(backend) -> None:
    """The last column of x: c1's pool drops that of its map."""
    x, y = images()
    dead = x.clone()
    dead[..., -1] = 1e30
    first, again = make_images(), make_images()
    steps = [each.train_step(v, y, input_grad=True) for each, v in ((first, x), (again, dead))]
    assert torch.equal(steps[0].loss, steps[1].loss) and torch.equal(steps[0].d_x, steps[1].d_x)
    assert steps[0].d_x[..., :-1].any() and not steps[0].d_x[..., -1].any()
    assert all(torch.equal(again.state_dict()[key], v) for key, v in first.state_dict().items())
    answers = [blocks.predict(v).logits for blocks, v in ((first, x), (again, dead))]
    assert torch.equal(*answers)


def test_the_cpu_kernels_do_not_even_look_at_them() -> None:
    """NaN would be refused in x; z may have it."""
    blocks = two_maps(3, (0.25, 0.6), pool=nk.MaxPool2d())
    results = []
    for value in (0.5, torch.nan):
        x, z = torch.rand(B, 1, 6, 7).fill_(0.3).requires_grad_(), numbers(B, 2, 6, 7)
        z[..., -1] = value
        logits = blocks(x, z.requires_grad_())
        results.append([logits, *torch.autograd.grad(logits.sum(), [z, *blocks.parameters()])])
    assert all(map(torch.equal, *results)) and results[0][0].any()
    assert not results[0][1][..., -1].any()
