"""Helpers that the tests of nk.Linear share."""

import torch

import noprop_kernels as nk


def linear(*arguments, **options):
    return nk.Linear(*arguments, **{"optimizer": nk.AdamW(), **options})


def rows(*shape, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_(grad)


def everything(layer):
    """Copies of parameters, moments and counter."""
    tensors = (*layer.named_parameters(), *layer.named_buffers())
    return {name: value.detach().clone() for name, value in tensors}


def step(layer, seed=0, *lead):
    layer(rows(*(lead or (6,)), layer.in_features, seed=seed)).square().sum().backward()
