"""grouped: all blocks at once, their convolutions as one with T groups, their dense layers as
batched products; channels last. The first convolution has no groups, since the blocks share x.
"""

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, max_pool2d

from ....problem.problem import Problem, Weights
from ..stacked import Stacked, losses_of
from .network import beside, dropped, each, images


class Grouped(Stacked):
    memory_format = torch.channels_last

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        self.stats = problem.statistics()

    def first_params(self) -> Weights:
        """A convolution's with the blocks' channels beside each other, a dense layer's stacked."""
        return {
            name: w.flatten(0, 1).clone(memory_format=self.memory_format)
            if w.ndim == 5
            else w.clone()
            for name, w in self.problem.weights.items()
        }

    def losses(self, x: Tensor, u_y: Tensor, eps: Tensor) -> Tensor:
        z = self.signal * u_y + self.noise * eps
        x = images(self.problem, x).contiguous(memory_format=self.memory_format)
        return losses_of(self.dense(self.features(x), z), u_y, self.problem.weight)

    def features(self, x: Tensor) -> Tensor:
        """(T, B, features) of the images."""
        p, T, drops = self.params, self.shape.T, each(self.dropout, beside)
        for name in ("c1", "c2", "c3"):
            groups = 1 if name == "c1" else T
            weight, bias = p[f"{name}.weight"], p[f"{name}.bias"].flatten()
            x = torch.conv2d(x, weight, bias, groups=groups).relu()
            x = dropped(x if name == "c2" else max_pool2d(x, 2), drops[name])
        return x.unflatten(1, (T, -1)).transpose(0, 1).flatten(2)

    def dense(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits (T, B, M) of features (T, B, F) and z (T, B, D)."""
        hz = self.normed("hz", z).relu()
        hz = hz + self.normed("sum", self.normed("skip", hz).relu())
        f = self.normed("f1", torch.cat([self.normed("hx", x), hz], dim=2)).relu()
        return self.product("logits", self.normed("f2", f).relu())

    def product(self, name: str, x: Tensor) -> Tensor:
        p = self.params
        return torch.baddbmm(p[f"{name}.bias"][:, None], x, p[f"{name}.weight"].mT)

    def normed(self, name: str, x: Tensor) -> Tensor:
        """The norm of all blocks is one over T H features."""
        y, key = self.product(name, x), f"{name}.norm."
        wide = y.transpose(0, 1).flatten(1)
        stats = (self.stats[key + part].view(-1) for part in ("running_mean", "running_var"))
        affine = (self.params[key + part].view(-1) for part in ("weight", "bias"))
        wide = batch_norm(wide, *stats, *affine, training=True)
        return wide.unflatten(1, (len(y), -1)).transpose(0, 1)

    def weights(self) -> Weights:
        first = self.problem.weights
        params = {
            name: w.detach().contiguous().view(first[name].shape) for name, w in self.params.items()
        }
        return {name: w.clone() for name, w in (params | self.stats).items()}
