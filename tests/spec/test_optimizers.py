"""The optimizers' formulas against torch.optim, and what their constructors refuse."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

from noprop_kernels.autograd import dense_ops
from noprop_kernels.backends.reference import equations as ref
from noprop_kernels.optimizers import SGD, Adam, AdamW, Optimizer, check_optimizer
from support.compare import assert_matches

# ours, and torch's with the same meaning; weight decay and learning rate differ by slice below
PAIRS = {
    "sgd": (SGD(), torch.optim.SGD, {}),
    "momentum": (SGD(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (
        SGD(momentum=0.8, nesterov=True),
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True},
    ),
    "adam": (Adam(), torch.optim.Adam, {}),
    "adam, other betas": (
        Adam(betas=(0.0, 0.5), eps=1e-3),
        torch.optim.Adam,
        {"betas": (0.0, 0.5), "eps": 1e-3},
    ),
    "adamw": (AdamW(betas=(0.8, 0.99)), torch.optim.AdamW, {"betas": (0.8, 0.99)}),
}
STEPS = 50


def trajectories(name, dtype, weight_decay):
    """param, m and v of three slices after STEPS steps, ours and torch's, over changing rates."""
    ours, theirs, options = PAIRS[name]
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64).to(dtype)
    grads = torch.randn(STEPS, 3, 4, 5, generator=generator, dtype=torch.float64).to(dtype)
    lr = 0.1 * torch.rand(STEPS, 3, generator=generator, dtype=torch.float64)

    param = start.clone()
    m = torch.zeros_like(param) if "m" in ours.moments else None
    v = torch.zeros_like(param) if "v" in ours.moments else None
    for step in range(STEPS):
        updates = torch.full((3,), step + 1)
        scalars = {"lr": lr[step], "weight_decay": weight_decay, "updates": updates}
        param, m, v = ref.optimizer_step(ours, param, grads[step], m, v, **scalars)

    torch_state = []
    for i in range(3):
        leaf = start[i].clone().requires_grad_()
        optimizer = theirs([leaf], weight_decay=weight_decay[i].item(), foreach=False, **options)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = lr[step, i].item()
            leaf.grad = grads[step, i].clone()
            optimizer.step()
        state = optimizer.state[leaf]
        first = state.get("exp_avg", state.get("momentum_buffer"))
        torch_state.append((leaf.detach(), first, state.get("exp_avg_sq")))
    return (param, m, v), [
        None if part[0] is None else torch.stack(part) for part in zip(*torch_state, strict=True)
    ]


DECAYS = {"none": torch.zeros(3).double(), "one each": torch.tensor([0.0, 0.01, 0.3]).double()}


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("name", PAIRS)
def test_fifty_steps_are_torch_s(name, decays):
    ours, theirs = trajectories(name, torch.float64, DECAYS[decays])
    for mine, torch_s in zip(ours, theirs, strict=True):
        assert (mine is None) == (torch_s is None)
        if mine is not None:
            assert_close(mine, torch_s, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PAIRS)
def test_float32_errs_no_more_than_torch(name):
    exact, _ = trajectories(name, torch.float64, DECAYS["one each"])
    start_rounded, plain = trajectories(name, torch.float32, DECAYS["one each"])
    for mine, truth, torch_s in zip(start_rounded, exact, plain, strict=True):
        if mine is not None:
            assert_matches(mine, truth, torch_s)


def test_bias_correction_is_formed_in_float64():
    """1 - 0.999 is wrong by 1.3e-5 in float32; Adam's first step is lr whatever the gradient."""
    grad = torch.tensor([[1e-3, -2.0]])
    scalars = {"lr": torch.tensor([0.5]).double(), "weight_decay": torch.zeros(1).double()}
    zeros = torch.zeros(1, 2)
    param, _, _ = ref.optimizer_step(
        Adam(eps=1e-30), zeros, grad, zeros, zeros, updates=torch.tensor([1]), **scalars
    )
    assert_close(param, -0.5 * grad.sign(), rtol=5e-7, atol=0)


def test_defaults_are_torch_s():
    leaf = [torch.zeros(1, requires_grad=True)]
    for ours, theirs in ((SGD(), torch.optim.SGD), (Adam(), torch.optim.Adam)):
        defaults = theirs(leaf).defaults
        assert (ours.lr, ours.weight_decay) == (defaults["lr"], defaults["weight_decay"])
    defaults = torch.optim.AdamW(leaf).defaults
    assert AdamW() == AdamW(
        **{key: defaults[key] for key in ("lr", "weight_decay", "betas", "eps")}
    )


def test_moments():
    assert SGD().moments == () and SGD(momentum=0.5).moments == ("m",)
    assert Adam().moments == AdamW().moments == ("m", "v")


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: SGD(lr=-1), "SGD: lr must be at least 0, got -1"),
        (lambda: Adam(lr=float("nan")), "Adam: lr must be at least 0, got nan"),
        (lambda: AdamW(weight_decay=-0.1), "AdamW: weight_decay must be at least 0, got -0.1"),
        (lambda: AdamW(weight_decay=(0.1, -1)), "AdamW: weight_decay must be at least 0, got -1"),
        (lambda: SGD(momentum=-1), "SGD: momentum must be at least 0, got -1"),
        (lambda: SGD(nesterov=True), "nesterov needs a momentum above 0"),
        (lambda: Adam(betas=(1.0, 0.9)), "Adam: betas must be in"),
        (lambda: AdamW(eps=0), "AdamW: eps must be above 0, got 0"),
    ],
)
def test_wrong_numbers_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_weight_decay_of_a_list_is_kept_as_a_tuple():
    assert AdamW(weight_decay=[0, 0.5]).weight_decay == (0.0, 0.5)
    hash(AdamW(weight_decay=[0, 0.5]))


@pytest.mark.parametrize("name", PAIRS)
def test_an_operation_s_arguments_make_the_same_optimizer(name):
    ours = PAIRS[name][0]
    kind, numbers = dense_ops.describe(ours)
    assert replace(dense_ops.described(kind, *numbers), weight_decay=ours.weight_decay) == ours


@pytest.mark.parametrize("name", PAIRS)
def test_torch_s_names_are_those_of_its_state(name):
    ours, theirs, options = PAIRS[name]
    leaf = torch.zeros(1, requires_grad=True)
    leaf.grad = torch.ones(1)
    optimizer = theirs([leaf], **options)
    optimizer.step()
    state = {key for key, value in optimizer.state[leaf].items() if value is not None}
    assert set(ours.torch_moments[: len(ours.moments)]) == state - {"step"}
    (group,) = optimizer.param_groups
    assert {**group, **ours.torch_options} == group


def test_a_class_that_the_kernels_do_not_know_is_refused():
    @dataclass(frozen=True)
    class Other(Optimizer):
        kind = "Other"

    for value in (Other(), Optimizer(), "adam", AdamW, None):
        got = type(value).__name__
        with pytest.raises(
            ValueError, match=f"op: optimizer must be SGD, Adam or AdamW, got {got}"
        ):
            check_optimizer("op", value)
    assert check_optimizer("op", SGD()) == SGD()
