"""Chains of evaluations: random calls of `predict`, tables of samplers, and their oracle."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from noprop_kernels import philox
from noprop_kernels.backends.calls import Embedding
from noprop_kernels.backends.chain_calls import Chain, PredictCall
from noprop_kernels.backends.reference import equations
from noprop_kernels.backends.reference.layers import forward_layers
from noprop_kernels.plan import Plan
from support.calls import clone_call, make_slices, nan

OUTPUTS = ("logits", "u_hat", "z")


# by the kind of step: weight, next, keep and ends of its evaluations, for steps of length h
def euler(h: float) -> list[tuple]:
    return [(h, 0.0, 1.0, True)]


def ancestral(h: float) -> list[tuple]:
    return [(1.0, 0.0, 0.0, True)]


def heun(h: float) -> list[tuple]:
    return [(h / 2, h, 0.0, False), (h / 2, 0.0, 1.0, True)]


def rk4(h: float) -> list[tuple]:
    inner = [(h / 6, h / 2, 0.0, False), (h / 3, h / 2, 0.0, False), (h / 3, h, 0.0, False)]
    return [*inner, (h / 6, 0.0, 1.0, True)]


def mixed(h: float) -> list[tuple]:
    return [*heun(h), *ancestral(h), *euler(h), *rk4(h)]


STEPS = {step.__name__: step for step in (euler, ancestral, heun, rk4, mixed)}


def drawn_in(dtype: torch.dtype, generator: torch.Generator) -> Callable[..., Tensor]:
    """torch.randn of this dtype, whose numbers are drawn in float64."""
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make_chain(
    kind: str, steps: int, t_width: int | None, generator: torch.Generator, dtype: torch.dtype
) -> Chain:
    """So many steps of a kind; some of the noises are zero, as are those of an ODE."""
    rows = STEPS[kind](1 / steps) * steps
    weight, after, keep, ends = zip(*rows, strict=True)
    E = len(rows)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    a, b, sqrt_c = rand(3, E)
    sqrt_c[::3] = 0
    return Chain(
        a=a,
        b=b,
        sqrt_c=sqrt_c,
        weight=torch.tensor(weight, dtype=dtype),
        next=torch.tensor(after, dtype=dtype),
        keep=torch.tensor(keep, dtype=dtype),
        ends=torch.tensor(ends),
        t=None if t_width is None else 2 * rand(E, t_width) - 1,
    )


def poisoned(call: PredictCall, kept: int, S: int, R: int, B: int) -> PredictCall:
    """The same call with outputs of this shape that hold NaN."""
    M, D, dtype = call.embedding.M, call.embedding.D, call.chain.a.dtype
    widths = {"logits": M, "u_hat": D, "z": D}
    made = {name: nan(kept, S, R, B, widths[name], dtype=dtype) for name in OUTPUTS}
    return dataclasses.replace(call, **made)


def make_chain_call(
    plan: Plan,
    kind: str,
    steps: int,
    B: int,
    *,
    R: int = 1,
    S: int = 1,
    kept: int = 1,
    many_blocks: bool = False,
    head: str = "softmax",
    add_noise: bool = True,
    seed: int = 0,
    first_row: int = 0,
    precision: str = "float32",
) -> PredictCall:
    """A random chain, which brings a plan's input "t". many_blocks: each evaluation has its own."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float32
    M, D = plan.widths[plan.output], plan.widths["z"]

    randn = drawn_in(dtype, generator)
    chain = make_chain(kind, steps, plan.widths.get("t"), generator, dtype)
    n = R * (len(chain.ends) if many_blocks else 1)
    slices = make_slices(plan, n, n, optimizer=None, generator=generator, dtype=dtype)
    slices.precision = precision
    call = PredictCall(
        slices=slices,
        seeds=torch.randint(-(2**62), 2**62, (R,), generator=generator),
        inputs={
            name: randn(R, B, plan.widths[name]) for name in plan.inputs if name not in ("z", "t")
        },
        chain=chain,
        head=head,
        embedding=Embedding(randn(M, D), D),
        first_row=first_row,
        add_noise=add_noise,
        **dict.fromkeys(OUTPUTS, torch.empty(0)),
    )
    return poisoned(call, kept, S, R, B)


def make_predict_call(
    plan: Plan,
    R: int,
    L: int,
    B: int,
    S: int,
    *,
    head: str = "softmax",
    one_hot: bool = False,
    keep_all: bool = False,
    add_noise: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    first_row: int = 0,
    stages: int | None = None,
) -> PredictCall:
    """A random chain of L blocks for R replicas and S samples; its outputs hold NaN. With `stages`
    a sampler of one block and so many evaluations a step, which has the plan's "t".
    """
    generator = torch.Generator().manual_seed(seed)
    M, D = plan.widths[plan.output], plan.inputs["z"][0]
    randn = drawn_in(dtype, generator)
    slices = make_slices(plan, R * L, R * L, optimizer=None, generator=generator, dtype=dtype)
    E = L if stages is None else 2 * stages  # two steps of one block
    a, b, sqrt_c = torch.rand(3, E, generator=generator, dtype=torch.float64).to(dtype)
    kept = 1 if not keep_all else L if stages is None else 2
    call = PredictCall(
        slices=slices,
        seeds=torch.randint(-(2**62), 2**62, (R,), generator=generator),
        inputs={
            name: randn(1 if name == "x" else R, B, *shape).expand(R, B, *shape)
            for name, shape in plan.inputs.items()
            if name != "z" and (name != "t" or stages is None)
        },
        chain=Chain(
            *(a, b, sqrt_c),
            **random_steps(E, stages, randn),
            t=None if stages is None or "t" not in plan.inputs else randn(E, *plan.inputs["t"]),
        ),
        head=head,
        embedding=Embedding(None if one_hot else randn(M, D), D),
        first_row=first_row,
        add_noise=add_noise,
        **dict.fromkeys(OUTPUTS, torch.empty(0)),
    )
    return poisoned(call, kept, S, R, B)


def random_steps(E: int, stages: int | None, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    """The rest of a chain: DT's without `stages`, else steps of so many evaluations each."""
    if stages is None:
        one = torch.ones(E)
        numbers = {"weight": one, "next": one * 0, "keep": one * 0}
        return numbers | {"ends": one > 0}
    ends = torch.arange(1, E + 1) % stages == 0
    return {"weight": randn(E) / 2, "next": randn(E) / 2, "keep": randn(E) / 2, "ends": ends}


def oracle(call: PredictCall, dtype: torch.dtype) -> dict[str, Tensor]:
    """The outputs, from the equations of `Chain` term by term, in `dtype`."""
    call = clone_call(call, dtype)
    plan, chain, embedding = call.slices.plan, call.chain, call.embedding
    kept, S, R, B, D = call.z.shape
    E = len(chain.ends)
    slices = call.slices.index.reshape(R, -1)
    results: dict[str, list[Tensor]] = {name: [] for name in OUTPUTS}

    def draw(block: int) -> Tensor:
        """(S, R, B, D)"""
        numbers = [
            philox.normal(
                *(call.seeds, philox.STREAM_INFERENCE, 0, sample, block, B, D),
                first_row=call.first_row,
                dtype=dtype,
            )
            for sample in range(S)
        ]
        return torch.stack(numbers)

    def rows(value: Tensor) -> Tensor:
        """(R, B, F) as (R, S * B, F), the shape that the network gets"""
        return value.repeat(1, S, 1)

    z = draw(philox.BLOCK_Z_0) if call.add_noise else torch.zeros(S, R, B, D, dtype=dtype)
    step, base, total = 0, z, torch.zeros_like(z)
    for e in range(E):
        here = slices[:, e if slices.shape[1] > 1 else 0]
        inputs = {name: rows(value) for name, value in call.inputs.items()}
        inputs["z"] = z.movedim(0, 1).reshape(R, S * B, D)
        if chain.t is not None:
            inputs["t"] = chain.t[e].expand(R, S * B, -1)
        saved = forward_layers(
            *(plan, {name: value[here] for name, value in call.slices.params.items()}),
            *({name: value[here] for name, value in call.slices.stats.items()}, inputs),
            training=False,
            precision=call.slices.precision,
        )
        logits = saved.results[plan.output]
        u_hat, _ = equations.predict_embedding(logits, embedding.W_embed, call.head)
        logits, u_hat = (x.reshape(R, S, B, -1).movedim(1, 0) for x in (logits, u_hat))
        k = chain.a[e] * u_hat + chain.b[e] * z
        if chain.ends[e]:
            z = chain.keep[e] * base + total + chain.weight[e] * k
            if call.add_noise:
                z = z + chain.sqrt_c[e] * draw(step % 2**16)
            step, base, total = step + 1, z, torch.zeros_like(z)
        else:
            total = total + chain.weight[e] * k
            z = base + chain.next[e] * k
        if (e + 1) % (E // kept) == 0:
            for name, value in zip(OUTPUTS, (logits, u_hat, z), strict=True):
                results[name].append(value)
    return {name: torch.stack(values) for name, values in results.items()}
