"""jax_step: a block at a time in one jitted function, state donated, maps with their channels last.

XLA takes all cores on import, which cannot be changed later.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import Tensor

from ....problem.problem import Problem, Weights
from ...contender import Contender
from ..jax_step import Arrays, adamw, to_jax
from ..step_compiled import rates
from .network import images

NORM_EPS, MOMENTUM = 1e-5, 0.1


def convolution(p: Arrays, name: str, x: jax.Array, pooled: bool) -> jax.Array:
    layout = ("NHWC", "OIHW", "NHWC")
    y = lax.conv_general_dilated(x, p[f"{name}.weight"], (1, 1), "VALID", dimension_numbers=layout)
    y = jax.nn.relu(y + p[f"{name}.bias"])
    if not pooled:
        return y
    B, height, width, C = y.shape  # even: nothing is computed that the pool would drop
    return y.reshape(B, height // 2, 2, width // 2, 2, C).max(axis=(2, 4))


def loss(
    p: Arrays, x: jax.Array, z: jax.Array, u_y: jax.Array, weight: Any, drops: dict, key: jax.Array
) -> tuple[jax.Array, Arrays]:
    """A block's loss, and the mean and unbiased variance of each batch norm.

    `drops`: of each convolution, dropout's rate, or the factors (B, H, W, C) of a check.
    """
    stats: Arrays = {}

    def dense(name: str, x: jax.Array) -> jax.Array:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def normed(name: str, x: jax.Array) -> jax.Array:
        y = dense(name, x)
        mean, var = y.mean(axis=0), y.var(axis=0)
        B = len(y)
        stats[f"{name}.norm.running_mean"] = mean
        stats[f"{name}.norm.running_var"] = var * (B / (B - 1))
        scale = p[f"{name}.norm.weight"] / jnp.sqrt(var + NORM_EPS)
        return (y - mean) * scale + p[f"{name}.norm.bias"]

    for i, (name, drop) in enumerate(drops.items()):
        x = convolution(p, name, x, pooled=name != "c2")
        if isinstance(drop, float):
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - drop, x.shape)
            x = jnp.where(kept, x / (1 - drop), 0)
        else:
            x = x * drop
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    hz = jax.nn.relu(normed("hz", z))
    hz = hz + normed("sum", jax.nn.relu(normed("skip", hz)))
    f = jax.nn.relu(normed("f1", jnp.concatenate([normed("hx", x), hz], axis=1)))
    u_hat = jax.nn.softmax(dense("logits", jax.nn.relu(normed("f2", f))))
    return weight * jnp.square(u_hat - u_y).sum(axis=1).mean(), stats


class PaperJaxStep(Contender):
    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        T = self.shape.T
        zeros = {name: torch.zeros_like(w) for name, w in problem.weights.items()}
        parts = [problem.weights, zeros, zeros]
        self.state = [
            tuple({name: to_jax(w[t]) for name, w in part.items()} for part in parts)
            for t in range(T)
        ]
        statistics = problem.statistics()
        self.stats = [{n: to_jax(value[t]) for n, value in statistics.items()} for t in range(T)]
        self.updates, self.key = 0, jax.random.key(0)
        self.images = to_jax(images(problem, problem.X).movedim(1, -1).contiguous())
        self.labels = to_jax(problem.Y.int())
        levels = torch.stack([problem.signal, problem.noise, problem.weight], dim=1)
        self.levels = [tuple(level) for level in levels.numpy()]

        def step(rates_of_drops, state, stats, x, u_y, eps, level, now, factors, key):
            signal, noise, weight = level
            drops = dict(rates_of_drops) | factors
            z = signal * u_y + noise * eps
            grad = jax.value_and_grad(loss, has_aux=True)
            (value, seen), grads = grad(state[0], x, z, u_y, weight, drops, key)
            stats = {n: s + MOMENTUM * (seen[n] - s) for n, s in stats.items()}
            return adamw(state, grads, *now), stats, value

        self.step = jax.jit(step, static_argnums=0, donate_argnums=(1, 2))

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        s, history = self.shape, []
        rates_of_drops = tuple(s.dropout.items())
        for k, rows in enumerate(indices.int().numpy()):
            self.updates += 1
            now = tuple(
                map(np.float32, rates(self.problem.lr, self.problem.weight_decay, self.updates))
            )
            self.key, drawn, key = jax.random.split(self.key, 3)
            size = (s.T, s.B, s.D)
            e = jax.random.normal(drawn, size) if eps is None else to_jax(eps[k])
            x, u_y = self.images[rows], jax.nn.one_hot(self.labels[rows], s.M)
            for t, level in enumerate(self.levels):
                made = self.step(
                    *(rates_of_drops, self.state[t], self.stats[t], x, u_y, e[t]),
                    *(level, now, self.factors(t)),
                    jax.random.fold_in(key, t),
                )
                self.state[t], self.stats[t], value = made
                history.append(value)
        jax.block_until_ready(self.state)
        return torch.from_numpy(np.stack(history)).view(len(indices), s.T)

    def factors(self, t: int) -> Arrays:
        """Those of a check for block t's cropped maps, with their channels last; else none."""
        found: Arrays = {}
        for name, (height, width) in self.shape.plan.live().items():
            if isinstance(drop := self.dropout[name], Tensor):
                scale = 1 if name == "c2" else 2
                cropped = drop[t, ..., : height // scale, : width // scale]
                found[name] = to_jax(cropped.movedim(1, -1).contiguous())
        return found

    def step_bytes(self, indices: Tensor) -> None:
        return None  # XLA's memory, which PyTorch's record does not show

    def weights(self) -> Weights:
        blocks = [
            params | stats for (params, *_), stats in zip(self.state, self.stats, strict=True)
        ]
        return {
            name: torch.from_numpy(np.stack([np.array(block[name]) for block in blocks]))
            for name in blocks[0]
        }
