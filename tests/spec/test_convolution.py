"""Plans with convolutions: counts, live pixels, the reference beside torch's own operations."""

import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import noprop_kernels as nk
from noprop import json_records
from noprop_kernels import philox, plans
from noprop_kernels.backends.reference import equations
from noprop_kernels.backends.reference.layers import backward_layers, forward_layers
from noprop_kernels.plan import Conv2d, Dense, MaxPool2d, Plan
from support.twin import F64

RATE = 0.25
IMAGES = {"mnist": ((1, 28, 28), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100)}
# Table 5 of arXiv:2503.24322v2, by data: one-hot, 20 dimensions, prototypes
COUNTS = {
    "paper_dt": {
        "mnist": (919_946, 922_506, 1_401_738),
        "cifar10": (1_215_434, 1_217_994, 1_992_714),
        "cifar100": (1_250_084, 1_229_604, 2_004_324),
    },
    "paper_ct": {
        "mnist": (867_722, 870_282, 1_482_122),
        "cifar10": (1_163_210, 1_165_770, 2_073_098),
        "cifar100": (1_197_860, 1_177_380, 2_084_708),
    },
}


@pytest.mark.parametrize("data", IMAGES)
@pytest.mark.parametrize("preset", COUNTS)
def test_the_paper_s_blocks_have_the_paper_s_parameters(preset: str, data: str) -> None:
    make, (shape, M) = getattr(plans, preset), IMAGES[data]
    pixels = shape[0] * shape[1] * shape[2]
    blocks = make(shape, M, M), make(shape, 20, M), make(shape, pixels, M, z_image=True)
    assert tuple(block.num_parameters() for block in blocks) == COUNTS[preset][data]


def test_larger_images_have_a_fourth_convolution() -> None:
    assert plans.paper_dt((3, 64, 64), 200, 200).num_parameters() == 2_402_952
    assert plans.paper_dt((3, 64, 64), 12288, 200, z_image=True).num_parameters() == 4_245_960


@pytest.mark.parametrize(
    "shape, live, forward, step",
    [
        (
            (1, 28, 28),
            {"c1": (24, 24), "c2": (10, 10), "c3": (8, 8)},
            (9.22, 7.55),
            (27.46, 22.48),
        ),
        (
            (3, 32, 32),
            {"c1": (28, 28), "c2": (12, 12), "c3": (10, 10)},
            (13.93, 11.82),
            (41.01, 34.79),
        ),
        # c4's 11 x 11 are pooled to 5 x 5, of 10 x 10. Their windows read 12 x 12 of c3's pooled
        # 13 x 13, so 24 x 24 of 27; those 26 of c2's 29; those 28 of c1's pooled 31, so 56
        (
            (3, 64, 64),
            {"c1": (56, 56), "c2": (26, 26), "c3": (24, 24), "c4": (10, 10)},
            (110.19, 89.07),
            (327.25, 264.48),
        ),
    ],
)
def test_pixels_that_a_pool_drops_are_not_live(shape, live, forward, step) -> None:
    """With a row's multiply-adds in millions, all and live: of a forward, and of a step, in which
    each product has two gradients but for those of x and z."""
    plan = plans.paper_dt(shape, 10, 10)
    assert plan.live() == live
    work = {name: plan.multiply_adds(name) for name in plan.layers}
    needed = work | {
        name: plan.fan_in(name) * plan.shapes[name][0] * height * width
        for name, (height, width) in live.items()
    }
    totals = [sum(each.values()) for each in (work, needed)]
    assert tuple(round(total / 1e6, 2) for total in totals) == forward
    unasked = [each["c1"] + each["hz"] for each in (work, needed)]
    steps = [3 * total - less for total, less in zip(totals, unasked, strict=True)]
    assert tuple(round(total / 1e6, 2) for total in steps) == step


def test_every_reader_counts_for_what_is_live() -> None:
    pooled = {"pool": MaxPool2d()}
    layers = {
        "c1": Conv2d("x", 2),  # 9 x 9, of which c2 reads 8 x 8 and c3 all
        "c2": Conv2d("c1", 2, 1, **pooled),
        "c3": Conv2d("c1", 2, 2),
        "logits": Dense(("c2", "c3", "z"), 3),
    }
    plan = Plan({"x": (1, 11, 11), "z": (3,)}, layers)
    assert plan.live() == {"c1": (9, 9), "c2": (8, 8), "c3": (8, 8)}


@pytest.mark.parametrize(
    "layer, text",
    [
        (lambda: Conv2d("x", 0), "channels must be an integer of at least 1"),
        (lambda: Conv2d("x", 2, 8), "kernel_size must be an integer of at most 7"),
        (lambda: Conv2d(("x", "z"), 2), "inputs must be one name"),
        (lambda: Conv2d("x", 2, activation="gelu"), "activation must be None or 'relu'"),
        (lambda: Conv2d("x", 2, pool=2), "pool must be None or a MaxPool2d"),
        (lambda: Conv2d("x", 2, dropout=0.1), "dropout must be 0 without activation 'relu'"),
        (lambda: Conv2d("x", 2, dropout=1, activation="relu"), r"dropout must be in \[0, 1\)"),
        (lambda: MaxPool2d(3), "kernel_size must be 2"),
        (lambda: Plan({"z": (4,)}, {"c": Conv2d("z", 2)}), r"'z' must be an image \(C, H, W\)"),
        (lambda: Plan({"z": (1, 2, 9)}, {"c": Conv2d("z", 2)}), "must be large enough"),
        (lambda: Plan({"z": (1, 9)}, {"h": Dense("z", 2)}), r"a shape \(F,\) or \(C, H, W\)"),
    ],
)
def test_what_does_not_fit_is_refused(layer, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        layer()


def small_plan(shape: tuple[int, int, int], kernel_size: int, pool: MaxPool2d | None) -> Plan:
    layers = {
        "c1": Conv2d("x", 3, kernel_size, activation="relu", pool=pool, dropout=RATE),
        "c2": Conv2d("c1", 4, 1),
        "c3": Conv2d("c2", 4, 1, activation="relu", add="c2"),
        "h": Dense(("c3", "z"), 5, activation="relu"),
        "logits": Dense("h", 3),
    }
    return Plan({"x": shape, "z": (4,)}, layers)


def by_torch(plan: Plan, params: dict, inputs: dict, kept: Tensor) -> Tensor:
    """One slice's logits by torch's operations."""
    results = dict(inputs)
    for name, layer in plan.layers.items():
        weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        if isinstance(layer, Conv2d):
            y = F.conv2d(
                results[layer.inputs].unflatten(-1, plan.shapes[layer.inputs]), weight, bias
            )
        else:
            y = F.linear(torch.cat([results[source] for source in layer.sources], -1), weight, bias)
        y = y.relu() if layer.activation else y
        y = F.max_pool2d(y, 2) if isinstance(layer, Conv2d) and layer.pool else y
        y = y.flatten(1)
        y = y * kept / (1 - RATE) if name == "c1" else y
        results[name] = y + results[layer.add] if layer.add else y
    return results[plan.output]


@pytest.mark.parametrize("pool", [None, MaxPool2d()])
@pytest.mark.parametrize(
    "shape, kernel_size", [((1, 5, 5), 3), ((3, 7, 6), 3), ((2, 9, 9), 4), ((5, 6, 6), 1)]
)
def test_results_and_gradients_are_torch_s(shape, kernel_size, pool) -> None:
    plan, n, B = small_plan(shape, kernel_size, pool), 2, 6
    rng = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=rng, dtype=F64)

    params = {name: draw(n, *size) for name, size in plan.parameters().items()}
    inputs = {"x": draw(n, B, plan.widths["x"]), "z": draw(n, B, 4)}
    channels, height, width = plan.shapes["c1"]
    uniform = torch.rand(n, B, plan.widths["c1"], generator=rng, dtype=F64)
    saved = forward_layers(
        plan, params, {}, inputs, training=True, uniform=lambda name, columns: uniform
    )
    d_logits = draw(n, B, 3)
    grads, d_inputs = backward_layers(plan, params, saved, d_logits, frozenset({"x", "z"}))
    # dropout's numbers go pixel by pixel, a result's features channel by channel
    kept = (uniform >= RATE).to(F64).view(n, B, height * width, channels).mT.flatten(2)
    for i in range(n):
        leaves = {name: value[i].clone().requires_grad_() for name, value in params.items()}
        rows = {name: value[i].clone().requires_grad_() for name, value in inputs.items()}
        logits = by_torch(plan, leaves, rows, kept[i])
        assert_close(saved.results["logits"][i], logits.detach())
        logits.backward(d_logits[i])
        for got, expected in ((grads, leaves), (d_inputs, rows)):
            for name, value in expected.items():
                assert_close(got[name][i], value.grad, msg=name)


class Convolved(torch.autograd.Function):
    """The reference's convolution and pool, with their gradients, as a node of torch's graph."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = equations.conv2d(x, weight, bias)
        pooled, ctx.place = equations.max_pool(y)
        ctx.size = y.shape[3:]
        ctx.save_for_backward(x, weight)
        return pooled

    @staticmethod
    def backward(ctx, d_pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        d_y = equations.max_pool_gradient(d_pooled, ctx.place, ctx.size)
        return (
            equations.conv2d_input_gradient(d_y, weight),
            equations.conv2d_weight_gradient(d_y, x, weight.shape[-1]),
            equations.sum_rows(d_y.flatten(3).sum(-1)),
        )


@pytest.mark.parametrize("shape, kernel_size", [((2, 5, 6), 3), ((1, 4, 4), 1), ((3, 6, 5), 2)])
def test_the_reference_s_convolution_passes_gradcheck(shape, kernel_size: int) -> None:
    rng = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(2, *size, generator=rng, dtype=F64).requires_grad_()

    weight = draw(3, shape[0], kernel_size, kernel_size)
    torch.autograd.gradcheck(Convolved.apply, (draw(2, *shape), weight, draw(3)))


def test_the_first_of_equal_pixels_gets_a_pool_s_gradient() -> None:
    y = torch.tensor([[1.0, 1, 0, 2], [1, 1, 2, 2]])[None, None, None]
    found, place = equations.max_pool(y)
    assert found.tolist() == [[[[[1, 2]]]]] and place.tolist() == [[[[[0, 1]]]]]
    d_y = equations.max_pool_gradient(torch.tensor([[[[[3.0, 5]]]]]), place, (3, 4))
    assert d_y[0, 0, 0].tolist() == [[3, 0, 0, 5], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_dropout_keeps_its_share_by_address() -> None:
    seeds = torch.tensor([3])
    numbers = philox.uniform(seeds, philox.STREAM_DROPOUT, 1, 5, 2, 1000, 1000)
    kept = equations.dropout(torch.ones(1, 1000, 1000), numbers, 0.2)
    share = (kept > 0).double().mean().item()
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / 1e6) ** 0.5
    assert set(kept.unique().tolist()) == {0.0, 1.25}


def blocks_of(plan: Plan) -> nk.DenoisingBlocks:
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    return nk.DenoisingBlocks(plan, goal, backend="reference")


def test_images_are_accepted_as_users_have_them() -> None:
    plan = plans.paper_dt((1, 14, 14), 4, 4)
    x, y = torch.rand(8, 1, 14, 14), torch.randint(4, (8,))
    losses = [blocks_of(plan).train_step(rows, y).loss for rows in (x, x.flatten(1), x[:, 0])]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    indices = torch.arange(8).view(1, 8)
    assert torch.equal(blocks_of(plan).train_steps(x, y, indices)[0], losses[0])
    with pytest.raises(ValueError, match=r"channels first.*movedim\(-1, -3\)"):
        blocks_of(plan).train_step(x.movedim(1, -1), y)


def test_dropout_is_off_in_eval_and_another_at_each_draw() -> None:
    blocks = blocks_of(plans.paper_dt((1, 14, 14), 4, 4))
    x, z = torch.rand(3, 1, 14, 14), torch.rand(3, 4)
    first, again = blocks(x, z), blocks(x, z)
    assert torch.equal(first, again)  # forward draws nothing new until a step is counted
    blocks.advance()
    assert not torch.equal(first, blocks(x, z))
    blocks.eval()
    modules = torch.stack([module(x, z) for module in blocks.to_modules()])
    assert_close(blocks(x, z), modules)


def test_blocks_do_not_share_dropout() -> None:
    blocks = blocks_of(plans.paper_dt((1, 14, 14), 4, 4))
    x, y = torch.rand(3, 1, 14, 14), torch.randint(4, (3,))
    both, alone = blocks_of(blocks.plan), blocks_of(blocks.plan)
    loss = both.train_step(x, y).loss
    assert torch.equal(alone.train_step(x, y, blocks=2).loss, loss[1:])


@pytest.mark.parametrize("z_image", [False, True])
@pytest.mark.parametrize("preset", COUNTS)
def test_json_gives_the_plan_back(preset: str, z_image: bool) -> None:
    plan = getattr(plans, preset)((1, 28, 28), 784, 10, z_image=z_image)
    text = json.dumps(json_records.plan_to_json(plan))
    assert json_records.plan_from_json(json.loads(text)) == plan
