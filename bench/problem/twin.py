"""The same steps in float64 in the plainest PyTorch: every contender must agree."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import paper
from .problem import Factors, Problem, Weights


def rounded_to(value: Tensor, precision: str) -> Tensor:
    """To bfloat16 nearest even, to tf32's 10 bits nearest and ties away; of the dtype given."""
    if precision == "float32":
        return value
    if precision == "bfloat16":
        return value.bfloat16().to(value.dtype)
    bits = value.float().view(torch.int32)
    return ((bits + 0x1000) & -0x2000).view(torch.float32).to(value.dtype)


class RoundedLinear(torch.autograd.Function):
    """linear() whose three products have rounded operands."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, precision: str) -> Tensor:
        x, weight = rounded_to(x, precision), rounded_to(weight, precision)
        ctx.save_for_backward(x, weight)
        ctx.precision = precision
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, d_out: Tensor):
        x, weight = ctx.saved_tensors
        operand = rounded_to(d_out, ctx.precision)
        return operand @ weight, operand.T @ x, d_out.sum(dim=0), None


Linear = Callable[[Tensor, Tensor, Tensor], Tensor]


def logits(w: Weights, t: int, x: Tensor, z: Tensor, linear: Linear = linear) -> Tensor:
    """(B, M) of block t (counted from 0)."""
    hx = linear(x, w["hx.weight"][t], w["hx.bias"][t]).relu()
    hz = linear(z, w["hz.weight"][t], w["hz.bias"][t]).relu()
    f = linear(torch.cat([hx, hz], dim=1), w["f.weight"][t], w["f.bias"][t]).relu()
    return linear(f, w["logits.weight"][t], w["logits.bias"][t])


def block(w: Weights, t: int, x: Tensor, z: Tensor, W: Tensor, linear: Linear = linear) -> Tensor:
    """u_hat (B, D) of block t, with embeddings W (M, D)."""
    return logits(w, t, x, z, linear).softmax(dim=1) @ W


def embedding(problem: Problem) -> Tensor:
    """(M, D) float64."""
    if problem.embedding is None:
        return torch.eye(problem.shape.M, dtype=torch.float64, device=problem.device)
    return problem.embedding.double()


def chain(problem: Problem, w: Weights, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """u_hat_T and z_T (B, D) of the chain z_t = a_t u_hat_t + b_t z_{t-1} from z_0 = z."""
    u_hat, W = z, embedding(problem)
    for t, (a, b) in enumerate(zip(problem.a.double(), problem.b.double(), strict=True)):
        u_hat = block(w, t, x, z, W)
        z = a * u_hat + b * z
    return u_hat, z


def run(
    problem: Problem,
    maths: str,
    indices: Tensor,
    eps: Tensor,
    rounded: bool = False,
    factors: Sequence[Factors] = (),
) -> tuple[Tensor, Weights]:
    """Losses and weights after the steps, float64.

    Args:
        problem: what to train.
        maths: "adamw", "sgd", "end_to_end" or "encoded".
        indices: (K, B) int64.
        eps: (K, T, B, D); end to end reads z_0 from its first block's.
        rounded: operands of the layers' products are rounded to the problem's precision.
        factors: of each step's dropout, where the shape has it.

    Returns:
        losses (K, T), or (K, 1) end to end; weights and running statistics by name.
    """
    p, T = problem, problem.shape.T
    w = {name: value.double().requires_grad_() for name, value in first_weights(p, maths).items()}
    make = torch.optim.SGD if maths == "sgd" else torch.optim.AdamW
    optimizer = make(w.values(), lr=p.lr, weight_decay=p.weight_decay)
    signal, noise, weight = (value.double() for value in (p.signal, p.noise, p.weight))
    W = embedding(p)
    product = partial(rounded_linear, precision=p.precision) if rounded else linear
    statistics = p.statistics(torch.float64)
    history = []
    for k, (rows, e) in enumerate(zip(indices, eps.double(), strict=True)):
        kept = {name: value.double() for name, value in (factors[k] if factors else {}).items()}
        x, u_y = p.X[rows].double(), W[p.Y[rows]]
        encoded = x
        if maths == "encoded":
            encoded = linear(x, w["encoder.weight"], w["encoder.bias"]).tanh()
            x = encoded.detach().requires_grad_()
        losses = []
        for t in range(1 if maths == "end_to_end" else T):
            if maths == "end_to_end":
                u_hat, _ = chain(p, w, x, e[0])
            else:
                z = signal[t] * u_y + noise[t] * e[t]
                if p.shape.image is None:
                    u_hat = block(w, t, x, z, W, product)
                else:
                    image, state = x.unflatten(1, p.shape.image), w | statistics
                    u_hat = paper.logits(state, kept, t, image, z).softmax(dim=1) @ W
            error = (u_hat - u_y).square().sum(dim=1).mean()
            loss = error if maths == "end_to_end" else weight[t] * error
            loss.backward()  # at once, so that nothing else of a large block is kept
            losses.append(loss.detach())
        if maths == "encoded":
            encoded.backward(x.grad)
        optimizer.step()
        optimizer.zero_grad()
        history.append(torch.stack(losses))
    return torch.stack(history), {name: value.detach() for name, value in w.items()} | statistics


def first_weights(problem: Problem, maths: str) -> Weights:
    """Those that the maths trains."""
    of_gamma = ("gamma.",) if maths == "apart" else ()
    rest = {"encoded": problem.encoder, "coupled": problem.coupled, "apart": problem.coupled}
    return problem.weights | {
        name: value for name, value in rest.get(maths, {}).items() if not name.startswith(of_gamma)
    }


def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor, precision: str) -> Tensor:
    return RoundedLinear.apply(x, weight, bias, precision)


def check_chain(problem: Problem, x: Tensor, z_0: Tensor, z_T: Tensor) -> None:
    """Raise unless the float32 z_T (B, D) is the twin's within 1e-4; z_T is of the size of 1.

    Raises:
        Mismatch: it differs.
    """
    w = {name: value.double() for name, value in problem.weights.items()}
    _, want = chain(problem, w, x.double(), z_0.double())
    error = (z_T.double() - want).abs().max().item()
    if not error <= 1e-4:
        raise Mismatch(f"z_T differs from the float64 twin's by {error:.1e}")


UNITS = {"tf32": 2**-11, "bfloat16": 2**-9}  # half a last place


class Mismatch(Exception):
    """A contender computes something else."""


Result = tuple[Tensor, Weights]  # losses (K, T) and the weights after the steps


def check(
    problem: Problem,
    maths: str,
    indices: Tensor,
    eps: Tensor,
    losses: Tensor,
    weights: Weights,
    plain: Sequence[Result] = (),
    want: Result | None = None,
    tolerance: float = 1,
) -> None:
    """Raise unless float32 losses and weights are the twin's, which are `want` where known.

    A loss may be off by 1e-4 of its size. Adam turns the rounding of a gradient near zero into a
    step of up to lr, so that weights are compared as a whole: the root mean square error may be
    1e-2 of the distance moved, and the rounding of the weights themselves. `tolerance` is a factor
    of both.

    With bfloat16 or tf32 operands both may be off by twice the largest error of the results
    `plain`, PyTorch's own among them, and one such rounding: of each row's error, which a loss is
    the mean of, and of the distance moved.

    Batch norm takes away what is added to all rows before it. The gradient of such a bias is 0, and
    Adam makes steps of up to lr of its rounding; they show in the running mean alone.

    Raises:
        Mismatch: they differ; the text says where and by how much.
    """
    want_losses, want_weights = want or run(problem, maths, indices, eps)
    first = first_weights(problem, maths) | problem.statistics()
    K, lr = len(indices), problem.lr
    unit = UNITS.get(problem.precision, 0.0)

    def loss_error(losses: Tensor) -> float:
        return ((losses.double() - want_losses).abs() / want_losses).max().item()

    error, allowed = loss_error(losses), 1e-4 * tolerance
    if plain:
        allowed = 2 * max(loss_error(one[0]) for one in plain) + unit / problem.shape.B**0.5
    if not error <= allowed:
        raise Mismatch(
            f"losses differ from the float64 twin's by {error:.1e} of their size, "
            f"allowed {allowed:.1e}"
        )
    for name, want in want_weights.items():
        start = first[name].double()
        moved = root_mean_square(want - start)
        error = root_mean_square(weights[name].double() - want)
        allowed = 1e-2 * tolerance * moved
        if plain:
            errors = (root_mean_square(one[1][name].double() - want) for one in plain)
            allowed = 2 * max(errors) + unit * moved
        decayed = start * (1 - lr * problem.weight_decay) ** K
        if root_mean_square(want - decayed) < 1e-6 * lr:
            allowed = K * lr
        elif name.endswith("running_mean"):
            allowed += problem.shape.plan.momentum(name) * lr * K * (K + 1) / 2
        rounding = K * torch.finfo(torch.float32).eps * root_mean_square(start)
        if not error <= allowed + rounding:
            raise Mismatch(
                f"{name} differs from the float64 twin's by {error:.1e}, moved by {moved:.1e}, "
                f"allowed {allowed + rounding:.1e}"
            )


def root_mean_square(value: Tensor) -> float:
    return value.square().mean().sqrt().item()
