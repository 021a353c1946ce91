"""A layer of B rows, from `inputs` features to `outputs`: nk.Linear and functional's dense ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noprop_kernels as nk

from .op import GRADIENT, RULE, UPDATES, Call, Frame, Result, Updating


def gradients(x: Tensor, d_y: Tensor) -> Result:
    return {"weight": d_y.T @ x, "bias": d_y.sum(0)}


class Layer(Updating):
    sizes = (
        *((128, 784, 256), (32, 784, 256), (128, 1024, 1024), (512, 2048, 2048)),
        *((128, 64, 64), (8, 784, 256), (1, 784, 256)),
    )
    products = 1  # as large as that of the forward
    reads = 1  # of weights or moments

    def __init__(self, B: int, inputs: int, outputs: int, **how: Any) -> None:
        super().__init__(**how)
        self.x, self.d_y = self.draw(B, inputs), GRADIENT * self.draw(B, outputs)
        weight, bias = self.draw(outputs, inputs) / inputs**0.5, self.draw(outputs)
        self.begin({"weight": weight, "bias": bias})
        self.flop = self.products * 2 * B * inputs * outputs
        self.traffic = self.reads * 4 * (inputs + 1) * outputs

    def module(self) -> nn.Linear:
        module = nn.Linear(*self.w["weight"].shape[::-1])
        module.load_state_dict(self.w)
        return module

    def our_module(self) -> nk.Linear:
        module = nk.Linear(*self.w["weight"].shape[::-1], optimizer=RULE)
        self.load(module)
        return module


class Linear(Layer):
    """A step: the forward, both gradients and AdamW."""

    name = "linear"
    contenders = ("ours", "eager", "compiled", "compiled_fused")
    products, reads = 3, 7

    def ours(self) -> Call:
        module = self.our_module()
        return self.step(module, module)

    def eager(self, compiled: bool = False) -> Call:
        module = self.module()
        optimizer = self.optimizer(dict(module.named_parameters()))
        return self.step(module, self.compile(module) if compiled else module, optimizer)

    def compiled_fused(self) -> Call:
        return self.eager(compiled=True)

    def compiled(self) -> Call:
        def work(w: Result, x: Tensor, d_y: Tensor) -> tuple[Result, Result]:
            y = F.linear(x, w["weight"], w["bias"])
            return {"y": y, "d_x": d_y @ w["weight"]}, gradients(x, d_y)

        return partial(self.written_out(work), self.x, self.d_y)

    def frame(self) -> Call:
        module, shape = self.module(), self.d_y.shape
        return self.step(module, lambda x: Frame.apply(shape, x, *module.parameters()))

    def step(
        self,
        module: nn.Module,
        forward: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Call:
        x, result = self.x.requires_grad_(), dict(module.named_parameters())

        def once() -> Result:
            x.grad = None
            y = forward(x)
            y.backward(self.d_y)
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
            result["y"], result["d_x"] = y.detach(), x.grad
            return result

        return once

    def wanted(self, contender: str) -> Result:
        x, d_y, weight = self.x.double(), self.d_y.double(), self.w["weight"].double()
        y = F.linear(x, weight, self.w["bias"].double())
        return {"y": y, "d_x": d_y @ weight} | self.moved(gradients(x, d_y))


class Dense(Layer):
    name = "dense"
    formula = staticmethod(F.linear)

    def ours(self) -> Call:
        return self.run(nk.functional.dense)

    def run(self, formula: Callable[..., Tensor]) -> Call:
        @torch.no_grad()
        def once() -> Result:
            return {"y": formula(self.x, **self.w)}

        return once

    def wanted(self, contender: str) -> Result:
        return {"y": F.linear(self.x.double(), *(value.double() for value in self.w.values()))}


class LinearForward(Dense):
    """As `Dense`, by modules."""

    name = "linear_forward"

    def __init__(self, *size: int, **how: Any) -> None:
        super().__init__(*size, **how)
        self.formula = self.module()

    def ours(self) -> Call:
        return self.run(self.our_module().eval())

    def run(self, formula: Callable[..., Tensor]) -> Call:
        self.w = {}  # the module has them
        return super().run(formula)


class DenseUpdate(Layer):
    """The parameters' gradients and AdamW, for x and d_y that are given."""

    name = "dense_update_"
    products, reads = 1, 6

    def ours(self) -> Call:
        state = {"updates": torch.tensor([UPDATES])}
        for name in self.w:
            state |= {f"{name}_m": self.m[name], f"{name}_v": self.v[name]}
        update = partial(nk.functional.dense_update_, optimizer=RULE, state=state)

        def once() -> Result:
            update(self.x, self.d_y, **self.w)
            return self.w

        return once

    def eager(self) -> Call:
        params = {name: nn.Parameter(value) for name, value in self.w.items()}
        optimizer = self.optimizer(params)

        def once() -> Result:
            for name, grad in gradients(self.x, self.d_y).items():
                params[name].grad = grad
            optimizer.step()
            return params

        return once

    def compiled(self) -> Call:
        work = self.written_out(lambda w, x, d_y: ({}, gradients(x, d_y)))
        return partial(work, self.x, self.d_y)

    def wanted(self, contender: str) -> Result:
        return self.moved(gradients(self.x.double(), self.d_y.double()))
