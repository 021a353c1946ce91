"""A model's inference as one torch.fx graph of torch's own parts, which runs without this library.

    h = encoder((x - mean) * scale);  z = 0
    z = a_t softmax(block_t(h, z)) @ W_embed + b_t z     for t = 1..T (eq. 3 without noise)
    labels = argmax over y of sqrt(alpha_bar_T) <u_y, z> - alpha_bar_T |u_y|^2 / 2
    probs = mean of softmax(block_t) over t = T // 2 + 1..T

or, by the paper's protocol, with z = eps and + sqrt(c_t) eps, and the head's softmax and argmax. It
is a graph and no class, since unpickling a class needs its package.
"""

import copy
from operator import add, mul, sub
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from noprop_kernels.stack import plain_modules
from noprop_kernels.stack.training import check_draws_z

from .normalisation import Normalisation

if TYPE_CHECKING:
    from .model import Model


def chain(model: "Model", with_noise: bool) -> fx.GraphModule:
    """The graph of `Model.to_module`, with tensors of its own."""
    blocks, schedule = model.blocks, model.goal.schedule
    check_draws_z(blocks, "to_module")
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
    numbers = affine(model)
    mean, scale = (buffer(*item) for item in numbers.items())
    if model.inputs is None:
        # without training data x's dtype decides whether x is bytes, as in `predict`; by
        # torch.select, since unpickling traces the graph, and only torch's functions take a proxy
        kind = graph.call_function(mul, (graph.call_method("is_floating_point", (x,)), 1))
        mean, scale = (graph.call_function(torch.select, (v, 0, kind)) for v in (mean, scale))
    wide = model.inputs is not None and model.inputs.kind == "numbers"
    channels = numbers["mean"].shape[-2]
    h = graph.call_method("flatten", (graph.call_method("double" if wide else "float", (x,)), 1))
    h = graph.call_method("unflatten", (h, 1, (channels, -1)))
    h = graph.call_function(mul, (graph.call_function(sub, (h, mean)), scale))
    h = graph.call_method("float", (graph.call_method("flatten", (h, 1)),))
    if model.encoder is not None:
        h = part("encoder", copy.deepcopy(model.encoder), h)

    z = graph.call_method("new_zeros", (h, (graph.call_method("size", (h, 0)), blocks.D)))
    if with_noise:
        z = graph.call_function(torch.randn_like, (z,))
    W, later = blocks.W_embed, []
    W_embed = None if W is None else buffer("W_embed", W)
    a, b, c = (value.tolist() for value in (schedule.a, schedule.b, schedule.c))
    for t, block in enumerate(blocks.to_modules(), start=1):
        logits = part(f"block_{t}", block, *(z if name == "z" else h for name in inputs))
        p = graph.call_function(torch.softmax, (logits, -1))
        if t > blocks.T // 2:
            later.append(p)
        u_hat = p if W_embed is None else graph.call_function(torch.matmul, (p, W_embed))
        u_hat, z = graph.call_function(mul, (u_hat, a[t])), graph.call_function(mul, (z, b[t]))
        z = graph.call_function(add, (u_hat, z))
        if with_noise:
            eps = graph.call_function(torch.randn_like, (z,))
            eps = graph.call_function(mul, (eps, c[t] ** 0.5))
            z = graph.call_function(add, (z, eps))
    if with_noise:
        assert model.head is not None  # by Model.to_module
        scores = part("head", plain_modules.copied_module(model.head, 0), z)
        later = [graph.call_function(torch.softmax, (scores, -1))]
    elif W is None:  # <u_y, z> is column y of z, and every |u_y| is 1
        scores = z
    else:
        alpha_bar = schedule.alpha_bar[-1].item()
        weight, bias = alpha_bar**0.5 * W.T, -alpha_bar / 2 * W.square().sum(1)
        scores = graph.call_function(torch.matmul, (z, buffer("score_weight", weight)))
        scores = graph.call_function(add, (scores, buffer("score_bias", bias)))
    labels = graph.call_function(torch.argmax, (scores, -1))
    total = later[0]
    for p in later[1:]:
        total = graph.call_function(add, (total, p))
    graph.output((labels, graph.call_function(mul, (total, 1 / len(later)))))
    return fx.GraphModule(root, graph, class_name="Classifier").eval().requires_grad_(False)


def affine(model: "Model") -> dict[str, Tensor]:
    """Mean and scale (channels, 1); without training data (2, channels, 1), those of bytes
    first."""
    normalisation = Normalisation.of(model.normalize)
    kinds = {"bytes": torch.uint8, "numbers": torch.float64}
    wanted = [*kinds.values()] if model.inputs is None else [kinds[model.inputs.kind]]
    made = [normalisation.mean_and_scale(kind, len(normalisation.mean)) for kind in wanted]
    if len(made) == 1:
        mean, scale = (value[:, None] for value in made[0])
    else:
        pairs = zip(*made, strict=True)
        mean, scale = (torch.stack([v.float() for v in pair])[..., None] for pair in pairs)
    return {"mean": mean.to(model.device), "scale": scale.to(model.device)}
