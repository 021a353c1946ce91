"""A plan's forward and backward pass in equations.py's operations, over stacked slices."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ...plan import Plan
from ..calls import Tensors
from . import equations as ref


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


def forward_layers(
    plan: Plan,
    params: Tensors,
    stats: Tensors,
    inputs: Tensors,
    *,
    training: bool,
    precision: str = "float32",
) -> Saved:
    """Every result of the plan; the logits are results[plan.output]."""
    saved = Saved(training, precision, dict(inputs), {}, {}, {}, {})
    results = saved.results
    for name, layer in plan.layers.items():
        sources = [results[source] for source in layer.sources]
        y = ref.dense(sources, params[f"{name}.weight"], params[f"{name}.bias"], precision)
        if layer.norm is not None:
            key = f"{name}.norm."
            if training:
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
        # the consumers are summed in plan order
        return reduce(torch.add, reversed(consumers[name]))

    grads: Tensors = {}
    for name, layer in reversed(list(plan.layers.items())):
        d_y = gradient(name)
        if layer.add in needed:
            consumers[layer.add].append(d_y)
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
        # batch statistics cancel the bias: its gradient is exactly zero
        frozen = layer.norm is not None and saved.training
        d_bias = ref.sum_rows(d_y)
        grads[f"{name}.bias"] = torch.zeros_like(d_bias) if frozen else d_bias
        if needed.isdisjoint(layer.sources):
            continue
        widths = [plan.widths[source] for source in layer.sources]
        d_concat = ref.dense_input_gradient(d_y, params[f"{name}.weight"], saved.precision)
        parts = d_concat.split(widths, -1)
        for source, part in reversed(list(zip(layer.sources, parts, strict=True))):
            if source in needed:
                consumers[source].append(part)
    d_inputs = {name: gradient(name) for name in plan.inputs if name in wanted}
    return {name: grads[name] for name in plan.parameters()}, d_inputs
