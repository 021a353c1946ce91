"""nk.Linear: torch.nn.Linear whose weights are updated inside its backward."""

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .autograd import dense_ops
from .autograd.layer import Layer, check_rows, plan_of, properties_of
from .autograd.layer_optimizer import LayerOptimizer
from .autograd.linear_node import OP, forward_again, updating
from .autograd.wrapped import is_plain
from .backends import dispatch
from .backends.calls import Slices
from .check import check_tensor
from .optimizers import NAMES, Optimizer
from .plan import ACTIVATION_NAMES

_ASKED: Any = object()  # default: no optimizer was given

# by layer: the properties of tensors that passed the checks, and the views that kernels get
_checked: WeakKeyDictionary[Any, tuple[list, Slices]] = WeakKeyDictionary()


class Linear(nn.Linear):
    """y = activation(x @ weight.T + bias), as torch.nn.Linear; backward updates weight and bias.

    The optimizer runs in the kernel of the weight gradient, which is never written to memory: no
    `.grad`, no `zero_grad`, no `step`. Every backward that reaches the parameters is one update, at
    the weights of the forward. A gradient of y that is not finite updates nothing; that of no rows
    is 0, as in torch, and so decay and moments make a step. In eval mode, and with
    requires_grad=False, parameters are constants. torch.autograd.grad with respect to inputs alone
    updates nothing. Inside torch.autocast the input and y have its dtype, as torch.nn.Linear's;
    with bfloat16 so do the products' operands, and parameters stay float32.

    Uses that an update inside backward cannot honour raise a RuntimeError before anything is
    written: the layer (or its weight, in two layers) twice in one graph, backward twice,
    create_graph=True, gradients of the parameters by torch.autograd.grad, parameters changed
    between forward and backward; a weight of two layers; DistributedDataParallel, fully_shard, and
    anything that makes the weight a result or a tensor subclass (parametrizations, pruning,
    FullyShardedDataParallel, DTensor). A layer cannot detect: a gradient scaler's factor and
    clipping by the norm of several layers' gradients, both of which act on `.grad`; a gradient
    summed over several backwards, each of which is an update here; other uses of its weight in the
    graph; ranks that train copies of it outside DistributedDataParallel. An optimizer of
    torch.optim over its parameters finds no `.grad` and does nothing.

    Args:
        in_features, out_features, bias: as torch.nn.Linear, with its initialisation.
        optimizer: required: one of noprop_kernels.optimizers, which backward applies; None:
            backward leaves `.grad` for an outside optimizer.
        activation: None, "relu" or "gelu", in the kernel of the product.
        precision: "float32" | "tf32" | "bfloat16", of the products' operands.
        backend: a backend to force; None: the best that runs here.
        device: of the parameters, as torch.nn.Linear.

    Attributes:
        optimizer: None, or its `lr` and `weight_decay`, which may be set between steps.
        updates: (1,) int64, the updates so far.

    Raises:
        ValueError: an argument does not fit, or optimizer is not given.
    """

    updates: Tensor
    _buffers: dict[str, Any]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        optimizer: Optimizer | None = _ASKED,
        activation: str | None = None,
        precision: str = "float32",
        backend: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if optimizer is _ASKED:
            raise ValueError(
                f"{OP}: optimizer must be given: {NAMES} of noprop_kernels, which "
                "backward applies to the weights, or None, which leaves .grad to torch.optim"
            )
        if activation not in ACTIVATION_NAMES:
            raise ValueError(
                f"{OP}: activation must be one of {ACTIVATION_NAMES}, got {activation!r}"
            )
        plan_of(in_features, out_features, activation)  # checks the sizes
        dispatch.check_options(OP, precision, backend)
        super().__init__(in_features, out_features, bias, device=device, dtype=torch.float32)
        self.optimizer = None if optimizer is None else LayerOptimizer(OP, optimizer)
        self.activation = activation
        self.precision = precision
        self.backend = backend
        if self.optimizer is None:
            return
        for name, value in self.named_parameters():
            for moment in self.optimizer.moments:
                zeros = torch.zeros_like(value, requires_grad=False)
                self.register_buffer(f"{name}_{moment}", zeros, persistent=False)
        counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.register_buffer("updates", counter, persistent=False)

    def reset_parameters(self) -> None:
        """Initialises the weights as torch.nn.Linear does, and resets the optimizer's state."""
        super().reset_parameters()
        for buffer in self._buffers.values():
            buffer.zero_()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch.nn.Linear's name
        """y = activation(input @ weight.T + bias).

        Args:
            input: (*, in) float32; of any float dtype inside torch.autocast.

        Returns:
            (*, out) float32, or of autocast's dtype.

        Raises:
            ValueError: the input, or a parameter as it is now, does not fit.
            RuntimeError: another layer or a wrapper also updates its parameters.
            BackendError: no backend can run it.
        """
        if isinstance(input, Tensor):
            device = "cpu" if input.is_cpu else input.device.type  # which takes half a microsecond
            if torch.is_autocast_enabled(device):
                return self._autocast(input, torch.get_autocast_dtype(device))
        return self._run(input, self.precision)

    def _autocast(self, input: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: A002
        if not input.is_floating_point() or input.dtype == torch.float64:  # autocast leaves them
            return self._run(input, self.precision)
        precision = "bfloat16" if dtype == torch.bfloat16 else self.precision
        with torch.autocast(input.device.type, enabled=False):
            return self._run(input.to(dtype).float(), precision).to(dtype)

    def _run(self, input: Tensor, precision: str) -> Tensor:  # noqa: A002
        if self.optimizer is not None and not torch.compiler.is_compiling():
            y = forward_again(self, precision, input)
            if y is not None:
                return y
        own: Any = self._parameters  # torch.nn.Module's look-up takes half a microsecond
        weight = own["weight"] if "weight" in own else self.weight
        bias = own["bias"] if "bias" in own else self.bias
        if self.optimizer is not None:
            learns = weight.requires_grad or (bias is not None and bias.requires_grad)
            if self.training and torch.is_grad_enabled() and learns:
                return updating(self, precision, input, weight, bias)
            if not self.training and torch.is_grad_enabled():
                weight, bias = weight.detach(), None if bias is None else bias.detach()
        options = (self.activation, precision, self.backend)
        return dense_ops.run(OP, "input", input, weight, bias, *options)

    def updates_itself(self, parameter: Tensor) -> bool:
        """Whether `parameter` is this layer's, and is updated in its backward."""
        own = self._parameters.values()
        return self.optimizer is not None and any(value is parameter for value in own)

    def extra_repr(self) -> str:
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"{super().extra_repr()}{activation}, optimizer={self.optimizer}"

    # the optimizer's state, beside state_dict

    def optimizer_state_dict(self) -> dict[str, Any]:
        """Moments, count of updates and numbers of the optimizer, in the form of torch.optim's.

        A torch.optim optimizer of the same kind over `parameters()` can load it, and the other way
        round. Tensors are the layer's own, as in state_dict.

        Raises:
            ValueError: optimizer=None.
        """
        optimizer, parts = self._optimizer("optimizer_state_dict"), [*dict(self.named_parameters())]
        return optimizer.state_dict(self._buffers, self.updates, parts)

    def load_optimizer_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the result of `optimizer_state_dict`, or torch.optim's for these parameters.

        Raises:
            ValueError: it belongs to another optimizer or shape, or optimizer=None; nothing has
                changed.
        """
        op, parts = "load_optimizer_state_dict", [*dict(self.named_parameters())]
        self._optimizer(op).load(op, state_dict, self._buffers, self.updates, parts)

    def _optimizer(self, op: str) -> LayerOptimizer:
        if self.optimizer is None:
            raise ValueError(f"{op}: optimizer must not be None; give one to {OP}")
        return self.optimizer

    # every forward

    def checked_layer(
        self, precision: str, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Layer:  # noqa: A002
        """The current tensors, checked so that a kernel can address them, and the backend."""
        device, moments = weight.device, dict(self._buffers)
        updates = moments.pop("updates", None)
        kept = {"updates": updates}
        for part in ("weight",) if bias is None else ("weight", "bias"):
            for moment in self._optimizer(OP).moments:
                kept[f"{part}_{moment}"] = moments.get(f"{part}_{moment}")
        for name, value in kept.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{OP}: {name} must be a tensor, got {type(value).__name__}")
        plan = plan_of(self.in_features, self.out_features, self.activation)
        backend = dispatch.choose(plan, device, precision, self.backend)
        check_rows(OP, "input", input, self.in_features, device)
        layer = Layer(
            *(weight, bias, self.activation, precision, backend, moments, updates),
            op=OP,
            name="input",
        )
        if layer.takes_tensors:  # and checks all but their kind
            if not all(value is None or is_own(value) for value in layer.tensors):
                self._check({"weight": weight, "bias": bias, **moments}, device)
            return layer
        tensors = {"weight": weight, "bias": bias, **moments}
        properties = [precision, self.activation, *map(properties_of, (*layer.tensors, updates))]
        seen, layer.made = _checked.get(self, (None, None))
        if properties != seen:
            layer.made = None
            self._check(tensors, device)
            _checked[self] = properties, layer.slices()
        return layer

    def _check(self, tensors: Mapping[str, Tensor | None], device: torch.device) -> None:
        shapes = {"weight": (self.out_features, self.in_features), "bias": (self.out_features,)}
        for name, value in tensors.items():
            if value is None:
                continue
            if not is_plain(value):
                raise ValueError(
                    f"{OP}: {name} must be a plain parameter to be updated, got "
                    f"{type(value).__name__}; optimizer=None leaves it to torch"
                )
            if not value.is_leaf:
                raise ValueError(
                    f"{OP}: {name} must be a parameter to be updated, got a result, as "
                    "parametrizations, pruning and sharding make; optimizer=None allows them"
                )
            check_tensor(OP, name, value, shape=shapes[name.split("_")[0]], device=device)
            if not value.is_contiguous():
                raise ValueError(f"{OP}: {name} must be contiguous, got strides {value.stride()}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if (dtype := fn(self.weight.new_empty(0)).dtype) != torch.float32:
            raise ValueError(
                f"{OP}: parameters must stay torch.float32, got {dtype}; precision='bfloat16' or "
                "torch.autocast have the products in bfloat16"
            )
        return super()._apply(fn, recurse)


def is_own(tensor: Tensor) -> bool:
    """Whether a tensor's values are at its address, and it is no result of others."""
    return is_plain(tensor) and tensor.is_leaf
