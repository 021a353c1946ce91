"""Batch norm in Triton: statistics over all rows, in chunks of 128 merged in order, and y_hat.

A program has some columns of one slice and reads their rows twice, once for the sums and once to
apply them.
"""

import triton
import triton.language as tl

from .activation import activate
from .dense import slice_of
from .products import CHUNK_ROWS, begin


@triton.jit
def move_statistic(running_ptr, batch, momentum, mask):
    """running = (1 - momentum) * running + momentum * batch."""
    running = tl.load(running_ptr, mask=mask, other=0.0)
    tl.store(running_ptr, (1.0 - momentum) * running + momentum * batch, mask=mask)


@triton.jit
def batch_statistics(y_ptr, column, B, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """mean and biased variance of columns: M2 += M2_c + delta^2 * count * count_c / total."""
    mean = tl.zeros((BLOCK_H,), tl.float32)
    m2 = tl.zeros((BLOCK_H,), tl.float32)
    for first in range(0, B, CHUNK_ROWS):
        row = first + tl.arange(0, CHUNK_ROWS)
        inside = (row < B)[:, None] & (column < H)[None, :]
        y = tl.load(y_ptr + row[:, None].to(tl.int64) * H + column[None, :], mask=inside, other=0.0)
        rows = tl.minimum(B - first, CHUNK_ROWS).to(tl.float32)
        total = (first + tl.minimum(B - first, CHUNK_ROWS)).to(tl.float32)
        chunk_mean = tl.sum(y, 0) / rows
        apart = tl.where(inside, y - chunk_mean[None, :], 0.0)
        delta = chunk_mean - mean
        share = tl.div_rn(rows, total)
        mean += delta * share
        m2 += tl.sum(apart * apart, 0) + delta * delta * (first * share)
    return mean, m2 / B


@triton.jit(do_not_specialize=["B"])
def norm_kernel(
    out_ptr,  # (n, B, H)
    kept_ptr,  # (n, B, H), or None: what the gradient of the activation reads
    mean_ptr,  # (n, H)
    rstd_ptr,  # (n, H)
    batch,  # (mean, unbiased variance), (n, H) each, or None
    y_ptr,  # (n, B, H)
    add,  # a source to add last, or None
    w_ptr,  # (N, H)
    b_ptr,  # (N, H)
    running,  # (mean, variance), (N, H) each
    index_ptr,  # (n,)
    eps,
    momentum,
    B,
    H: tl.constexpr,
    TRAINING: tl.constexpr,
    MOVE: tl.constexpr,  # update the running statistics at once
    ADDS: tl.constexpr,  # there is a source to add
    ACTIVATION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """y_hat = (y - mean) * rstd;  out = activation(weight * y_hat + bias) + add."""
    begin(PDL)
    i = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    real = column < H
    at, here = tl.load(index_ptr + i) * H + column, i * H + column
    y_ptr += i * B * H
    if TRAINING:
        mean, var = batch_statistics(y_ptr, column, B, H, BLOCK_H)
        unbiased = var * tl.div_rn(B.to(tl.float32), (B - 1).to(tl.float32))
        if batch is not None:
            tl.store(batch[0] + here, mean, mask=real)
            tl.store(batch[1] + here, unbiased, mask=real)
        if MOVE:
            move_statistic(running[0] + at, mean, momentum, real)
            move_statistic(running[1] + at, unbiased, momentum, real)
        # NaN where the running statistics would overflow, so that the loss shows it
        var += unbiased - unbiased
    else:
        mean = tl.load(running[0] + at, mask=real, other=0.0)
        var = tl.load(running[1] + at, mask=real, other=1.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(var + eps))
    if mean_ptr is not None:
        tl.store(mean_ptr + here, mean, mask=real)
        tl.store(rstd_ptr + here, rstd, mask=real)
    weight = tl.load(w_ptr + at, mask=real, other=0.0)
    bias = tl.load(b_ptr + at, mask=real, other=0.0)
    for first in range(0, B, CHUNK_ROWS):
        row = first + tl.arange(0, CHUNK_ROWS)
        inside = (row < B)[:, None] & real[None, :]
        place = row[:, None].to(tl.int64) * H + column[None, :]
        y = tl.load(y_ptr + place, mask=inside, other=0.0)
        y_hat = (y - mean[None, :]) * rstd[None, :]
        y, kept = activate(weight[None, :] * y_hat + bias[None, :], ACTIVATION)
        if kept_ptr is not None:
            tl.store(kept_ptr + i * B * H + place, kept, mask=inside)
        if ADDS:
            y += tl.load(slice_of(add, i, B.to(tl.int64) * H) + place, mask=inside, other=0.0)
        tl.store(out_ptr + i * B * H + place, y, mask=inside)


@triton.jit(do_not_specialize=["B"])
def norm_gradient_kernel(
    d_y_ptr,  # (n, B, H)
    d_w_ptr,  # (n, H)
    d_b_ptr,  # (n, H)
    d_out_ptr,  # (n, B, H)
    y_ptr,  # (n, B, H)
    mean_ptr,  # (n, H)
    rstd_ptr,  # (n, H)
    w_ptr,  # (N, H)
    index_ptr,  # (n,)
    B,
    H: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """d_y = weight * rstd * (d_out - d_bias / B - y_hat * d_weight / B), d_weight and d_bias.

    Outside training the statistics are constants, and the two means vanish.
    """
    begin(PDL)
    i = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    real = column < H
    here = i * H + column
    mean = tl.load(mean_ptr + here, mask=real, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + here, mask=real, other=0.0)[None, :]
    weight = tl.load(w_ptr + tl.load(index_ptr + i) * H + column, mask=real, other=0.0)[None, :]
    d_weight = tl.zeros((BLOCK_H,), tl.float32)
    d_bias = tl.zeros((BLOCK_H,), tl.float32)
    for first in range(0, B, CHUNK_ROWS):
        row = first + tl.arange(0, CHUNK_ROWS)
        inside = (row < B)[:, None] & real[None, :]
        place = i * B * H + row[:, None].to(tl.int64) * H + column[None, :]
        d = tl.load(d_out_ptr + place, mask=inside, other=0.0)
        y_hat = (tl.load(y_ptr + place, mask=inside, other=0.0) - mean) * rstd
        d_weight += tl.sum(tl.where(inside, d * y_hat, 0.0), 0)
        d_bias += tl.sum(d, 0)
    tl.store(d_w_ptr + here, d_weight, mask=real)
    tl.store(d_b_ptr + here, d_bias, mask=real)
    for first in range(0, B, CHUNK_ROWS):
        row = first + tl.arange(0, CHUNK_ROWS)
        inside = (row < B)[:, None] & real[None, :]
        place = i * B * H + row[:, None].to(tl.int64) * H + column[None, :]
        d = tl.load(d_out_ptr + place, mask=inside, other=0.0)
        if TRAINING:
            y_hat = (tl.load(y_ptr + place, mask=inside, other=0.0) - mean) * rstd
            d = d - (d_bias / B)[None, :] - y_hat * (d_weight / B)[None, :]
        tl.store(d_y_ptr + place, weight * rstd * d, mask=inside)
