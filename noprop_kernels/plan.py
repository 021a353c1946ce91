"""A block as data: named layers over named inputs, which every backend walks in order.

The order inside a layer is product, bias, norm, activation, then `add` (an earlier result of the
same width). Several inputs of one layer are concatenated in the given order, without a copy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Protocol

from .check import LARGEST, SMALLEST, check_number, check_positive

MOST_SOURCES = 128  # that a kernel reads side by side

Shape = tuple[int, ...]  # of one row


class Layer(Protocol):
    """What a plan and the library ask of every kind of layer. `ins`: its sources' shapes, in order.

    What a kind has beside that is known to the plan's own backends alone, in a table by kind.
    """

    @property
    def sources(self) -> tuple[str, ...]:
        """The inputs and earlier layers that it computes with."""
        ...

    @property
    def add(self) -> str | None:
        """An earlier result of its own shape, which is added last."""
        ...

    def out_shape(self, ins: Sequence[Shape]) -> Shape: ...

    def parameters(self, ins: Sequence[Shape]) -> dict[str, Shape]:
        """Shapes of one slice's parameters, by their names inside the layer."""
        ...

    def statistics(self, ins: Sequence[Shape]) -> dict[str, Shape]:
        """Shapes of one slice's running statistics, by their names inside the layer."""
        ...

    def fan_in(self, ins: Sequence[Shape]) -> int:
        """Terms in the sum of one element of the product."""
        ...

    def multiply_adds(self, ins: Sequence[Shape]) -> int:
        """Of the product, for one row: the work of a forward pass, and of either gradient."""
        ...

    @property
    def momentum(self) -> float:
        """Of the running statistics, where there are any."""
        ...


@dataclass(frozen=True)
class Activation:
    """A function of one number, of which every backend has a pair: itself and its gradient.

    Args:
        needs: what its gradient reads and a backend keeps: its result (before `add`), or what it
            is a function of.
    """

    needs: Literal["result", "preactivation"]


ACTIVATIONS = {
    "relu": Activation(needs="result"),
    "gelu": Activation(needs="preactivation"),
}
ACTIVATION_NAMES = (None, *ACTIVATIONS)


@dataclass(frozen=True)
class BatchNorm:
    """Normalisation over the batch, as torch.nn.BatchNorm1d: the variance is biased in the step,
    unbiased in the running statistics, which are updated by `momentum`.

    Raises:
        ValueError: eps is not above 0, or momentum not in [0, 1].
    """

    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        rules = {
            "eps": ("be above 0", lambda value: SMALLEST <= value <= LARGEST),
            "momentum": ("be in [0, 1]", lambda value: 0 <= value <= 1),
        }
        for name, rule in rules.items():
            value = check_number("BatchNorm", name, getattr(self, name), *rule)
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Dense:
    """A dense layer: add + activation(norm(concat(inputs) @ weight.T + bias)).

    Args:
        inputs: name, or names, of inputs of the plan or of earlier layers.
        features: width of the result.
        activation: None, "relu" or "gelu" (y Phi(y), Phi the normal distribution function).
        norm: None or a BatchNorm.
        add: name of an earlier result of the same width, added last.

    Raises:
        ValueError: an argument does not fit.
    """

    inputs: str | tuple[str, ...]
    features: int
    activation: str | None = None
    norm: BatchNorm | None = None
    add: str | None = None

    def __post_init__(self) -> None:
        features = check_positive("Dense", "features", self.features)
        object.__setattr__(self, "features", features)
        if not (self.norm is None or isinstance(self.norm, BatchNorm)):
            raise ValueError(f"Dense: norm must be None or a BatchNorm, got {self.norm!r}")
        if not (self.add is None or isinstance(self.add, str)):
            raise ValueError(f"Dense: add must be None or a name, got {self.add!r}")
        if not isinstance(self.inputs, str):
            if not isinstance(self.inputs, Sequence):
                raise ValueError(f"Dense: inputs must be a name or names, got {self.inputs!r}")
            object.__setattr__(self, "inputs", tuple(self.inputs))
        if not all(isinstance(source, str) for source in self.sources):
            raise ValueError(f"Dense: inputs must be names, got {self.inputs!r}")
        if len(self.sources) > MOST_SOURCES:
            raise ValueError(
                f"Dense: inputs must be at most {MOST_SOURCES} names, got {len(self.sources)}"
            )
        if self.activation not in ACTIVATION_NAMES:
            raise ValueError(
                f"Dense: activation must be one of {ACTIVATION_NAMES}, got {self.activation!r}"
            )
        if not self.sources:
            raise ValueError("Dense: inputs must name at least one result, got none")

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)

    @property
    def needs_preactivation(self) -> bool:
        """Whether the activation's gradient reads what stood before it."""
        if self.activation is None:
            return False
        return ACTIVATIONS[self.activation].needs == "preactivation"

    def out_shape(self, ins: Sequence[Shape]) -> Shape:
        return (self.features,)

    def parameters(self, ins: Sequence[Shape]) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {
            "weight": (self.features, self.fan_in(ins)),
            "bias": (self.features,),
        }
        if self.norm is not None:
            shapes |= {"norm.weight": (self.features,), "norm.bias": (self.features,)}
        return shapes

    def statistics(self, ins: Sequence[Shape]) -> dict[str, Shape]:
        if self.norm is None:
            return {}
        return {"norm.running_mean": (self.features,), "norm.running_var": (self.features,)}

    def fan_in(self, ins: Sequence[Shape]) -> int:
        return sum(math.prod(shape) for shape in ins)

    def multiply_adds(self, ins: Sequence[Shape]) -> int:
        return self.features * self.fan_in(ins)

    @property
    def momentum(self) -> float:
        return 0.0 if self.norm is None else self.norm.momentum


KINDS = (Dense,)  # of layers that a plan may have


class Plan:
    """The layers of a block, checked: every name is known, every shape fits, every result is used.

    Args:
        inputs: shape of each input by name; only one-dimensional shapes so far. "z" is the noisy
            label embedding and must be among them; every other input comes from the caller.
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
            if not (isinstance(name, str) and isinstance(shape, Sequence) and len(shape) == 1):
                raise ValueError(f"Plan: input {name!r} must have a shape (F,), got {shape}")
            width = check_positive("Plan", f"the width of input {name!r}", shape[0])
            shapes[name] = (width,)
        in_shapes: dict[str, tuple[Shape, ...]] = {}
        unused = set(inputs)
        for name, layer in layers.items():
            if not (isinstance(name, str) and isinstance(layer, KINDS)):
                raise ValueError(f"Plan: layers must be Dense by name, got {name!r}: {layer!r}")
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
                    f"Plan: layer {name!r} has width {math.prod(shapes[name])} and cannot add "
                    f"{layer.add!r} of width {math.prod(shapes[layer.add])}"
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
        return bool(self.statistics())

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
