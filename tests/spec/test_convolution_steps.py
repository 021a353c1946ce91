"""Fifty steps of the paper's block over images, beside autograd and torch.optim."""

import torch
from torch.testing import assert_close

from noprop_kernels import plans
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import SGD
from support.calls import clone_call, make_train_call
from support.compare import assert_matches
from support.twin import F64, Twin, torch_step

STEPS = 50
# the smallest image of which the paper's convolutions and pools leave a pixel:
# 14 -> 12 -> 6 -> 4 -> 2 -> 1
IMAGE = (1, 14, 14)


def test_fifty_steps_of_the_paper_s_block_are_autograd_s_and_torch_optim_s() -> None:
    """The reference in float64; the CPU kernels in float32, within the reference's rounding.

    By SGD with a small rate: Adam makes a step of a gradient's rounding, and after a few of those
    another pixel is a window's maximum.
    """
    assert dispatch.native_gap() is None
    call = make_train_call(
        plans.paper_dt(IMAGE, 5, 4), 2, 1, 6, STEPS, optimizer=SGD(lr=1e-3, momentum=0.9), dtype=F64
    )
    for value in call.slices.m.values():
        value.zero_()
    call.slices.updates.zero_()
    twin, at = Twin(call, 0), call.slices.index[0]
    done, plain = clone_call(call, torch.float32), clone_call(call, torch.float32)
    reference.train(call)
    reference.train(plain)
    cpu.train(done)
    torch_s = torch.optim.SGD(twin.params.values(), momentum=0.9)
    losses = torch.empty(STEPS, 1, dtype=F64)
    for step in range(STEPS):
        losses[step] = torch_step(twin, torch_s, step, call.rule.lr[step, 0])
    assert_close(call.out.loss, losses, rtol=1e-7, atol=1e-9)
    terms = 16 * STEPS
    assert_matches(done.out.loss, losses, plain.out.loss, terms, "loss")
    for name, leaf in twin.params.items():
        want, m = leaf.detach(), torch_s.state[leaf]["momentum_buffer"]
        assert_close(call.slices.params[name][at], want, rtol=1e-7, atol=1e-9, msg=name)
        assert_close(call.slices.m[name][at], m, rtol=1e-6, atol=1e-10, msg=name)
        trio = (done.slices.params[name][at], want, plain.slices.params[name][at])
        assert_matches(*trio, terms, name)
    for name, value in twin.stats.items():
        assert_close(call.slices.stats[name][at], value, rtol=1e-7, atol=1e-9, msg=name)
        trio = (done.slices.stats[name][at], value, plain.slices.stats[name][at])
        assert_matches(*trio, terms, name)
    assert call.out.applied.all() and done.out.applied.all()
    assert done.slices.updates[at] == STEPS
