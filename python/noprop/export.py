"""A model's inference as one torch.fx graph of torch's own parts, which runs without this library.

    h = encoder(x * scale + shift);  z = 0
    z = a_t softmax(block_t(h, z)) @ W_embed + b_t z     for t = 1..T (eq. 3 without noise)
    labels = argmax over y of sqrt(alpha_bar_T) <u_y, z> - alpha_bar_T |u_y|^2 / 2
    probs = softmax(block_T's logits)

or, by the paper's protocol, with z = eps and + sqrt(c_t) eps, and the head's softmax and argmax. A
graph and no class, since a class is unpickled from its package, which need not be there.
"""

import copy
from operator import add, mul
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from noprop_kernels import modules
from noprop_kernels.batches import scale_and_shift

if TYPE_CHECKING:
    from .model import Model


def chain(model: "Model", with_noise: bool) -> fx.GraphModule:
    """The graph of `Model.to_module`, with tensors of its own."""
    blocks, schedule = model.blocks, model.blocks.goal.schedule
    blocks._check_draws_z("to_module")
    inputs = list(blocks.plan.inputs)
    if len(inputs) != 2:
        raise ValueError(f'to_module: plan must have "z" and one more input, got {inputs}')
    graph = fx.Graph()
    root: dict[str, nn.Module | Tensor] = {}

    def part(name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        root[name] = module
        return graph.call_module(name, args)

    def buffer(name: str, value: Tensor) -> fx.Node:
        root[name] = value.detach().clone()
        return graph.get_attr(name)

    x = graph.placeholder("x")
    # the kind of x picks its scale, so that bytes and floats are taken as `predict` takes them; by
    # torch.select, since unpickling traces the graph, and only torch's functions take a proxy
    scale, shift = scales(model)
    kind = graph.call_function(mul, (graph.call_method("is_floating_point", (x,)), 1))
    chosen = graph.call_function(torch.select, (buffer("scale", scale), 0, kind))
    h = graph.call_method("flatten", (graph.call_method("float", (x,)), 1))
    h = graph.call_method("unflatten", (h, 1, (len(shift), -1)))
    h = graph.call_function(mul, (h, chosen))
    h = graph.call_function(add, (h, buffer("shift", shift)))
    h = graph.call_method("flatten", (h, 1))
    if model.encoder is not None:
        h = part("encoder", copy.deepcopy(model.encoder), h)

    z = graph.call_method("new_zeros", (h, (graph.call_method("size", (h, 0)), blocks.D)))
    if with_noise:
        z = graph.call_function(torch.randn_like, (z,))
    W_embed = None if blocks.W_embed is None else buffer("W_embed", blocks.W_embed)
    a, b, c = (value.tolist() for value in (schedule.a, schedule.b, schedule.c))
    for t, block in enumerate(blocks.to_modules(), start=1):
        logits = part(f"block_{t}", block, *(z if name == "z" else h for name in inputs))
        u_hat = graph.call_function(torch.softmax, (logits, -1))
        if W_embed is not None:
            u_hat = graph.call_function(torch.matmul, (u_hat, W_embed))
        u_hat, z = graph.call_function(mul, (u_hat, a[t])), graph.call_function(mul, (z, b[t]))
        z = graph.call_function(add, (u_hat, z))
        if with_noise:
            eps = graph.call_function(torch.randn_like, (z,))
            eps = graph.call_function(mul, (eps, c[t] ** 0.5))
            z = graph.call_function(add, (z, eps))
    if with_noise:
        assert model.head is not None  # by Model.to_module
        scores = logits = part("head", modules.copied_module(model.head, 0), z)
    elif W_embed is None:  # <u_y, z> is column y of z, and every |u_y| is 1
        scores = z
    else:
        alpha_bar, W = schedule.alpha_bar[-1].item(), blocks.W_embed
        weight, bias = alpha_bar**0.5 * W.T, -alpha_bar / 2 * W.square().sum(1)
        scores = graph.call_function(torch.matmul, (z, buffer("score_weight", weight)))
        scores = graph.call_function(add, (scores, buffer("score_bias", bias)))
    labels = graph.call_function(torch.argmax, (scores, -1))
    graph.output((labels, graph.call_function(torch.softmax, (logits, -1))))
    return fx.GraphModule(root, graph, class_name="Classifier").eval().requires_grad_(False)


def scales(model: "Model") -> tuple[Tensor, Tensor]:
    """The scale of bytes and that of floats, (2, channels, 1), and the shift, (channels, 1)."""
    mean, std = model.normalize or (torch.zeros(1), torch.ones(1))
    made = [
        scale_and_shift("to_module", (mean, std), torch.empty(0, len(mean), dtype=kind))
        for kind in (torch.uint8, torch.float32)
    ]
    scale, shift = (
        torch.stack(values)[..., None].to(model.device) for values in zip(*made, strict=True)
    )
    return scale, shift[0]
