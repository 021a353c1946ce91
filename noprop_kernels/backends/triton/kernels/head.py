"""The head in Triton: errors and d_logits of the three heads, u_hat, and the loss of a slice.

    u_hat   = p @ W_embed,  p = softmax(logits) or logits;   target = u_y - flow * eps
    d_u_hat = 2 scale (u_hat - target);  d_p = d_u_hat @ W_embed.T
    d_logits = d_p (linear)  or  p * (d_p - sum over M of p * d_p) (softmax);  scale = weight / rows

All in float32 on unrounded values. A program has some rows of a slice and walks their classes and
the embedding's columns in blocks.
"""

import triton
import triton.language as tl

from .products import CHUNK_ROWS, begin, multiply, per_row


@triton.jit
def softmax_sums(logits_ptr, real, M: tl.constexpr, BLOCK_M: tl.constexpr):
    """The largest logit of each row and the sum of exp(logit - largest); NaN where one is."""
    largest = tl.full((real.shape[0],), float("-inf"), tl.float32)
    for start in range(0, M, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        inside = real[:, None] & (m < M)[None, :]
        logits = tl.load(logits_ptr[:, None] + m[None, :], mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(logits, 1))
    largest = tl.where(real, largest, 0.0)
    total = tl.zeros((real.shape[0],), tl.float32)
    for start in range(0, M, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        inside = real[:, None] & (m < M)[None, :]
        logits = tl.load(logits_ptr[:, None] + m[None, :], mask=inside, other=float("-inf"))
        total += tl.sum(tl.exp(logits - largest[:, None]), 1)
    return largest, tl.where(real, total, 1.0)


@triton.jit
def load_p(logits_ptr, largest, total, m, inside, LINEAR: tl.constexpr):
    """A tile of p, zero outside."""
    p = tl.load(logits_ptr[:, None] + m[None, :], mask=inside, other=0.0)
    if not LINEAR:
        p = tl.where(inside, tl.exp(p - largest[:, None]) / total[:, None], 0.0)
    return p


@triton.jit
def predict_block(
    logits_ptr, W_ptr, largest, total, real, d,
    M: tl.constexpr, D: tl.constexpr, LINEAR: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The columns d of u_hat = p @ W_embed, or of p."""
    if W_ptr is None:
        return load_p(logits_ptr, largest, total, d, real[:, None] & (d < D)[None, :], LINEAR)
    else:
        u_hat = tl.zeros((real.shape[0], d.shape[0]), tl.float32)
        for start in range(0, M, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            p = load_p(logits_ptr, largest, total, m, real[:, None] & (m < M)[None, :], LINEAR)
            known = (m < M)[:, None] & (d < D)[None, :]
            W = tl.load(W_ptr + m[:, None] * D + d[None, :], mask=known, other=0.0)
            u_hat = multiply(p, W, u_hat, "float32")
        return u_hat


@triton.jit(do_not_specialize=["B"])
def u_hat_kernel(
    u_hat_ptr,  # (n, B, D)
    logits_ptr,  # (n, B, M)
    W_ptr,  # (M, D), or None
    B,
    M: tl.constexpr,
    D: tl.constexpr,
    LINEAR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    i = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < B
    logits_ptr += (i * B + row) * M
    largest, total = softmax_sums(logits_ptr, real, M, BLOCK_M)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        u_hat = predict_block(logits_ptr, W_ptr, largest, total, real, d, M, D, LINEAR, BLOCK_M)
        at = (i * B + row)[:, None] * D + d[None, :]
        tl.store(u_hat_ptr + at, u_hat, mask=real[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["k", "B"])
def head_kernel(
    error_ptr,  # (n, B), or None
    d_logits_ptr,  # (n, B, M), or None
    d_u_hat_ptr,  # (n, B, D), or None; with W_embed the way to d_logits
    p_ptr,  # (n, B, M), or None
    logits_ptr,  # (n, B, M)
    y_ptr,  # (n, B) int64
    eps_ptr,  # (n, B, D), or None: flow is 0
    W_ptr,  # (M, D), or None
    weight,  # (K, n, B)
    flow,
    rows,
    k,
    B,
    M: tl.constexpr,
    D: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    LINEAR: tl.constexpr = HEAD == "linear"
    i = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < B
    at = i * B + row
    logits_ptr += at * M
    y = tl.load(y_ptr + at, mask=real, other=0)
    n = tl.num_programs(1)
    scale = tl.load(per_row(weight, k, i, n, B) + row * weight[3], mask=real, other=0.0) / rows
    largest, total = softmax_sums(logits_ptr, real, M, BLOCK_M)

    if HEAD == "cross_entropy":
        chosen = tl.load(logits_ptr + y, mask=real, other=0.0)
        error = tl.log(total) - (chosen - largest)
        # a non-finite logit of another class makes `total` NaN: propagate it
        error = tl.where(total == total, error, total)
    else:
        error = tl.zeros((ROWS,), tl.float32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside = real[:, None] & (d < D)[None, :]
            u_hat = predict_block(logits_ptr, W_ptr, largest, total, real, d, M, D, LINEAR, BLOCK_M)
            if W_ptr is None:
                target = (d[None, :] == y[:, None]).to(tl.float32)
            else:
                target = tl.load(W_ptr + y[:, None] * D + d[None, :], mask=inside, other=0.0)
            d_at = at[:, None] * D + d[None, :]
            if eps_ptr is not None:
                target -= flow * tl.load(eps_ptr + d_at, mask=inside, other=0.0)
            residual = tl.where(inside, u_hat - target, 0.0)
            error += tl.sum(residual * residual, 1)
            if d_u_hat_ptr is not None:
                tl.store(d_u_hat_ptr + d_at, 2 * scale[:, None] * residual, mask=inside)
        tl.debug_barrier()  # d_u_hat is read again, by other threads of this program
    if error_ptr is not None:
        tl.store(error_ptr + at, error, mask=real)

    if d_logits_ptr is not None:
        m_at = at * M
        if HEAD == "cross_entropy":
            for start in range(0, M, BLOCK_M):
                m = start + tl.arange(0, BLOCK_M)
                inside = real[:, None] & (m < M)[None, :]
                p = load_p(logits_ptr, largest, total, m, inside, LINEAR)
                d_logits = scale[:, None] * (p - (m[None, :] == y[:, None]).to(tl.float32))
                tl.store(d_logits_ptr + m_at[:, None] + m[None, :], d_logits, mask=inside)
        else:
            dot = tl.zeros((ROWS,), tl.float32)
            for start in range(0, M, BLOCK_M):
                m = start + tl.arange(0, BLOCK_M)
                inside = real[:, None] & (m < M)[None, :]
                d_p = p_gradient(d_u_hat_ptr, W_ptr, at, real, m, M, D, BLOCK_D)
                p = load_p(logits_ptr, largest, total, m, inside, LINEAR)
                dot += tl.sum(p * d_p, 1)
                if p_ptr is not None:
                    tl.store(p_ptr + m_at[:, None] + m[None, :], p, mask=inside)
                tl.store(d_logits_ptr + m_at[:, None] + m[None, :], d_p, mask=inside)
            if not LINEAR:
                tl.debug_barrier()  # d_p likewise
                for start in range(0, M, BLOCK_M):
                    m = start + tl.arange(0, BLOCK_M)
                    inside = real[:, None] & (m < M)[None, :]
                    d_at = d_logits_ptr + m_at[:, None] + m[None, :]
                    p = load_p(logits_ptr, largest, total, m, inside, LINEAR)
                    d_p = tl.load(d_at, mask=inside, other=0.0)
                    tl.store(d_at, p * (d_p - dot[:, None]), mask=inside)


@triton.jit
def p_gradient(
    d_u_hat_ptr, W_ptr, at, real, m, M: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The columns m of d_p = d_u_hat @ W_embed.T."""
    if W_ptr is None:
        inside = real[:, None] & (m < D)[None, :]
        return tl.load(d_u_hat_ptr + at[:, None] * D + m[None, :], mask=inside, other=0.0)
    else:
        d_p = tl.zeros((real.shape[0], m.shape[0]), tl.float32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside = real[:, None] & (d < D)[None, :]
            d_u_hat = tl.load(d_u_hat_ptr + at[:, None] * D + d[None, :], mask=inside, other=0.0)
            known = (m < M)[None, :] & (d < D)[:, None]
            W_T = tl.load(W_ptr + m[None, :] * D + d[:, None], mask=known, other=0.0)
            d_p = multiply(d_u_hat, W_T, d_p, "float32")
        return d_p


@triton.jit
def slice_loss(error_ptr, weight, rows, k, i, n, B):
    """sum over rows of weight * error / rows, in chunks folded from the left."""
    total = 0.0
    for first in range(0, B, CHUNK_ROWS):
        row = first + tl.arange(0, CHUNK_ROWS)
        error = tl.load(error_ptr + i * B + row, mask=row < B, other=0.0)
        share = tl.load(per_row(weight, k, i, n, B) + row * weight[3], mask=row < B, other=0.0)
        total += tl.sum(share * error, 0)
    return total / rows
