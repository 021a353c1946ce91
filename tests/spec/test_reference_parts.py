"""Forward, head, backward, update and predict of the reference, each by itself."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from noprop_kernels import philox
from noprop_kernels.backends.calls import (
    AddNoiseCall,
    BackwardCall,
    ForwardCall,
    HeadCall,
    UpdateCall,
)
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import AdamW
from noprop_kernels.plan import Dense, Plan
from noprop_kernels.schedule import NoiseSchedule
from support.calls import PLANS, clone_call
from support.chains import make_predict_call
from support.compare import assert_same
from support.twin import F64, TIGHT, VARIANTS, Twin, gradient, make


def test_gradients_then_update_is_a_step():
    step = make("mlp", optimizer=AdamW())
    parts = clone_call(step)
    parts.out = make("mlp", optimizer=AdamW(), grads=True).out
    reference.train(step)
    reference.train(parts)
    apply = parts.out.applied[0].clone()
    apply[1] = False
    before = clone_call(parts.slices)
    reference.update(UpdateCall(parts.slices, parts.out.grads, apply, parts.rule))
    for i, at in enumerate(step.slices.index):
        expected = before if i == 1 else step.slices
        for group in ("params", "m", "v"):
            for key, value in getattr(expected, group).items():
                assert torch.equal(getattr(parts.slices, group)[key][at], value[at])
        assert parts.slices.updates[at] == expected.updates[at]


@pytest.mark.parametrize("variant", ["dt", "fm, sigma", "cross entropy", "one-hot", "radial"])
@pytest.mark.parametrize("name", ["mlp", "branches"])
def test_the_parts_make_a_step(name, variant):
    call = make(name, optimizer=AdamW(), extras=True, **VARIANTS[variant])
    twin = clone_call(call)
    reference.train(call)
    slices, objective, embedding = twin.slices, twin.objective, twin.embedding
    M, D, (n, B) = slices.plan.widths[slices.plan.output], embedding.D, (3, 6)
    z, eps = torch.full((2, n, B, D), torch.nan)
    reference.add_noise(AddNoiseCall(twin.noise, twin.noising, embedding, twin.y, z, eps))
    inputs = {key: value[0] for key, value in twin.inputs.items()} | {"z": z}
    logits, d_logits = torch.full((2, n, B, M), torch.nan)
    forward = ForwardCall(slices, inputs, logits, training=True, save=True)
    reference.forward(forward)
    loss, error, u_hat = torch.zeros(n), torch.zeros(n, B), torch.zeros(n, B, D)
    reference.head(
        HeadCall(objective, embedding, twin.y, logits, eps, loss, error, d_logits, u_hat)
    )
    if objective.head in ("softmax", "linear"):
        u_y = (
            F.one_hot(twin.y[0], M).float()
            if embedding.W_embed is None
            else embedding.W_embed[twin.y[0]]
        )
        assert_close(error, (u_hat - u_y + objective.flow * eps).square().sum(-1))
    d_x = torch.full((n, B, 7), torch.nan)
    applied = torch.zeros(n, dtype=torch.bool)
    backward = BackwardCall(slices, forward.saved, d_logits, None, {"x": d_x}, twin.rule, applied)
    reference.backward(backward)
    slices.draws[slices.index] += 1
    assert bool(applied.all())
    assert torch.equal(loss, call.out.loss[0]) and torch.equal(error, call.out.error)
    assert torch.equal(d_x, call.out.d_inputs["x"])
    assert_same(slices, call.slices)


def test_backward_runs_any_number_of_times_and_stops_at_what_is_not_finite():
    call = make("branches", optimizer=AdamW(), z_features=True)
    slices = call.slices
    inputs = {"x": call.inputs["x"][0], "z": call.z}
    logits = torch.zeros(3, 6, 4)
    forward = ForwardCall(slices, inputs, logits, training=True, save=True)
    reference.forward(forward)
    d_logits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    grads = [{k: torch.zeros(3, *s) for k, s in slices.plan.parameters().items()} for _ in "12"]
    for part in grads:
        reference.backward(BackwardCall(slices, forward.saved, d_logits, part, {}))
    assert all(torch.equal(grads[0][key], grads[1][key]) for key in grads[0])
    assert not grads[0]["left.bias"].any() and grads[0]["left.norm.bias"].all()

    d_logits[1, 2, 3] = torch.nan
    before = clone_call(slices)
    applied = torch.zeros(3, dtype=torch.bool)
    reference.backward(BackwardCall(slices, forward.saved, d_logits, None, {}, call.rule, applied))
    assert applied.tolist() == [True, False, True]
    for i, at in enumerate(slices.index):
        weight = slices.params["h.weight"][at]
        assert torch.equal(weight, before.params["h.weight"][at]) == (i == 1)
        assert slices.updates[at] == before.updates[at] + (i != 1)


def test_evaluation_takes_the_running_statistics():
    call = make("branches", dtype=F64, z_features=True)
    slices = call.slices
    before = clone_call(slices)
    inputs = {"x": call.inputs["x"][0].clone(), "z": call.z}
    logits = torch.full((3, 6, 4), torch.nan, dtype=F64)
    forward = ForwardCall(slices, inputs, logits, training=False, save=True)
    reference.forward(forward)
    assert_same(slices, before)
    d_logits = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    grads = {key: torch.zeros(3, *s, dtype=F64) for key, s in slices.plan.parameters().items()}
    d_z = torch.zeros_like(call.z)
    reference.backward(BackwardCall(slices, forward.saved, d_logits, grads, {"z": d_z}))
    for i in range(3):
        twin = Twin(call, i)
        z = inputs["z"][i].clone().requires_grad_()
        got = twin.logits({"x": inputs["x"][i], "z": z}, training=False)
        got.backward(d_logits[i])
        assert_close(logits[i], got.detach(), **TIGHT)
        assert_close(d_z[i], z.grad, **TIGHT)
        for key, value in grads.items():
            assert_close(value[i], gradient(twin.params[key]), **TIGHT, msg=key)
    unsaved = ForwardCall(slices, inputs, logits, training=False, save=False)
    reference.forward(unsaved)
    assert unsaved.saved is None


def test_a_training_forward_moves_the_statistics_at_once():
    call = make("branches", dtype=F64, z_features=True)
    inputs = {"x": call.inputs["x"][0], "z": call.z}
    twins = [Twin(call, i) for i in range(3)]
    logits = torch.zeros(3, 6, 4, dtype=F64)
    reference.forward(ForwardCall(call.slices, inputs, logits, training=True, save=False))
    for i, twin in enumerate(twins):
        got = twin.logits({key: value[i] for key, value in inputs.items()})
        assert_close(logits[i], got.detach(), **TIGHT)
        for key, value in twin.stats.items():
            assert_close(call.slices.stats[key][call.slices.index[i]], value, **TIGHT)
    one_row = {key: value[:, :1] for key, value in inputs.items()}
    with pytest.raises(ValueError, match="at least 2 rows"):
        reference.forward(
            ForwardCall(call.slices, one_row, logits[:, :1], training=True, save=False)
        )


def test_head_needs_eps_for_a_flow():
    call = make("mlp", flow=1.0, head="linear")
    with pytest.raises(ValueError, match="eps must be given"):
        logits = torch.zeros(3, 6, 4)
        reference.head(
            HeadCall(call.objective, call.embedding, call.y, logits, *[None] * 3, logits.clone())
        )


def test_labels_out_of_range_are_refused_by_the_parts():
    call = make("mlp")
    call.y = torch.full((1, 3, 6), 4)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3, got 4 at row 0"):
        reference.head(
            HeadCall(call.objective, call.embedding, call.y, torch.zeros(3, 6, 4), *[None] * 4)
        )
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3, got 4 at row 0"):
        reference.add_noise(
            AddNoiseCall(call.noise, call.noising, call.embedding, call.y, None, None)
        )


@pytest.mark.parametrize("head", ["softmax", "linear"])
@pytest.mark.parametrize("noisy", [True, False])
def test_predict_is_the_chain(head, noisy):
    plan, R, L, B, S = PLANS["branches"](7, 5, 4), 2, 3, 4, 2
    call = make_predict_call(
        plan, R, L, B, S, head=head, keep_all=True, add_noise=noisy, dtype=F64, first_row=3
    )
    last = make_predict_call(plan, R, L, B, S, head=head, add_noise=noisy, dtype=F64, first_row=3)
    before = clone_call(call.slices)
    reference.predict(call)
    reference.predict(last)
    assert_same(call.slices, before)
    for key in ("logits", "u_hat", "z"):
        assert torch.equal(getattr(call, key)[-1:], getattr(last, key))
    for r in range(R):
        seed = call.seeds[r : r + 1]
        for s in range(S):
            z = torch.zeros(B, 5, dtype=F64)
            if noisy:
                z = philox.normal(seed, 2, 0, s, 0xFFFF, B, 5, first_row=3, dtype=F64)[0]
            for i in range(L):
                logits = Twin(call, r * L + i).logits({"x": call.inputs["x"][r], "z": z}, False)
                p = logits if head == "linear" else logits.softmax(-1)
                u_hat = p @ call.embedding.W_embed
                z = call.chain.a[i] * u_hat + call.chain.b[i] * z
                if noisy:
                    eps = philox.normal(seed, 2, 0, s, i, B, 5, first_row=3, dtype=F64)[0]
                    z = z + call.chain.sqrt_c[i] * eps
                for key, value in (("logits", logits), ("u_hat", u_hat), ("z", z)):
                    assert_close(getattr(call, key)[i, s, r], value.detach(), **TIGHT)


def test_predict_of_no_rows_is_empty():
    call = make_predict_call(PLANS["paper_dt"](7, 5, 4), 1, 2, 0, 1)
    reference.predict(call)
    assert call.logits.shape == (1, 1, 1, 0, 4)


def test_an_oracle_s_chain_has_the_marginals():
    """Blocks that know the label give z_t ~ N(sqrt(alpha_bar_t) u_y, 1 - alpha_bar_t)."""
    schedule, B, M = NoiseSchedule.cosine(10), 20_000, 3
    plan = Plan({"x": (M,), "z": (M,)}, {"logits": Dense(("x", "z"), M)})
    call = make_predict_call(plan, 1, 10, B, 1, one_hot=True, keep_all=True, dtype=F64)
    oracle = torch.cat([torch.eye(M, dtype=F64), torch.zeros(M, M, dtype=F64)], dim=1)
    call.slices.params["logits.weight"].copy_(oracle)
    call.slices.params["logits.bias"].zero_()
    u_y = F.one_hot(torch.arange(B) % M, M).double()
    call.inputs["x"] = 1000 * u_y[None]  # its softmax is u_y exactly
    chain = call.chain
    chain.a, chain.b, chain.sqrt_c = schedule.a[1:], schedule.b[1:], schedule.c[1:].sqrt()
    call.slices.index = torch.arange(10)
    reference.predict(call)
    for t in range(1, 11):
        alpha_bar = schedule.alpha_bar[t]
        rest = (call.z[t - 1, 0, 0] - alpha_bar.sqrt() * u_y) / (1 - alpha_bar).sqrt()
        five = 5 * rest.numel() ** -0.5
        assert abs(rest.mean()) < five
        assert abs(rest.square().mean() - 1) < five * 2**0.5
