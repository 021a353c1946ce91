"""The operations in plain PyTorch, one equation each: the specification of every backend.

Letters: n slices, B rows, F features in, H features out, D width of an embedding, M classes; the
slices come first. No autograd: gradients are written out. Numbers are computed in
promote_types(dtype, float32) and returned so: float64 gives the exact answer to test against.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import fold, one_hot, unfold

from ...optimizers import SGD, Adam, AdamW, Optimizer

CHUNK_ROWS = 128  # sums over rows are formed in such chunks, folded from the left


def up(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b slice by slice, so that a slice's sums do not depend on which others run."""
    out = a.new_empty(*a.shape[:2], b.shape[-1])
    for a_i, b_i, out_i in zip(a, b, out, strict=True):
        torch.mm(a_i, b_i, out=out_i)
    return out


def sum_rows(value: Tensor) -> Tensor:
    """sum over B: (n, B, H) -> (n, H)."""
    total = value.new_zeros(value.shape[0], value.shape[2])
    for chunk in value.split(CHUNK_ROWS, dim=1):
        total = total + chunk.sum(1)
    return total


def add_noise(
    u_y: Tensor,  # (n, B, D)
    signal: Tensor,  # (n, B)
    noise: Tensor,  # (n, B)
    eps: Tensor,  # (n, B, D)
    sigma: float = 0.0,
    eps_1: Tensor | None = None,  # (n, B, D)
) -> Tensor:
    """z = signal * u_y + noise * eps + sigma * eps_1."""
    z = up(signal)[..., None] * up(u_y) + up(noise)[..., None] * up(eps)
    return z if eps_1 is None else z + sigma * up(eps_1)


def add_noise_gradient(d_z: Tensor, u_y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """d_signal = sum over D of d_z * u_y;  d_noise = sum over D of d_z * eps: (n, B) each."""
    return (d_z * up(u_y)).sum(-1), (d_z * up(eps)).sum(-1)


def round_operand(value: Tensor, precision: str) -> Tensor:
    """A product's operand: bfloat16 to nearest, ties to even; tf32 (10 bits) ties away from zero.

    Products and sums of what is rounded are formed in the dtype of `value`.
    """
    if precision == "bfloat16":
        return value.to(torch.bfloat16).to(value.dtype)
    if precision == "tf32":
        bits = value.float().view(torch.int32)
        rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
        return torch.where(value.isfinite(), rounded.to(value.dtype), value)
    return value


def dense(
    sources: Sequence[Tensor], weight: Tensor, bias: Tensor, precision: str = "float32"
) -> Tensor:
    """y = concat(sources) @ weight.T + bias: (n, B, F_i) each, (n, H, F), (n, H) -> (n, B, H)."""
    x, w = up(torch.cat(list(sources), -1)), up(weight)
    return product(*(round_operand(v, precision) for v in (x, w.mT))) + up(bias)[:, None]


def dense_weight_gradient(
    d_y: Tensor, sources: Sequence[Tensor], precision: str = "float32"
) -> Tensor:
    """d_weight = d_y.T @ concat(sources): (n, H, F)."""
    operands = (up(d_y).mT, up(torch.cat(list(sources), -1)))
    return product(*(round_operand(v, precision) for v in operands))


def dense_input_gradient(d_y: Tensor, weight: Tensor, precision: str = "float32") -> Tensor:
    """d_concat = d_y @ weight: (n, B, F)."""
    return product(*(round_operand(v, precision) for v in (up(d_y), up(weight))))


def windows(x: Tensor, kernel_size: int) -> Tensor:
    """The windows of images (n, B, C, H, W), by row and pixel of the map: (n, B P, C k k)."""
    n, B = x.shape[:2]
    columns = unfold(x.flatten(0, 1), kernel_size)  # (n B, C k k, P)
    return columns.unflatten(0, (n, B)).mT.flatten(1, 2)


def by_pixel(y: Tensor) -> Tensor:
    """A map (n, B, O, h, w) as the rows of a product: (n, B P, O)."""
    return y.flatten(3).mT.flatten(1, 2)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, precision: str = "float32") -> Tensor:
    """y = windows(x) @ weight.T + bias: (n, B, C, H, W), (n, O, C, k, k), (n, O) ->
    (n, B, O, H - k + 1, W - k + 1)."""
    k, (B, height, width) = weight.shape[-1], (x.shape[1], *x.shape[3:])
    operands = windows(up(x), k), up(weight).flatten(2).mT
    y = product(*(round_operand(v, precision) for v in operands)) + up(bias)[:, None]
    size = (height - k + 1, width - k + 1)
    return y.unflatten(1, (B, -1)).mT.unflatten(-1, size)


def conv2d_weight_gradient(
    d_y: Tensor, x: Tensor, kernel_size: int, precision: str = "float32"
) -> Tensor:
    """d_weight = d_y.T @ windows(x): (n, O, C, k, k)."""
    operands = by_pixel(up(d_y)).mT, windows(up(x), kernel_size)
    d_weight = product(*(round_operand(v, precision) for v in operands))
    return d_weight.unflatten(-1, (x.shape[2], kernel_size, kernel_size))


def conv2d_input_gradient(d_y: Tensor, weight: Tensor, precision: str = "float32") -> Tensor:
    """d_x, to each pixel the sum of d_y @ weight over its windows: (n, B, C, H, W)."""
    n, B, k, size = *d_y.shape[:2], weight.shape[-1], d_y.shape[3:]
    operands = by_pixel(up(d_y)), up(weight).flatten(2)
    d_windows = product(*(round_operand(v, precision) for v in operands))  # (n, B P, C k k)
    d_windows = d_windows.unflatten(1, (B, -1)).mT.flatten(0, 1)
    d_x = fold(d_windows, (size[0] + k - 1, size[1] + k - 1), k)
    return d_x.unflatten(0, (n, B))


def max_pool(y: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each window of 2 x 2 pixels, and its place in the window, 0..3 by rows.

    Of equal pixels the first counts, and NaN above all: (n, B, C, h, w) -> (n, B, C, h/2, w/2).
    """
    height, width = y.shape[3] // 2, y.shape[4] // 2
    parts = y[..., : 2 * height, : 2 * width].unflatten(4, (width, 2)).unflatten(3, (height, 2))
    found, place = parts.transpose(4, 5).flatten(5).max(-1)
    return found, place


def max_pool_gradient(d_y: Tensor, place: Tensor, size: tuple[int, int]) -> Tensor:
    """d_y where the maximum was, else 0: (n, B, C, *size)."""
    height, width = d_y.shape[3:]
    parts = up(d_y).new_zeros(*d_y.shape, 4).scatter_(-1, place[..., None], up(d_y)[..., None])
    d_map = up(d_y).new_zeros(*d_y.shape[:3], *size)
    pooled = parts.unflatten(-1, (2, 2)).transpose(4, 5).flatten(5).flatten(3, 4)
    d_map[..., : 2 * height, : 2 * width] = pooled
    return d_map


def dropout(y: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """y / (1 - rate) where uniform >= rate, else 0; rate counts in units of 2^-24."""
    kept = uniform >= round(rate * 2**24) / 2**24
    return torch.where(kept, up(y) * (1 / (1 - rate)), 0)


def relu(y: Tensor) -> Tensor:
    """max(y, 0); NaN where y is NaN."""
    return up(y).relu()


def relu_gradient(d_result: Tensor, result: Tensor) -> Tensor:
    """d_y = d_result where result > 0, else 0."""
    return torch.where(result <= 0, 0, up(d_result))


def normal_distribution(y: Tensor) -> Tensor:
    """Phi(y), the part of N(0, 1) below y; by erfc, as 1 + erf would lose the small parts."""
    return 0.5 * torch.erfc(y * -math.sqrt(0.5))


def gelu(y: Tensor) -> Tensor:
    """y Phi(y), 0 where y is -infinity, and NaN where y is NaN."""
    y = up(y)
    return torch.where(y == -math.inf, 0, y * normal_distribution(y))


def gelu_gradient(d_result: Tensor, y: Tensor) -> Tensor:
    """d_y = d_result (Phi(y) + y phi(y)), phi(y) = exp(-y^2 / 2) / sqrt(2 pi)."""
    y = up(y)
    density = (-0.5 * y.square()).exp() / math.sqrt(2 * math.pi)
    slope = normal_distribution(y) + torch.where(y.isinf(), 0, y * density)
    return up(d_result) * slope


ACTIVATIONS = {"relu": (relu, relu_gradient), "gelu": (gelu, gelu_gradient)}


def batch_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """mean and biased variance over the rows of y (n, B, H): (n, H) each.

    (count, mean, M2) of chunks are merged in order: M2 += M2_c + delta^2 * count * count_c / total.
    """
    y = up(y)
    count, mean, m2 = 0, y.new_zeros(y.shape[0], y.shape[2]), y.new_zeros(y.shape[0], y.shape[2])
    for chunk in y.split(CHUNK_ROWS, dim=1):
        rows, chunk_mean = chunk.shape[1], chunk.mean(1)
        chunk_m2 = (chunk - chunk_mean[:, None]).square().sum(1)
        total, delta = count + rows, chunk_mean - mean
        mean = mean + delta * (rows / total)
        m2 = m2 + chunk_m2 + delta.square() * (count * rows / total)
        count = total
    return mean, m2 / count


def normalise(y: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y_hat = (y - mean) * rstd with rstd = 1 / sqrt(var + eps): (n, B, H) and (n, H)."""
    rstd = (up(var) + eps).rsqrt()
    return (up(y) - up(mean)[:, None]) * rstd[:, None], rstd


def scale_shift(y_hat: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """weight * y_hat + bias."""
    return up(weight)[:, None] * y_hat + up(bias)[:, None]


def batch_norm_gradient(
    d_out: Tensor, y_hat: Tensor, rstd: Tensor, weight: Tensor, *, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """d_y = weight * rstd * (d_out - d_bias / B - y_hat * d_weight / B), d_weight and d_bias.

    Outside training the statistics are constants, and the two means vanish.
    """
    d_weight, d_bias = sum_rows(d_out * y_hat), sum_rows(d_out)
    if training:
        B = d_out.shape[1]
        d_out = d_out - (d_bias / B)[:, None] - y_hat * (d_weight / B)[:, None]
    return (up(weight) * rstd)[:, None] * d_out, d_weight, d_bias


def move_statistic(running: Tensor, batch: Tensor, momentum: float) -> Tensor:
    """running = (1 - momentum) * running + momentum * batch."""
    return (1 - momentum) * up(running) + momentum * batch


def embed(y: Tensor, W_embed: Tensor | None, D: int, dtype: torch.dtype) -> Tensor:
    """u_y = W_embed[y], or the one-hot row where W_embed is None: (n, B) -> (n, B, D)."""
    if W_embed is None:
        return one_hot(y, D).to(dtype)
    return W_embed.to(dtype)[y]


def predict_embedding(logits: Tensor, W_embed: Tensor | None, head: str) -> tuple[Tensor, Tensor]:
    """u_hat = p @ W_embed (n, B, D) and p (n, B, M): logits (head "linear") or their softmax."""
    p = up(logits) if head == "linear" else up(logits).softmax(-1)
    if W_embed is None:
        return p, p
    return product(p, W_embed.to(p.dtype).expand(len(p), -1, -1)), p


def squared_error(
    u_hat: Tensor,  # (n, B, D)
    target: Tensor,  # (n, B, D)
    p: Tensor,  # (n, B, M)
    scale: Tensor,  # (n, B), weight / rows
    W_embed: Tensor | None,
    head: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """error = |u_hat - target|^2 (n, B), d_logits (n, B, M) and d_u_hat (n, B, D).

    d_u_hat = 2 scale (u_hat - target);  d_p = d_u_hat @ W_embed.T;
    d_logits = d_p (linear) or p * (d_p - sum over M of p * d_p) (softmax).
    """
    residual = u_hat - target
    d_u_hat = 2 * scale[..., None] * residual
    d_p = d_u_hat
    if W_embed is not None:
        d_p = product(d_u_hat, W_embed.to(p.dtype).T.expand(len(p), -1, -1))
    d_logits = d_p if head == "linear" else p * (d_p - (p * d_p).sum(-1, keepdim=True))
    return residual.square().sum(-1), d_logits, d_u_hat


def cross_entropy(logits: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """error = -log softmax(logits)[y];  d_logits = scale * (softmax(logits) - one_hot(y))."""
    log_p = up(logits).log_softmax(-1)
    error = -log_p.gather(-1, y[..., None])[..., 0]
    return error, scale[..., None] * (log_p.exp() - one_hot(y, logits.shape[-1]))


def radial(
    u_hat: Tensor,  # (n, B, D)
    y: Tensor,  # (n, B)
    p: Tensor,  # (n, B, M)
    scale: Tensor,  # (n, B), weight / rows
    W_embed: Tensor | None,
    radius: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """error = -log softmax(r)[y] (n, B), r_m = -|u_hat - u_m|^2 / (2 radius^2); d_logits (n, B, M),
    d_u_hat (n, B, D) and d_r / radius^2 (n, B, M).

    d_r = scale (softmax(r) - one_hot(y));  d_u_hat = d_r @ W_embed / radius^2, since d_r sums to 0;
    d_p = d_u_hat @ W_embed.T;  d_logits = p * (d_p - sum over M of p * d_p).
    """
    if W_embed is None:
        r = p / radius**2  # plus a number that all classes share
    else:
        W_embed = W_embed.to(p.dtype)
        distance = torch.stack([(u_hat - u_m).square().sum(-1) for u_m in W_embed], dim=-1)
        r = distance / (-2 * radius**2)
    error, d_r = cross_entropy(r, y, scale)
    d_r = d_r / radius**2
    if W_embed is None:
        d_p = d_u_hat = d_r
    else:
        d_u_hat = product(d_r, W_embed.expand(len(p), -1, -1))
        d_p = product(d_u_hat, W_embed.T.expand(len(p), -1, -1))
    return error, p * (d_p - (p * d_p).sum(-1, keepdim=True)), d_u_hat, d_r


def total_loss(error: Tensor, weight: Tensor, rows: int) -> Tensor:
    """loss = sum over rows of weight * error / rows: (n,)."""
    return sum_rows((up(weight) * error)[..., None])[:, 0] / rows


def embedding_gradient(p: Tensor, d_u_hat: Tensor, y: Tensor, d_u_y: Tensor) -> Tensor:
    """d_W_embed = p.T @ d_u_hat + one_hot(y).T @ d_u_y: (n, M, D).

    d_u_y is what reaches the label's row: -d_u_hat by the target and signal * d_z by z.
    """
    label = one_hot(y, p.shape[-1]).to(p.dtype)
    total = p.new_zeros(p.shape[0], p.shape[2], d_u_hat.shape[2])
    parts = (value.split(CHUNK_ROWS, dim=1) for value in (p, d_u_hat, label, d_u_y))
    for p_c, d_u_hat_c, label_c, d_u_y_c in zip(*parts, strict=True):
        total = total + (product(p_c.mT, d_u_hat_c) + product(label_c.mT, d_u_y_c))
    return total


def radial_embedding_gradient(d_r: Tensor, u_hat: Tensor, W_embed: Tensor | None) -> Tensor:
    """sum over rows of d_r (u_hat - u_m): (n, M, D), the path through the radial head's distances.

    `d_r` (n, B, M) is divided by radius^2.
    """
    n, _, M = d_r.shape
    total = d_r.new_zeros(n, M, u_hat.shape[2])
    parts = (value.split(CHUNK_ROWS, dim=1) for value in (d_r, u_hat))
    for d_r_c, u_hat_c in zip(*parts, strict=True):
        total = total + product(d_r_c.mT, u_hat_c)
    W = torch.eye(M, dtype=d_r.dtype, device=d_r.device) if W_embed is None else W_embed
    return total - sum_rows(d_r)[..., None] * up(W)


def optimizer_step(
    optimizer: Optimizer,
    param: Tensor,  # (n, ...)
    grad: Tensor,
    m: Tensor | None,
    v: Tensor | None,
    *,
    lr: Tensor,  # (n,) float64
    weight_decay: Tensor,  # (n,) float64
    updates: Tensor,  # (n,) int64, this one counted
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The new param, m and v by torch.optim's formulas; g is the gradient, wd the weight decay.

    SGD:         g += wd * param;  m = momentum * m + g;  param -= lr * (m, or g + momentum * m)
    Adam:        g += wd * param;  AdamW: param *= 1 - lr * wd;  then both
                 m += (1 - beta_1) (g - m);  v = beta_2 * v + (1 - beta_2) g^2
                 param -= lr / c_1 * m / (sqrt(v) / sqrt(c_2) + eps),  c_i = 1 - beta_i^updates

    What depends on lr, weight decay or updates is formed in float64 and rounded once.
    """
    param, g = up(param), up(grad)

    def scalar(value: Tensor) -> Tensor:
        return value.to(param.dtype).reshape(-1, *[1] * (param.ndim - 1))

    if isinstance(optimizer, AdamW):
        param = param * scalar(1 - lr * weight_decay)
    else:
        g = g + scalar(weight_decay) * param
    if isinstance(optimizer, SGD):
        if m is not None:
            m = optimizer.momentum * up(m) + g
            g = g + optimizer.momentum * m if optimizer.nesterov else m
        return param - scalar(lr) * g, m, v
    assert isinstance(optimizer, Adam) and m is not None and v is not None
    beta_1, beta_2 = optimizer.betas
    logs = (math.log(beta) if beta > 0 else -math.inf for beta in (beta_1, beta_2))
    c_1, c_2 = (-torch.expm1(updates.double() * log) for log in logs)
    m = up(m) + (1 - beta_1) * (g - up(m))
    v = beta_2 * up(v) + (1 - beta_2) * g.square()
    denominator = v.sqrt() / scalar(c_2.sqrt()) + optimizer.eps
    return param - scalar(lr / c_1) * m / denominator, m, v
