"""Gradients of the step's levels and of W_embed in Triton: d_signal, d_noise and d_W_embed."""

import triton
import triton.language as tl

from .products import CHUNK_ROWS, begin, multiply, per_row


@triton.jit(do_not_specialize=["B"])
def levels_gradient_kernel(
    d_signal_ptr,  # (n, B)
    d_noise_ptr,  # (n, B)
    d_z_ptr,  # (n, B, D)
    eps_ptr,  # (n, B, D)
    y_ptr,  # (n, B) int64
    W_ptr,  # (M, D), or None
    B,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """d_signal = sum over D of d_z * u_y;  d_noise = sum over D of d_z * eps."""
    begin(PDL)
    i = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = i * B + row
    y = tl.load(y_ptr + at, mask=row < B, other=0)
    d_signal = tl.zeros((ROWS,), tl.float32)
    d_noise = tl.zeros((ROWS,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (row < B)[:, None] & (d < D)[None, :]
        place = at[:, None] * D + d[None, :]
        d_z = tl.load(d_z_ptr + place, mask=inside, other=0.0)
        if W_ptr is None:
            u_y = (d[None, :] == y[:, None]).to(tl.float32)
        else:
            u_y = tl.load(W_ptr + y[:, None] * D + d[None, :], mask=inside, other=0.0)
        d_signal += tl.sum(d_z * u_y, 1)
        d_noise += tl.sum(d_z * tl.load(eps_ptr + place, mask=inside, other=0.0), 1)
    tl.store(d_signal_ptr + at, d_signal, mask=row < B)
    tl.store(d_noise_ptr + at, d_noise, mask=row < B)


@triton.jit(do_not_specialize=["k", "B"])
def embedding_gradient_kernel(
    d_W_ptr,  # (n, M, D)
    p_ptr,  # (n, B, M), or None where no embedding is predicted
    d_u_hat_ptr,  # (n, B, D), likewise
    d_z_ptr,  # (n, B, D), or None: z is the caller's
    y_ptr,  # (n, B) int64
    signal,  # (K, n, B)
    k,
    B,
    M: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr,  # divides a chunk
    PDL: tl.constexpr,
):
    """d_W_embed = p.T @ d_u_hat + one_hot(y).T @ (signal * d_z - d_u_hat), chunks from the left."""
    begin(PDL)
    i = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(0, B, CHUNK_ROWS):
        by_prediction = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        by_label = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for start in range(0, CHUNK_ROWS, BLOCK_B):
            row = first + start + tl.arange(0, BLOCK_B)
            real = row < B
            at = i * B + row
            inside = real[:, None] & (d < D)[None, :]
            y = tl.load(y_ptr + at, mask=real, other=-1)
            label = (m[:, None] == y[None, :]).to(tl.float32)
            d_u_y = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
            if p_ptr is not None:
                p_at = p_ptr + at[None, :] * M + m[:, None]
                p = tl.load(p_at, mask=real[None, :] & (m < M)[:, None], other=0.0)
                u_at = d_u_hat_ptr + at[:, None] * D + d[None, :]
                d_u_hat = tl.load(u_at, mask=inside, other=0.0)
                by_prediction = multiply(p, d_u_hat, by_prediction, "float32")
                d_u_y -= d_u_hat
            if d_z_ptr is not None:
                share = tl.load(
                    per_row(signal, k, i, tl.num_programs(2), B) + row * signal[3],
                    mask=real,
                    other=0.0,
                )
                z_at = d_z_ptr + at[:, None] * D + d[None, :]
                d_u_y += share[:, None] * tl.load(z_at, mask=inside, other=0.0)
            by_label = multiply(label, d_u_y, by_label, "float32")
        total += by_prediction + by_label
    place = i * M * D + m[:, None] * D + d[None, :]
    tl.store(d_W_ptr + place, total, mask=(m < M)[:, None] & (d < D)[None, :])
