"""A training call keeps its promises: isolation, the gate, checks, gathering."""

import pytest
import torch
from torch.testing import assert_close

from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import SGD, AdamW
from support.calls import clone_call, one_slice
from support.compare import assert_same
from support.twin import F64, TIGHT, make


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("name", ["mlp", "paper_dt"])
def test_a_slice_does_not_notice_the_others(name, gather):
    """Alone or in company, in K calls or in one: the same bits."""
    call = make(name, K=3, optimizer=AdamW(), gather=gather, per_row=True)
    one = clone_call(call)
    reference.train(call)
    slices = call.slices
    for i, at in enumerate(slices.index.tolist()):
        for step in range(3):
            alone = one_slice(one, i, step)
            reference.train(alone)
            assert torch.equal(alone.out.loss[0, 0], call.out.loss[step, i])
        for ours, theirs in ((slices.params, one.slices.params), (slices.v, one.slices.v)):
            assert all(torch.equal(ours[key][at], theirs[key][at]) for key in ours)
    assert_same(one.slices, slices)


def test_a_loss_that_is_not_finite_stops_its_slice_alone():
    call = make("paper_dt", K=2, optimizer=AdamW())
    good = clone_call(call)
    bad = call.slices.index[1]
    call.slices.params["f2.weight"][bad, 0, 0] = torch.inf
    before = clone_call(call.slices)
    reference.train(call)
    reference.train(good)
    assert call.out.applied.tolist() == [[True, False, True]] * 2
    assert not call.out.loss[:, 1].isfinite().any()
    for group in ("params", "m", "v", "stats"):
        for key, value in getattr(call.slices, group).items():
            assert torch.equal(value[bad], getattr(before, group)[key][bad])
            for i in (0, 2):
                at = call.slices.index[i]
                assert torch.equal(value[at], getattr(good.slices, group)[key][at])
    assert call.slices.updates[bad] == before.updates[bad]
    assert call.slices.draws[bad] == before.draws[bad] + 2
    assert torch.equal(call.slices.draws, good.slices.draws)
    assert call.slices.updates[call.slices.index[0]] == before.updates[call.slices.index[0]] + 2


def test_slices_that_are_not_selected_stay():
    call = make("branches", optimizer=SGD(momentum=0.5))
    before = clone_call(call.slices)
    reference.train(call)
    (rest,) = set(range(4)) - set(call.slices.index.tolist())
    for group in ("params", "m", "stats"):
        for key, value in getattr(call.slices, group).items():
            assert torch.equal(value[rest], getattr(before, group)[key][rest])
    assert call.slices.draws[rest] == before.draws[rest]


def wrong_contents():
    def label(call, value):
        call.y = call.y.clone()
        call.y[-1, 0, 2] = value

    def feature(call, value):
        call.inputs["x"] = call.inputs["x"].clone()
        call.inputs["x"][-1, 0, 1, 3] = value

    def index(call, value):
        call.inputs["x"].indices[-1, 0, 1] = value

    def gathered_label(call, value):
        call.y.data[call.y.indices[-1, 0, 0]] = value

    yield r"labels must be in 0\.\.3, got 4 at row 2", lambda call: label(call, 4), False
    yield r"labels must be in 0\.\.3, got -1 at row 2", lambda call: label(call, -1), False
    yield "x must be finite", lambda call: feature(call, torch.nan), False
    yield "x must be finite", lambda call: feature(call, -torch.inf), False
    yield (
        "indices must name rows of the data, got 1000000 at 1",
        lambda call: index(call, 10**6),
        True,
    )
    yield "indices must name rows of the data, got -1 at 1", lambda call: index(call, -1), True
    yield r"labels must be in 0\.\.3, got 17 at row \d", lambda call: gathered_label(call, 17), True


@pytest.mark.parametrize("text, spoil, gather", list(wrong_contents()))
def test_wrong_contents_are_refused_before_any_write(text, spoil, gather):
    call = make("mlp", K=2, optimizer=AdamW(), gather=gather)
    spoil(call)
    before = clone_call(call)
    with pytest.raises(ValueError, match=text):
        reference.train(call)
    assert_same(call.slices, before.slices)
    assert_same(call.out, before.out)


@pytest.mark.parametrize("name, B", [("mlp", 0), ("paper_dt", 0), ("paper_dt", 1), ("branches", 1)])
def test_too_few_rows_are_refused(name, B):
    call = make(name, B=B, optimizer=AdamW())
    before = clone_call(call)
    with pytest.raises(ValueError, match="at least"):
        reference.train(call)
    assert_same(call.slices, before.slices)


def test_one_row_does_without_norm():
    call = make("mlp", B=1, optimizer=AdamW())
    reference.train(call)
    assert bool(call.out.applied.all())


def test_a_call_must_say_what_to_do():
    with pytest.raises(ValueError, match="must have a rule"):
        reference.train(make("mlp"))


def test_no_steps_change_nothing():
    call = make("paper_dt", K=0, optimizer=AdamW())
    before = clone_call(call)
    reference.train(call)
    assert_same(call.slices, before.slices)
    assert call.out.loss.shape == (0, 3)


@pytest.mark.parametrize("data_dtype", [None, torch.uint8, torch.bfloat16])
def test_gathered_rows_are_the_rows(data_dtype):
    call = make("two_inputs", K=2, optimizer=AdamW(), gather=True, data_dtype=data_dtype)
    direct = clone_call(call)
    for key, value in direct.inputs.items():
        rows = torch.stack([value.data[value.indices[:, r]] for r in value.replica], dim=1)
        if value.mean is not None:
            rows = (rows - value.mean) * value.scale
        direct.inputs[key] = rows.float()
    y = direct.y
    direct.y = torch.stack([y.data[y.indices[:, r]] for r in y.replica], dim=1)
    reference.train(call)
    reference.train(direct)
    assert torch.equal(call.out.loss, direct.out.loss)
    assert_same(call.slices, direct.slices)


def test_micro_batches_add_to_the_whole():
    whole = make("mlp", B=6, dtype=F64, per_row=True, grads=True)
    reference.train(whole)
    total = {key: torch.zeros_like(value) for key, value in whole.out.grads.items()}
    loss = torch.zeros(1, 3, dtype=F64)
    for rows in (slice(0, 2), slice(2, 6)):
        part = clone_call(whole)
        part.B, part.noise.first_row = rows.stop - rows.start, rows.start
        part.inputs = {key: value[:, :, rows] for key, value in part.inputs.items()}
        part.y = part.y[:, :, rows]
        part.noising.signal = part.noising.signal[:, :, rows]
        part.noising.noise = part.noising.noise[:, :, rows]
        part.objective.weight = part.objective.weight[:, :, rows]
        reference.train(part)
        loss += part.out.loss
        for key, value in part.out.grads.items():
            total[key] += value
    assert_close(loss, whole.out.loss, **TIGHT)
    for key, value in whole.out.grads.items():
        assert_close(total[key], value, **TIGHT, msg=key)


def test_batch_statistics_of_a_gradient_call_are_those_that_a_step_moves():
    step = make("paper_dt", optimizer=AdamW(), dtype=F64)
    asked = clone_call(step)
    asked.out = make("paper_dt", optimizer=AdamW(), dtype=F64, grads=True).out
    old = clone_call(step.slices.stats)
    reference.train(step)
    reference.train(asked)
    for key, value in asked.out.stats.items():
        for i, at in enumerate(step.slices.index):
            moved = 0.9 * old[key][at] + 0.1 * value[i]
            assert_close(step.slices.stats[key][at], moved, **TIGHT)


def test_a_parameter_that_wants_a_gradient_is_updated_in_place():
    call = make("mlp", optimizer=AdamW())
    params = {key: torch.nn.Parameter(value) for key, value in call.slices.params.items()}
    call.slices.params = params
    versions = {key: value._version for key, value in params.items()}
    reference.train(call)
    assert all(value._version > versions[key] for key, value in params.items())
    assert all(value.grad_fn is None for value in params.values())
