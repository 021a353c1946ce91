"""A plan's forward and backward pass in equations.py's operations, over stacked slices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from ...plan import Conv2d, Dense, Plan, Shape
from ..calls import Tensors
from . import equations as ref

# uniform numbers (n, B, columns) for a layer's dropout, by its name and the columns of its result
Uniform = Callable[[str, int], Tensor]


@dataclass
class Saved:
    """Results of the forward pass that the backward pass needs, by layer name."""

    training: bool
    precision: str  # of the products
    results: Tensors  # of inputs and layers
    kept: Tensors  # what the activations' gradients read
    y_hat: Tensors  # normalised, before scale and shift
    rstd: Tensors
    batch: Tensors  # mean and unbiased variance of the batch, by the running statistic's name
    places: Tensors  # of each pooled maximum in its window
    shapes: Mapping[str, Shape]
    uniform: Uniform | None  # None: no dropout


def forward_layers(
    plan: Plan,
    params: Tensors,
    stats: Tensors,
    inputs: Tensors,
    *,
    training: bool,
    precision: str = "float32",
    uniform: Uniform | None = None,
) -> Saved:
    """Every result of the plan; the logits are results[plan.output]."""
    uniform = uniform if training else None
    saved = Saved(training, precision, dict(inputs), {}, {}, {}, {}, {}, plan.shapes, uniform)
    results = saved.results
    for name, layer in plan.layers.items():
        y = KINDS[type(layer)].forward(layer, name, params, stats, saved)
        results[name] = y + results[layer.add] if layer.add else y
    return saved


def backward_layers(
    plan: Plan, params: Tensors, saved: Saved, d_logits: Tensor, wanted: frozenset[str]
) -> tuple[Tensors, Tensors]:
    """Gradients of all parameters, in plan order, and of the `wanted` inputs."""
    needed = plan.needs_gradient(wanted)
    consumers: dict[str, list[Tensor]] = {name: [] for name in needed}  # last consumer first
    consumers[plan.output].append(ref.up(d_logits))

    def gradient(name: str) -> Tensor:
        # the sum over the consumers goes in plan order
        return reduce(torch.add, reversed(consumers[name]))

    grads: Tensors = {}
    for name, layer in reversed(list(plan.layers.items())):
        d_y = gradient(name)
        if layer.add in needed:
            consumers[layer.add].append(d_y)
        asked = not needed.isdisjoint(layer.sources)
        parts = KINDS[type(layer)].backward(layer, name, params, saved, d_y, grads, asked)
        for source, part in reversed(list(zip(layer.sources, parts, strict=False))):
            if source in needed:
                consumers[source].append(part)
    d_inputs = {name: gradient(name) for name in plan.inputs if name in wanted}
    return {name: grads[name] for name in plan.parameters()}, d_inputs


def forward_dense(layer: Dense, name: str, params: Tensors, stats: Tensors, saved: Saved) -> Tensor:
    sources = [saved.results[source] for source in layer.sources]
    y = ref.dense(sources, params[f"{name}.weight"], params[f"{name}.bias"], saved.precision)
    if layer.norm is not None:
        key = f"{name}.norm."
        if saved.training:
            mean, var = ref.batch_statistics(y)
            B = y.shape[1]
            saved.batch[key + "running_mean"] = mean
            unbiased = saved.batch[key + "running_var"] = var * (B / (B - 1))
            # NaN where the running statistics would overflow, so that the loss shows it
            var = var + (unbiased - unbiased)
        else:
            mean, var = stats[key + "running_mean"], stats[key + "running_var"]
        saved.y_hat[name], saved.rstd[name] = ref.normalise(y, mean, var, layer.norm.eps)
        y = ref.scale_shift(saved.y_hat[name], params[key + "weight"], params[key + "bias"])
    if layer.activation is not None:
        before, y = y, ref.ACTIVATIONS[layer.activation][0](y)
        saved.kept[name] = before if layer.needs_preactivation else y
    return y


def backward_dense(
    layer: Dense,
    name: str,
    params: Tensors,
    saved: Saved,
    d_y: Tensor,
    grads: Tensors,
    asked: bool,
) -> Sequence[Tensor]:
    """The sources' gradients, where they are asked for; the parameters' are put into `grads`."""
    if layer.activation is not None:
        d_y = ref.ACTIVATIONS[layer.activation][1](d_y, saved.kept[name])
    if layer.norm is not None:
        key = f"{name}.norm."
        d_y, grads[key + "weight"], grads[key + "bias"] = ref.batch_norm_gradient(
            *(d_y, saved.y_hat[name], saved.rstd[name], params[key + "weight"]),
            training=saved.training,
        )
    sources = [saved.results[source] for source in layer.sources]
    grads[f"{name}.weight"] = ref.dense_weight_gradient(d_y, sources, saved.precision)
    # batch statistics take the bias away again: its gradient is zero, whatever the rounding
    frozen = layer.norm is not None and saved.training
    d_bias = ref.sum_rows(d_y)
    grads[f"{name}.bias"] = torch.zeros_like(d_bias) if frozen else d_bias
    if not asked:
        return ()
    d_concat = ref.dense_input_gradient(d_y, params[f"{name}.weight"], saved.precision)
    return d_concat.split([source.shape[-1] for source in sources], -1)


def image(value: Tensor, shape: Shape) -> Tensor:
    """Rows (n, B, C H W) as images (n, B, C, H, W)."""
    return value.unflatten(-1, shape)


def forward_conv2d(
    layer: Conv2d, name: str, params: Tensors, stats: Tensors, saved: Saved
) -> Tensor:
    x = image(saved.results[layer.inputs], saved.shapes[layer.inputs])
    y = ref.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], saved.precision)
    if layer.activation is not None:
        y = ref.ACTIVATIONS[layer.activation][0](y)
    if layer.pool is not None:
        y, saved.places[name] = ref.max_pool(y)
    if layer.dropout > 0 and saved.uniform is not None:
        # the numbers go pixel by pixel: a pixel's channels are neighbours
        numbers = saved.uniform(name, y[0, 0].numel()).unflatten(-1, (-1, layer.channels))
        y = ref.dropout(y.flatten(3), numbers.mT, layer.dropout)
    y = y.flatten(2)
    saved.kept[name] = y
    return y


def backward_conv2d(
    layer: Conv2d,
    name: str,
    params: Tensors,
    saved: Saved,
    d_y: Tensor,
    grads: Tensors,
    asked: bool,
) -> Sequence[Tensor]:
    """As backward_dense. A result above 0 was active and kept, whatever came behind the product."""
    if layer.activation is not None:
        d_y = ref.ACTIVATIONS[layer.activation][1](d_y, saved.kept[name])
    if layer.dropout > 0 and saved.uniform is not None:
        d_y = d_y * (1 / (1 - layer.dropout))
    x = image(saved.results[layer.inputs], saved.shapes[layer.inputs])
    d_y = image(d_y, saved.shapes[name])
    if layer.pool is not None:
        size = layer.map_shape([saved.shapes[layer.inputs]])
        d_y = ref.max_pool_gradient(d_y, saved.places[name], size)
    grads[f"{name}.weight"] = ref.conv2d_weight_gradient(d_y, x, layer.kernel_size, saved.precision)
    grads[f"{name}.bias"] = ref.sum_rows(d_y.flatten(3).sum(-1))
    if not asked:
        return ()
    d_x = ref.conv2d_input_gradient(d_y, params[f"{name}.weight"], saved.precision)
    return (d_x.flatten(2),)


class Kind(NamedTuple):
    """How a kind of layer computes its result before `add`, and the gradients behind that."""

    forward: Callable[..., Tensor]
    backward: Callable[..., Sequence[Tensor]]


KINDS: dict[type, Kind] = {
    Dense: Kind(forward_dense, backward_dense),
    Conv2d: Kind(forward_conv2d, backward_conv2d),
}
