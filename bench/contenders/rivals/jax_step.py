"""jax_step: the same step in jax.jit, state donated, so that XLA may write it in place.

Rows are gathered inside the compiled step, and one compiled call draws the noise of all K steps.
XLA takes all cores on import, which cannot be changed later.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from ...problem.problem import Problem, Weights
from ..contender import Contender
from .stacked import join, split
from .step_compiled import ADAM_EPS, BETA1, BETA2, rates

Arrays = dict[str, jax.Array]


def to_jax(value: Tensor) -> jax.Array:
    return jnp.array(value.numpy())


def losses(p: Arrays, x: jax.Array, z: jax.Array, u_y: jax.Array, weight: jax.Array) -> Any:
    """The sum of the losses, which is differentiated, and each of them (T,)."""
    T, H, F = p["hx.weight"].shape
    wide = x @ p["hx.weight"].reshape(T * H, F).T + p["hx.bias"].reshape(T * H)
    hx = jax.nn.relu(wide).reshape(-1, T, H).swapaxes(0, 1)
    hz = jax.nn.relu(z @ p["hz.weight"].mT + p["hz.bias"][:, None])
    f = jax.nn.relu(hx @ p["f.x"].mT + hz @ p["f.z"].mT + p["f.bias"][:, None])
    u_hat = jax.nn.softmax(f @ p["logits.weight"].mT + p["logits.bias"][:, None])
    each = weight * jnp.square(u_hat - u_y).sum(axis=2).mean(axis=1)
    return each.sum(), each


def adamw(state: tuple[Arrays, ...], grads: Arrays, rate: Any, keep: Any, correction: Any) -> Any:
    """The weights and both moments after AdamW with the numbers of `rates`."""
    p, m, v = state
    m = jax.tree.map(lambda m, g: m + (1 - BETA1) * (g - m), m, grads)
    v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, grads)

    def moved(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return keep * p - rate * m / (jnp.sqrt(v) * correction + ADAM_EPS)

    return jax.tree.map(moved, p, m, v), m, v


class JaxStep(Contender):
    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        s = self.shape
        params = {name: to_jax(value) for name, value in split(problem.weights).items()}
        zeros = [{name: jnp.zeros_like(p) for name, p in params.items()} for _ in range(2)]
        self.state = (params, *zeros)
        self.updates, self.key = 0, jax.random.key(0)
        self.data = (to_jax(problem.X), to_jax(problem.Y.int()))
        signal, noise = (to_jax(n)[:, None, None] for n in (problem.signal, problem.noise))
        weight = to_jax(problem.weight)

        @partial(jax.jit, donate_argnums=0)
        def step(state, data, rows, eps, rate, keep, correction):
            x, u_y = data[0][rows], jax.nn.one_hot(data[1][rows], s.M)
            z = signal * u_y + noise * eps
            grads, each = jax.grad(losses, has_aux=True)(state[0], x, z, u_y, weight)
            return adamw(state, grads, rate, keep, correction), each

        self.step = step
        self.normal = jax.jit(jax.random.normal, static_argnums=1)

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        s, (K, B) = self.shape, indices.shape
        if eps is None:
            self.key, key = jax.random.split(self.key)
            drawn = self.normal(key, (K, s.T, B, s.D))
        else:
            drawn = to_jax(eps)
        history = []
        for rows, e in zip(indices.int().numpy(), drawn, strict=True):
            self.updates += 1
            now = map(np.float32, rates(self.problem.lr, self.problem.weight_decay, self.updates))
            self.state, each = self.step(self.state, self.data, rows, e, *now)
            history.append(each)
        jax.block_until_ready(self.state)
        return torch.from_numpy(np.stack(history))

    def step_bytes(self, indices: Tensor) -> None:
        return None  # XLA's memory, which PyTorch's record does not show

    def weights(self) -> Weights:
        return join({name: torch.from_numpy(np.array(p)) for name, p in self.state[0].items()})
