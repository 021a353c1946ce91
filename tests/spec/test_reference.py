"""The reference against torch.autograd, torch.nn and torch.optim."""

import pytest
import torch
from torch.testing import assert_close

from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.backends.reference import equations as ref
from noprop_kernels.backends.reference.layers import backward_layers, forward_layers
from noprop_kernels.optimizers import SGD, Adam, AdamW
from noprop_kernels.plan import Dense, Plan
from support.calls import PLANS, clone_call
from support.compare import assert_calls_match, assert_matches, assert_same, results
from support.twin import F64, TIGHT, VARIANTS, Twin, gradient, make, torch_step


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PLANS)
def test_gradients_are_autograd_s(name, variant):
    call = make(name, dtype=F64, extras=True, grads=True, **VARIANTS[variant])
    before = clone_call(call.slices)
    reference.train(call)
    assert_same(call.slices, before)
    for i in range(3):
        twin = Twin(call, i)
        loss, error = twin.loss()
        loss.backward()
        assert_close(call.out.loss[0, i], loss.detach(), **TIGHT)
        assert_close(call.out.error[i], error.detach(), **TIGHT)
        for key, value in call.out.grads.items():
            assert_close(value[i], gradient(twin.params[key]), **TIGHT, msg=key)
        for key, value in call.out.d_inputs.items():
            assert_close(value[i], gradient(twin.inputs[key]), **TIGHT, msg=key)
        assert_close(call.out.d_W_embed[i], gradient(twin.W_embed), **TIGHT)
        if call.z is None:
            assert_close(call.out.d_signal[i], gradient(twin.signal), **TIGHT)
            assert_close(call.out.d_noise[i], gradient(twin.noise), **TIGHT)
    assert bool(call.out.applied.all())


def test_plans_without_features_of_z_send_nothing_through_the_numbers():
    call = make("mlp", z_features=True, extras=True, grads=True)
    call.out.d_signal, call.out.d_noise = torch.full((2, 3, 6), torch.nan)
    reference.train(call)
    assert not call.out.d_signal.any() and not call.out.d_noise.any()


OPTIMIZERS = {
    "sgd": (SGD(weight_decay=0.01), torch.optim.SGD, {}),
    "nesterov": (
        SGD(momentum=0.9, nesterov=True, lr=3e-3),
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True},
    ),
    "adam": (Adam(lr=3e-3, weight_decay=0.02), torch.optim.Adam, {}),
    "adamw": (AdamW(lr=3e-3, weight_decay=0.1), torch.optim.AdamW, {}),
}


TRAJECTORIES = [(name, key) for name in ("mlp", "branches") for key in OPTIMIZERS]


@pytest.mark.parametrize("name, optimizer", [*TRAJECTORIES, ("paper_dt", "adamw")])
def test_fifty_steps_are_autograd_s_and_torch_optim_s(name, optimizer):
    ours, theirs, options = OPTIMIZERS[optimizer]
    steps = 50
    call = make(name, n=2, B=5, K=steps, dtype=F64, optimizer=ours)
    slices = call.slices
    slices.updates.zero_()
    for value in [*slices.m.values(), *slices.v.values()]:
        value.zero_()
    twins = [Twin(call, i) for i in range(2)]
    draws = slices.draws[slices.index].clone()
    reference.train(call)
    for i, twin in enumerate(twins):
        groups = theirs(
            twin.params.values(), weight_decay=ours.weight_decay, foreach=False, **options
        )
        for step in range(steps):
            loss = torch_step(twin, groups, step, call.rule.lr[step, i])
            assert_close(call.out.loss[step, i], loss, rtol=1e-7, atol=1e-9)
        at = slices.index[i]
        for key, leaf in twin.params.items():
            assert_close(slices.params[key][at], leaf.detach(), rtol=1e-7, atol=1e-9, msg=key)
            state = groups.state[leaf]
            torch_s = {
                "m": state.get("exp_avg", state.get("momentum_buffer")),
                "v": state.get("exp_avg_sq"),
            }
            for moment in ours.moments:
                mine = getattr(slices, moment)[key][at]
                assert_close(mine, torch_s[moment], rtol=1e-6, atol=1e-10, msg=key)
        for key, value in twin.stats.items():
            assert_close(slices.stats[key][at], value, rtol=1e-7, atol=1e-9, msg=key)
    assert torch.equal(slices.updates[slices.index], torch.full((2,), steps))
    assert torch.equal(slices.draws[slices.index], draws + steps)
    assert bool(call.out.applied.all())


@pytest.mark.parametrize("B", [2, 128, 129, 300])
def test_batch_norm_is_torch_s(B):
    generator = torch.Generator().manual_seed(B)
    y = 3 + 2 * torch.randn(2, B, 5, generator=generator, dtype=F64)
    mean, var = ref.batch_statistics(y)
    assert_close(mean, y.mean(1), **TIGHT)
    assert_close(var, y.var(1, correction=0), **TIGHT)
    norm = torch.nn.BatchNorm1d(5, eps=1e-3, momentum=0.3).double()
    weight, bias, d_out = (
        torch.randn(*s, generator=generator, dtype=F64) for s in ((1, 5), (1, 5), (1, B, 5))
    )
    norm.weight.data, norm.bias.data = weight[0].clone(), bias[0].clone()
    x = y[0].clone().requires_grad_()
    out = norm(x)
    out.backward(d_out[0])
    y_hat, rstd = ref.normalise(y[:1], mean[:1], var[:1], 1e-3)
    assert_close(ref.scale_shift(y_hat, weight, bias)[0], out.detach(), **TIGHT)
    got = ref.batch_norm_gradient(d_out, y_hat, rstd, weight, training=True)
    for mine, torch_s in zip(got, (x.grad, norm.weight.grad, norm.bias.grad), strict=True):
        assert_close(mine[0], torch_s, **TIGHT)
    moved = ref.move_statistic(torch.ones(5, dtype=F64), var[0] * B / (B - 1), 0.3)
    assert_close(moved, norm.running_var, **TIGHT)


def test_batch_statistics_do_not_cancel():
    y = 1e4 + torch.randn(1, 500, 3, generator=torch.Generator().manual_seed(0))
    _, var = ref.batch_statistics(y)
    # a mean near 1e4 is rounded by this much; the difference of two squares would lose every digit
    rounding = torch.finfo(torch.float32).eps * 1e4
    assert_close(var.double(), y.double().var(1, correction=0), rtol=0, atol=rounding)


@pytest.mark.parametrize(
    "entries, total",
    [
        ({0: 1e8, 127: -1e8, 128: 1.0}, 1.0),  # 0 + 1
        ({0: 1e8, 128: 1.0, 256: -1e8}, 0.0),  # (1e8 + 1) - 1e8, the 1 being rounded away
    ],
)
def test_sums_fold_chunks_of_128_rows_from_the_left(entries, total):
    value = torch.zeros(1, 384, 1)
    value[0, list(entries), 0] = torch.tensor(list(entries.values()))
    assert ref.sum_rows(value).item() == total


@pytest.mark.parametrize("name, variant", [("mlp", "dt"), ("branches", "dt"), ("mlp", "radial")])
def test_many_rows(name, variant):
    """More rows than a chunk has, in every sum over rows."""
    call = make(name, n=1, B=260, dtype=F64, extras=True, grads=True, **VARIANTS[variant])
    reference.train(call)
    twin = Twin(call, 0)
    twin.loss()[0].backward()
    for key, value in call.out.grads.items():
        assert_close(value[0], gradient(twin.params[key]), **TIGHT, msg=key)
    assert_close(call.out.d_W_embed[0], gradient(twin.W_embed), **TIGHT)


def test_a_gradient_sums_its_consumers_in_plan_order():
    consumers = {name: Dense("h", 1) for name in "abc"}
    layers = {"h": Dense("z", 1), **consumers, "logits": Dense(("a", "b", "c"), 1)}
    plan = Plan({"z": (1,)}, layers)
    params = {name: torch.ones(1, *shape) for name, shape in plan.parameters().items()}
    params["a.weight"], params["b.weight"] = params["a.weight"] * 1e8, params["b.weight"] * -1e8
    saved = forward_layers(plan, params, {}, {"z": torch.ones(1, 1, 1)}, training=True)
    grads, _ = backward_layers(plan, params, saved, torch.ones(1, 1, 1), frozenset())
    assert grads["h.bias"].item() == 1.0  # (1e8 - 1e8) + 1; from the right it would be 0


def test_relu_keeps_nan():
    y = torch.tensor([-1.0, 0.0, 2.0, torch.nan])
    assert_close(ref.relu(y), torch.tensor([0.0, 0.0, 2.0, torch.nan]), equal_nan=True)
    assert ref.relu_gradient(torch.ones(4), ref.relu(y)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("approximate", [False, True], ids=["float64", "float32"])
def test_gelu_is_torch_s(approximate):
    dtype = torch.float32 if approximate else F64
    y = torch.linspace(-14, 14, 1001, dtype=dtype, requires_grad=True)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if approximate else TIGHT
    want = torch.nn.functional.gelu(y)
    assert_close(ref.gelu(y.detach()), want, **tolerance)
    d = torch.linspace(1, 2, 1001, dtype=dtype)
    assert_close(ref.gelu_gradient(d, y.detach()), torch.autograd.grad(want, y, d)[0], **tolerance)


def test_gelu_far_from_0_and_nan():
    """At -infinity it is the limit, where torch's is NaN."""
    y = torch.tensor([-torch.inf, -1e20, 1e20, torch.inf, torch.nan])
    assert_close(ref.gelu(y), torch.tensor([0, 0, 1e20, torch.inf, torch.nan]), equal_nan=True)
    slope = ref.gelu_gradient(torch.ones(5), y)
    assert_close(slope, torch.tensor([0, 0, 1, 1, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64], ids=str)
def test_operations_compute_in_float32_at_least(dtype):
    a, w, b = torch.ones(2, 3, 4, dtype=dtype), torch.ones(2, 5, 4, dtype=dtype), torch.ones(2, 5)
    assert ref.dense([a], w, b.to(dtype)).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("variant", ["dt", "fm, sigma", "radial", "radial on one-hot"])
def test_float32_against_float64(name, variant):
    call = make(name, optimizer=AdamW(), extras=True, **VARIANTS[variant])
    exact = clone_call(call, F64)
    plain = clone_call(call)
    for each in (call, exact, plain):
        reference.train(each)
    assert not any(value.isnan().any() for _, value in results(call))
    assert_calls_match(call, exact, plain)


def test_the_tolerance_rule_refuses_nan_and_error():
    exact = torch.ones(4, dtype=F64)
    plain = exact.float() + 1e-6
    assert_matches(exact.float() + 2e-6, exact, plain)
    for wrong in (exact.float() + 3e-6, torch.full((4,), torch.nan), torch.ones(3)):
        with pytest.raises(AssertionError):
            assert_matches(wrong, exact, plain)


def test_copies_of_calls_share_nothing():
    call = make("mlp", optimizer=AdamW(), gather=True)
    twin = clone_call(call)
    reference.train(twin)
    assert not torch.equal(twin.slices.params["f.bias"], call.slices.params["f.bias"])
    assert call.out.loss.isnan().all()
