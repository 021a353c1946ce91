"""The kinds of layers that a plan may have, and what every kind is asked.

The order inside a layer is product, bias, norm, activation, pool, dropout, then `add` (an earlier
result of the same shape).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .check import LARGEST, SMALLEST, check_number, check_positive

MOST_SOURCES = 128  # that a kernel reads side by side
MOST_KERNEL = 7  # rows of a convolution's window

Shape = tuple[int, ...]  # of one row: (F,), or an image (C, H, W)


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
    def dropout(self) -> float:
        """The part of the result that is 0 in training."""
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
    def dropout(self) -> float:
        return 0.0

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


@dataclass(frozen=True)
class MaxPool2d:
    """The maximum of each window of 2 x 2 pixels; an odd last row or column is dropped.

    Of equal pixels the first, row by row, gets the gradient, as with torch.nn.MaxPool2d.

    Raises:
        ValueError: kernel_size is not 2.
    """

    kernel_size: int = 2

    def __post_init__(self) -> None:
        if check_positive("MaxPool2d", "kernel_size", self.kernel_size) != 2:
            raise ValueError(f"MaxPool2d: kernel_size must be 2, got {self.kernel_size!r}")

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The size of a pooled map."""
        return height // self.kernel_size, width // self.kernel_size


@dataclass(frozen=True)
class Conv2d:
    """A convolution: add + dropout(pool(activation(conv2d(input, weight) + bias))).

    Its windows have stride 1 and lie inside the image: a map of H x W pixels becomes one of
    (H - kernel_size + 1) x (W - kernel_size + 1), before the pool.

    Args:
        inputs: name of an input of the plan or of an earlier layer, an image (C, H, W).
        channels: of the result.
        kernel_size: rows and columns of a window, 1..7.
        activation: None or "relu".
        pool: None or a MaxPool2d.
        dropout: the part of the result that is 0 in training, the rest being scaled by
            1 / (1 - dropout); above 0 only with activation "relu".
        add: name of an earlier result of the same shape, added last.

    Raises:
        ValueError: an argument does not fit.
    """

    inputs: str
    channels: int
    kernel_size: int = 3
    activation: str | None = None
    pool: MaxPool2d | None = None
    dropout: float = 0.0
    add: str | None = None

    def __post_init__(self) -> None:
        channels = check_positive("Conv2d", "channels", self.channels)
        object.__setattr__(self, "channels", channels)
        size = check_positive("Conv2d", "kernel_size", self.kernel_size, MOST_KERNEL)
        object.__setattr__(self, "kernel_size", size)
        if not isinstance(self.inputs, str):
            raise ValueError(f"Conv2d: inputs must be one name, got {self.inputs!r}")
        if self.activation not in (None, "relu"):
            raise ValueError(f"Conv2d: activation must be None or 'relu', got {self.activation!r}")
        if not (self.pool is None or isinstance(self.pool, MaxPool2d)):
            raise ValueError(f"Conv2d: pool must be None or a MaxPool2d, got {self.pool!r}")
        if not (self.add is None or isinstance(self.add, str)):
            raise ValueError(f"Conv2d: add must be None or a name, got {self.add!r}")
        dropout = check_number(
            "Conv2d", "dropout", self.dropout, "be in [0, 1)", lambda value: 0 <= value < 1
        )
        object.__setattr__(self, "dropout", dropout)
        # a result above 0 then says "active and kept", so that no mask has to be saved
        if dropout > 0 and self.activation != "relu":
            raise ValueError(
                f"Conv2d: dropout must be 0 without activation 'relu', got {dropout!r}"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.inputs,)

    def map_shape(self, ins: Sequence[Shape]) -> tuple[int, int]:
        """Height and width of the result before the pool."""
        ((_, height, width),) = self._image(ins)
        return height - self.kernel_size + 1, width - self.kernel_size + 1

    def out_shape(self, ins: Sequence[Shape]) -> Shape:
        height, width = self.map_shape(ins)
        if self.pool is not None:
            height, width = self.pool.of(height, width)
        if min(height, width) < 1:
            raise ValueError(
                f"Conv2d: input {self.inputs!r} must be large enough for a window of "
                f"{self.kernel_size} x {self.kernel_size} pixels and the pool, got {ins[0]}"
            )
        return self.channels, height, width

    def parameters(self, ins: Sequence[Shape]) -> dict[str, Shape]:
        ((channels, *_),) = self._image(ins)
        size = self.kernel_size
        return {"weight": (self.channels, channels, size, size), "bias": (self.channels,)}

    def statistics(self, ins: Sequence[Shape]) -> dict[str, Shape]:
        return {}

    def fan_in(self, ins: Sequence[Shape]) -> int:
        ((channels, *_),) = self._image(ins)
        return channels * self.kernel_size**2

    def multiply_adds(self, ins: Sequence[Shape]) -> int:
        return self.channels * self.fan_in(ins) * math.prod(self.map_shape(ins))

    @property
    def momentum(self) -> float:
        return 0.0

    def _image(self, ins: Sequence[Shape]) -> Sequence[Shape]:
        if len(ins[0]) != 3:
            raise ValueError(
                f"Conv2d: input {self.inputs!r} must be an image (C, H, W), got shape {ins[0]}"
            )
        return ins


KINDS = (Dense, Conv2d)  # of layers that a plan may have
