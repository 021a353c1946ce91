"""Helpers that the tests of nk.OptimizerInBackward share."""

import copy

import torch
from torch import nn

import noprop_kernels as nk
from support.linear import rows

# of torch.optim, by name
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.8, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, weight_decay=0.1),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, betas=(0.8, 0.99)),
    "fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
}


def network():
    """A Linear with bias, one without, and parameters that are no Linear's."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(7, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5, bias=False)
    )


def pair(make=OPTIMIZERS["adamw"], model=None, groups=lambda model: model.parameters()):
    """A model with ours and its copy with torch's: model, optimizer, twin, its optimizer."""
    model = network() if model is None else model
    twin = copy.deepcopy(model)
    optimizer = nk.OptimizerInBackward(model, make(groups(model)))
    return model, optimizer, twin, make(groups(twin))


def train(model, optimizer, steps=3, seed=0, schedulers=()):
    """Steps of an ordinary loop; the last loss."""
    for k in range(steps):
        optimizer.zero_grad()
        loss = model(rows(9, 7, seed=seed + k)).square().mean()
        loss.backward()
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return loss.item()


def two_groups(model):
    """Decay for matrices alone, so that a layer's weight and bias lie in different groups."""
    vectors = [value for value in model.parameters() if value.ndim < 2]
    matrices = [value for value in model.parameters() if value.ndim > 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def assert_close(model, twin):
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(
            model.state_dict()[name], value, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert all(value.grad is None for value in model.parameters())


def assert_state_close(got, want):
    """Two state_dicts of torch.optim's."""
    assert got["param_groups"] == want["param_groups"]
    assert got["state"].keys() == want["state"].keys()
    for i, entry in want["state"].items():
        assert got["state"][i].keys() == entry.keys()
        for name, value in entry.items():
            torch.testing.assert_close(got["state"][i][name], value, rtol=1e-4, atol=1e-6)
