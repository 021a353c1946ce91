"""Three models trained with nk.OptimizerInBackward end as with torch.

`python -m bench in_backward` compares 200 steps; here are fewer.
"""

import importlib.util

import pytest
import torch
from torch import nn

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.in_backward.check import check_first_step, check_losses, first_step_errors
from bench.in_backward.models import TASKS, mnist_gap, task
from bench.in_backward.trainers import Hooks, Ours

BATCH = {"mlp": 64, "transformer": 2, "encoder": 32}
EXPECTED = {"mlp": 3, "transformer": 8, "encoder": 2}  # layers in kernels; the head is tied


@pytest.fixture(params=TASKS)
def given(request):
    if request.param == "mlp" and (reason := mnist_gap()):
        pytest.skip(reason)
    return task(request.param, BATCH[request.param])


def test_over_a_million_parameters_are_updated_in_kernels(given):
    ours = Ours(given)
    assert len(ours.optimizer.layers) == EXPECTED[given.name]
    assert sum(value.numel() for m in ours.optimizer.layers for value in m.parameters()) > 1e6
    linears = [m for m in ours.model.modules() if isinstance(m, nn.Linear)]
    assert len(linears) - len(ours.optimizer.layers) == (given.name == "transformer")


def test_the_first_step_is_float64_s(given):
    check_first_step(given, Ours)
    ours, torchs = first_step_errors(given, Hooks)  # the other rivals' errors are torch's
    assert 0.9 * torchs < ours < 1.1 * torchs


def test_losses_are_torch_s(given):
    before = torch.get_num_threads()
    assert given.name in check_losses(given, Ours, steps=12)
    assert torch.get_num_threads() == before
