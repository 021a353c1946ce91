"""The reference backend: the seven functions of calls.py in equations.py's operations.

It runs wherever PyTorch does, in the parameters' dtype, also float64. The contents of a call are
checked before anything is written.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ... import philox
from ...plan import Plan
from ..calls import (
    AddNoiseCall,
    BackwardCall,
    Embedding,
    ForwardCall,
    HeadCall,
    NoiseAddress,
    Noising,
    Objective,
    Rule,
    Slices,
    Tensors,
    TrainCall,
    UpdateCall,
)
from ..chain_calls import PredictCall
from ..contents import check_finite, check_labels, check_rows, check_train, fetch, where_finite
from ..turns import takes_turn
from . import equations as ref
from .layers import Uniform, backward_layers, forward_layers


def select(tensors: Tensors, index: Tensor) -> Tensors:
    return {name: value[index] for name, value in tensors.items()}


def compute_dtype(slices: Slices) -> torch.dtype:
    return ref.up(next(iter(slices.params.values()))).dtype


def put(out: Tensor | None, value: Tensor) -> None:
    if out is not None:
        out.copy_(value)


def put_all(outputs: Tensors | None, values: Tensors) -> None:
    for name, out in (outputs or {}).items():
        out.copy_(values[name])


def where_slice(apply: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(apply.reshape(-1, *[1] * (old.ndim - 1)), new.to(old.dtype), old)


def apply_update(slices: Slices, grads: Tensors, apply: Tensor, rule: Rule, step: int = 0) -> None:
    """One optimizer step of the slices where `apply` (n,) is true; it counts the update."""
    index, device = slices.index, apply.device
    updates = slices.updates[index] + 1
    for name, param in slices.params.items():
        m, v = slices.m.get(name), slices.v.get(name)
        new = ref.optimizer_step(
            rule.optimizer,
            param[index],
            grads[name],
            None if m is None else m[index],
            None if v is None else v[index],
            lr=rule.lr[step].to(device),
            weight_decay=rule.weight_decay.to(device),
            updates=updates.to(device),
        )
        for state, moved in zip((param, m, v), new, strict=True):
            if state is not None and moved is not None:
                state[index] = where_slice(apply, moved, state[index])
    slices.updates[index] += apply.to(slices.updates.device)


def move_statistics(slices: Slices, batch: Tensors, apply: Tensor) -> None:
    for name, value in batch.items():
        old = slices.stats[name][slices.index]
        new = ref.move_statistic(old, value, slices.plan.momentum(name))
        slices.stats[name][slices.index] = where_slice(apply, new, old)


def draw_normal(
    noise: NoiseAddress, stream: int, step: int, B: int, D: int, dtype: torch.dtype
) -> Tensor:
    """eps (n, B, D) of a step, on the seeds' device."""
    address = (noise.seeds, stream, 0, noise.draw[step], noise.block[step])
    return philox.normal(*address, B, D, first_row=noise.first_row, dtype=dtype)


def dropout_numbers(
    plan: Plan, noise: NoiseAddress | None, step: int, B: int, dtype: torch.dtype
) -> Uniform | None:
    """The numbers of the plan's dropout in a step, by layer."""
    sites = plan.dropout_sites()
    if not sites:
        return None
    if noise is None:
        raise ValueError("forward: noise must be given in training where the plan has dropout")

    def uniform(name: str, columns: int) -> Tensor:
        address = (noise.seeds, philox.STREAM_DROPOUT, sites[name])
        address = (*address, noise.draw[step], noise.block[step], B, columns)
        return philox.uniform(*address, first_row=noise.first_row, dtype=dtype)

    return uniform


def noisy_embedding(
    noise: NoiseAddress, noising: Noising, u_y: Tensor, eps: Tensor, step: int
) -> Tensor:
    eps_1 = None
    if noising.sigma != 0:
        _, B, D = u_y.shape
        eps_1 = draw_normal(noise, philox.STREAM_EPS_1, step, B, D, u_y.dtype)
    return ref.add_noise(u_y, noising.signal[step], noising.noise[step], eps, noising.sigma, eps_1)


class HeadGradient(NamedTuple):
    """error (n, B), d_logits (n, B, M), and what W_embed's gradient is made of.

    p (n, B, M), u_hat and d_u_hat (n, B, D) are zero where no embedding is predicted; d_u_y
    (n, B, D) reaches the label's row by the target; d_r (n, B, M), over radius^2, is the radial
    head's.
    """

    error: Tensor
    d_logits: Tensor
    p: Tensor
    u_hat: Tensor
    d_u_hat: Tensor
    d_u_y: Tensor
    d_r: Tensor | None = None


def head_gradient(
    objective: Objective,
    embedding: Embedding,
    y: Tensor,
    logits: Tensor,
    eps: Tensor | None,
    step: int,
) -> HeadGradient:
    dtype = ref.up(logits).dtype
    scale = objective.weight[step].to(dtype) / objective.rows
    if objective.head == "cross_entropy":
        error, d_logits = ref.cross_entropy(logits, y, scale)
        none = d_logits.new_zeros(*y.shape, embedding.D)
        return HeadGradient(error, d_logits, torch.zeros_like(d_logits), none, none, none)
    u_hat, p = ref.predict_embedding(logits, embedding.W_embed, objective.head)
    if objective.head == "radial":
        error, d_logits, d_u_hat, d_r = ref.radial(
            u_hat, y, p, scale, embedding.W_embed, objective.radius
        )
        return HeadGradient(error, d_logits, p, u_hat, d_u_hat, torch.zeros_like(d_u_hat), d_r)
    target = ref.embed(y, embedding.W_embed, embedding.D, dtype)
    if objective.flow != 0:
        if eps is None:
            raise ValueError("head: eps must be given where flow is not 0, got None")
        target = target - objective.flow * ref.up(eps)
    error, d_logits, d_u_hat = ref.squared_error(
        u_hat, target, p, scale, embedding.W_embed, objective.head
    )
    return HeadGradient(error, d_logits, p, u_hat, d_u_hat, -d_u_hat)


@torch.no_grad()
def add_noise(call: AddNoiseCall) -> None:
    embedding, y = call.embedding, call.y[0]
    check_labels(call.op, y, embedding.M)
    u_y = ref.embed(y, embedding.W_embed, embedding.D, ref.up(call.noising.signal).dtype)
    eps = draw_normal(call.noise, call.noise.stream, 0, y.shape[1], embedding.D, u_y.dtype)
    put(call.eps, eps)
    put(call.z, noisy_embedding(call.noise, call.noising, u_y, eps, 0))


@takes_turn
@torch.no_grad()
def forward(call: ForwardCall) -> None:
    slices = call.slices
    plan, index = slices.plan, slices.index
    if call.check:
        check_finite("forward", call.inputs)
    if call.training:
        check_rows("forward", plan, call.inputs["z"].shape[1])
    params, stats = select(slices.params, index), select(slices.stats, index)
    inputs = {name: value.to(compute_dtype(slices)) for name, value in call.inputs.items()}
    uniform = None
    if call.training:
        B, dtype = call.inputs["z"].shape[1], compute_dtype(slices)
        uniform = dropout_numbers(plan, call.noise, 0, B, dtype)
    saved = forward_layers(
        *(plan, params, stats, inputs),
        training=call.training,
        precision=slices.precision,
        uniform=uniform,
    )
    everyone = torch.ones(len(index), dtype=torch.bool, device=call.inputs["z"].device)
    move_statistics(slices, saved.batch, everyone)
    if call.logits is not None:
        call.logits.copy_(saved.results[plan.output])
    call.saved = saved if call.save else None


@torch.no_grad()
def head(call: HeadCall) -> None:
    objective, embedding, y = call.objective, call.embedding, call.y[0]
    check_labels(call.op, y, call.logits.shape[-1])
    found = head_gradient(objective, embedding, y, call.logits, call.eps, 0)
    put(call.loss, ref.total_loss(found.error, objective.weight[0], objective.rows))
    put(call.error, found.error)
    put(call.d_logits, found.d_logits)
    if call.u_hat is not None:
        call.u_hat.copy_(ref.predict_embedding(call.logits, embedding.W_embed, objective.head)[0])


@takes_turn
@torch.no_grad()
def backward(call: BackwardCall) -> None:
    slices = call.slices
    params = select(slices.params, slices.index)
    wanted = frozenset(call.d_inputs)
    grads, d_inputs = backward_layers(slices.plan, params, call.saved, call.d_logits, wanted)
    put_all(call.grads, grads)
    put_all(call.d_inputs, d_inputs)
    if call.rule is not None:
        finite = call.d_logits.isfinite().flatten(1).all(1)
        apply_update(slices, grads, finite, call.rule)
        put(call.applied, finite)


@takes_turn
@torch.no_grad()
def update(call: UpdateCall) -> None:
    apply_update(call.slices, call.grads, where_finite(call), call.rule)


@takes_turn
@torch.no_grad()
def train(call: TrainCall) -> None:
    check_train(call)
    for step in range(call.K):
        train_step(call, step)


def train_step(call: TrainCall, step: int) -> None:
    slices, objective, embedding, out = call.slices, call.objective, call.embedding, call.out
    plan, index = slices.plan, slices.index
    params, stats = select(slices.params, index), select(slices.stats, index)
    dtype = compute_dtype(slices)
    inputs = {name: fetch(value, step).to(dtype) for name, value in call.inputs.items()}
    y = fetch(call.y, step)
    eps = draw_normal(call.noise, call.noise.stream, step, call.B, embedding.D, dtype)
    u_y = None
    if call.z is None:
        u_y = ref.embed(y, embedding.W_embed, embedding.D, dtype)
        inputs["z"] = noisy_embedding(call.noise, call.noising, u_y, eps, step)
    else:
        inputs["z"] = call.z.to(dtype)

    saved = forward_layers(
        *(plan, params, stats, inputs),
        training=True,
        precision=slices.precision,
        uniform=dropout_numbers(plan, call.noise, step, call.B, dtype),
    )
    logits = saved.results[plan.output]
    found = head_gradient(objective, embedding, y, logits, eps, step)
    loss = ref.total_loss(found.error, objective.weight[step], objective.rows)
    finite = loss.isfinite()
    out.loss[step], out.applied[step] = loss, finite
    put(out.error, found.error)

    numbers = [value for value in (out.d_signal, out.d_noise, out.d_W_embed) if value is not None]
    wanted = frozenset(out.d_inputs) | (frozenset({"z"}) if numbers else frozenset())
    grads, d_inputs = backward_layers(plan, params, saved, found.d_logits, wanted)
    put_all(out.d_inputs, d_inputs)
    d_u_y, d_numbers = found.d_u_y, found.error.new_zeros(2, *found.error.shape)
    if u_y is not None and numbers:  # the caller computes the path through features of z
        d_numbers = ref.add_noise_gradient(d_inputs["z"], u_y, eps)
        d_u_y = d_u_y + call.noising.signal[step].to(dtype)[..., None] * d_inputs["z"]
    put(out.d_signal, d_numbers[0])
    put(out.d_noise, d_numbers[1])
    if out.d_W_embed is not None:
        d_W_embed = ref.embedding_gradient(found.p, found.d_u_hat, y, d_u_y)
        if found.d_r is not None:
            W_embed = embedding.W_embed
            d_W_embed += ref.radial_embedding_gradient(found.d_r, found.u_hat, W_embed)
        out.d_W_embed.copy_(d_W_embed)

    if out.grads is not None:
        put_all(out.grads, grads)
        put_all(out.stats, saved.batch)
        return
    assert call.rule is not None  # by check_train
    apply_update(slices, grads, finite, call.rule, step)
    move_statistics(slices, saved.batch, finite)
    slices.draws[index] += 1


@takes_turn
@torch.no_grad()
def predict(call: PredictCall) -> None:
    check_finite("predict", call.inputs)
    slices = call.slices
    chain = call.chain
    R, B = len(call.seeds), call.z.shape[3]
    E, S = len(chain.a), call.z.shape[1]
    blocks = slices.index.reshape(R, -1).expand(R, E)
    dtype = compute_dtype(slices)
    seeds = call.seeds.to(call.z.device)
    inputs = {name: value.to(dtype) for name, value in call.inputs.items()}

    def draw(sample: int, block: int) -> Tensor:
        address = (seeds, philox.STREAM_INFERENCE, 0, sample, block)
        return philox.normal(*address, B, call.embedding.D, first_row=call.first_row, dtype=dtype)

    for sample in range(S):
        z = torch.zeros(R, B, call.embedding.D, dtype=dtype, device=call.z.device)
        if call.add_noise:
            z = draw(sample, philox.BLOCK_Z_0)
        base, total, step = z, torch.zeros_like(z), 0
        for e in range(E):
            params, stats = select(slices.params, blocks[:, e]), select(slices.stats, blocks[:, e])
            if chain.t is not None:
                inputs["t"] = chain.t[e].to(dtype).expand(R, B, -1)
            saved = forward_layers(
                *(slices.plan, params, stats, inputs | {"z": z}),
                training=False,
                precision=slices.precision,
            )
            logits = saved.results[slices.plan.output]
            u_hat, _ = ref.predict_embedding(logits, call.embedding.W_embed, call.head)
            a, b, weight = (value[e].to(dtype) for value in (chain.a, chain.b, chain.weight))
            k = a * u_hat + b * z
            total = total + weight * k
            if not chain.ends[e]:
                z = base + chain.next[e].to(dtype) * k
                continue
            z = total + chain.keep[e].to(dtype) * base
            if call.add_noise:
                z = z + chain.sqrt_c[e].to(dtype) * draw(sample, step % 2**16)
            base, total, step = z, torch.zeros_like(z), step + 1
            if (e + 1) % (E // len(call.z)) == 0:
                at = (e + 1) // (E // len(call.z)) - 1
                call.logits[at, sample], call.u_hat[at, sample] = logits, u_hat
                call.z[at, sample] = z
