"""A block as data: named layers over named inputs, which every backend walks in order.

Several inputs of one layer are concatenated in the given order, without a copy. A dense layer reads
an image channel by channel, row by row, as torch.flatten orders it. layers.py has the kinds.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from .check import check_positive, shape_text
from .layers import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    KINDS,
    BatchNorm,
    Conv2d,
    Dense,
    Layer,
    MaxPool2d,
    Shape,
)

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_NAMES",
    "KINDS",
    "BatchNorm",
    "Conv2d",
    "Dense",
    "Layer",
    "MaxPool2d",
    "Plan",
    "Shape",
]


class Plan:
    """The layers of a block, checked: every name is known, every shape fits, every result is used.

    Args:
        inputs: shape of each input by name, (F,) or an image (C, H, W). "z" is the noisy label
            embedding and must be among them; every other input comes from the caller.
        layers: the layers by name, each after its inputs; the last one's result are the logits.

    Raises:
        ValueError: a name, a shape or an order does not fit.
    """

    def __init__(self, inputs: Mapping[str, Shape], layers: Mapping[str, Layer]) -> None:
        if not (isinstance(inputs, Mapping) and isinstance(layers, Mapping)):
            got = [type(value).__name__ for value in (inputs, layers)]
            raise ValueError(f"Plan: inputs and layers must be dicts by name, got {got}")
        if "z" not in inputs:
            raise ValueError(f'Plan: inputs must have "z", the noisy embedding, got {list(inputs)}')
        if not layers:
            raise ValueError("Plan: layers must name at least one layer, got none")
        shapes: dict[str, Shape] = {}
        for name, shape in inputs.items():
            if not (isinstance(name, str) and isinstance(shape, Sequence)) or len(shape) not in (
                1,
                3,
            ):
                raise ValueError(
                    f"Plan: input {name!r} must have a shape (F,) or (C, H, W), got {shape}"
                )
            what = "width" if len(shape) == 1 else "shape"
            sizes = [check_positive("Plan", f"the {what} of input {name!r}", n) for n in shape]
            check_positive("Plan", f"the width of input {name!r}", math.prod(sizes))
            shapes[name] = tuple(sizes)
        in_shapes: dict[str, tuple[Shape, ...]] = {}
        unused = set(inputs)
        for name, layer in layers.items():
            if not (isinstance(name, str) and isinstance(layer, KINDS)):
                raise ValueError(
                    f"Plan: layers must be Dense or Conv2d by name, got {name!r}: {layer!r}"
                )
            if name in shapes:
                raise ValueError(f"Plan: {name!r} names two results")
            if not name.isidentifier():
                raise ValueError(f"Plan: a layer's name must be an identifier, got {name!r}")
            for source in layer.sources + ((layer.add,) if layer.add else ()):
                if source not in shapes:
                    raise ValueError(
                        f"Plan: layer {name!r} reads {source!r}, which is no earlier result: "
                        f"{list(shapes)}"
                    )
                unused.discard(source)
            ins = in_shapes[name] = tuple(shapes[source] for source in layer.sources)
            check_positive("Plan", f"the inputs' width of layer {name!r}", layer.fan_in(ins))
            shapes[name] = layer.out_shape(ins)
            if layer.add and shapes[layer.add] != shapes[name]:
                raise ValueError(
                    f"Plan: layer {name!r} has shape {shape_text(shapes[name])} and cannot add "
                    f"{layer.add!r} of shape {shape_text(shapes[layer.add])}"
                )
            unused.add(name)
        output = list(layers)[-1]
        if unused != {output}:
            raise ValueError(f"Plan: results that no layer reads: {sorted(unused - {output})}")
        self.inputs = MappingProxyType({name: shapes[name] for name in inputs})
        self.layers = MappingProxyType(dict(layers))
        dense = {name: layer for name, layer in layers.items() if isinstance(layer, Dense)}
        self.dense = MappingProxyType(dense)  # the layers of this kind
        self.shapes = MappingProxyType(shapes)  # of every input and layer
        self.in_shapes = MappingProxyType(in_shapes)  # of every layer's sources
        widths = {name: math.prod(shape) for name, shape in shapes.items()}
        self.widths = MappingProxyType(widths)  # of every input and layer
        in_widths = {
            name: sum(widths[source] for source in layer.sources) for name, layer in layers.items()
        }
        self.in_widths = MappingProxyType(in_widths)  # of every layer's concatenated inputs
        self.output = output
        self._has_norm = bool(self.statistics())

    def parameters(self) -> dict[str, Shape]:
        """Shapes of one slice's parameters by their state_dict names, in plan order."""
        return {
            f"{name}.{part}": shape
            for name, layer in self.layers.items()
            for part, shape in layer.parameters(self.in_shapes[name]).items()
        }

    def statistics(self) -> dict[str, Shape]:
        """Shapes of one slice's running statistics by their state_dict names, in plan order."""
        return {
            f"{name}.{part}": shape
            for name, layer in self.layers.items()
            for part, shape in layer.statistics(self.in_shapes[name]).items()
        }

    def num_parameters(self) -> int:
        """Parameters of one block."""
        return sum(math.prod(shape) for shape in self.parameters().values())

    def fan_in(self, name: str) -> int:
        """Of a layer."""
        return self.layers[name].fan_in(self.in_shapes[name])

    def multiply_adds(self, name: str) -> int:
        """Of a layer's product, for one row."""
        return self.layers[name].multiply_adds(self.in_shapes[name])

    def momentum(self, statistic: str) -> float:
        """Of a running statistic, by its state_dict name."""
        return self.layers[statistic.partition(".")[0]].momentum

    def has_norm(self) -> bool:
        """Whether rows of a batch know each other in training, by its statistics."""
        return self._has_norm

    def live(self) -> dict[str, tuple[int, int]]:
        """The pixels of each convolution's map, before its pool, that anything depends on.

        A pool drops an odd last row and column, and so do the windows before it. Rows and columns
        beyond these need not be computed: no result reads them, and their gradient is 0.
        """
        needed: dict[str, tuple[int, int]] = dict.fromkeys(
            self.shapes, (0, 0)
        )  # height and width of each image
        found: dict[str, tuple[int, int]] = {}

        def need(name: str, height: int, width: int) -> None:
            if len(self.shapes[name]) == 3:
                needed[name] = max(needed[name][0], height), max(needed[name][1], width)

        def need_all(name: str) -> None:
            need(name, *self.shapes[name][1:] or (0, 0))

        need_all(self.output)
        for name, layer in reversed(list(self.layers.items())):
            if layer.add:
                need_all(layer.add)
            if not isinstance(layer, Conv2d):
                for source in layer.sources:
                    need_all(source)
                continue
            scale = 1 if layer.pool is None else layer.pool.kernel_size
            height, width = found[name] = needed[name][0] * scale, needed[name][1] * scale
            border = layer.kernel_size - 1
            need(layer.inputs, height + border, width + border)
        return {name: found[name] for name in self.layers if name in found}

    def has_dropout(self) -> bool:
        """Whether training draws numbers beside the noise."""
        return any(layer.dropout > 0 for layer in self.layers.values())

    def dropout_sites(self) -> dict[str, int]:
        """The ordinal of each layer with dropout, by which its numbers are addressed."""
        names = [name for name, layer in self.layers.items() if layer.dropout > 0]
        return {name: site for site, name in enumerate(names)}

    def needs_gradient(self, wanted: frozenset[str] = frozenset()) -> frozenset[str]:
        """Names whose results need a gradient: all layers, and the `wanted` inputs.

        An input's gradient costs a product of its own, so it is computed only on request.
        """
        return frozenset(self.layers) | wanted

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Plan)
            and list(self.inputs.items()) == list(other.inputs.items())
            and list(self.layers.items()) == list(other.layers.items())
        )

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((tuple(self.inputs.items()), tuple(self.layers.items())))

    def __getstate__(self) -> dict[str, dict]:
        return {"inputs": dict(self.inputs), "layers": dict(self.layers)}

    def __setstate__(self, state: dict[str, dict]) -> None:
        self.__init__(state["inputs"], state["layers"])  # a mappingproxy does not pickle

    def __repr__(self) -> str:
        layers = "".join(f"\n    {name}: {layer}," for name, layer in self.layers.items())
        return f"Plan(inputs={dict(self.inputs)}, layers={{{layers}\n}})"
