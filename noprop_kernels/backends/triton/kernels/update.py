"""The end of a step in Triton: loss, counters and rates of a slice, then every weight at once.

The weight gradient's tile goes from the product's registers through the optimizer into the weight;
gradients never reach memory, unless they are asked for (RULE "none"). One launch has the tiles of
all layers, vectors and running statistics of all slices.

A parameter is (itself, m, v, its gradient's place); what the optimizer does not keep is None.
"""

import triton
import triton.language as tl

from ...gpu.layers import Sum
from .dense import slice_of
from .head import slice_loss
from .norm import move_statistic
from .optimizer import rates_of, step
from .products import CHUNK_ROWS, begin, multiply, per_row

SUM_ROWS = tl.constexpr(int(Sum.ROWS))
SUM_DONE = tl.constexpr(int(Sum.DONE))
RATES = tl.constexpr(4)  # numbers of a slice: lr, decay, sqrt(c_2), and 1 where it moves


@triton.jit
def store_rates(
    rates_ptr, updates_ptr, lr, decay, k, i, n, at, apply,
    RULE: tl.constexpr, LOG_BETA_1: tl.constexpr, LOG_BETA_2: tl.constexpr,
):  # fmt: skip
    """The rates of a slice, rounded once; counts the update."""
    updates = tl.load(updates_ptr + at) + 1
    rate, wd, root = rates_of(  # type: ignore  # pyright takes a kernel for a function
        tl.load(per_row(lr, k, i, n, 1)), tl.load(per_row(decay, k, i, n, 1)), updates, RULE,
        LOG_BETA_1, LOG_BETA_2,
    )  # fmt: skip
    tl.store(rates_ptr + i * RATES, rate.to(tl.float32))
    tl.store(rates_ptr + i * RATES + 1, wd.to(tl.float32))
    tl.store(rates_ptr + i * RATES + 2, root.to(tl.float32))
    tl.store(rates_ptr + i * RATES + 3, apply.to(tl.float32))
    tl.store(updates_ptr + at, tl.where(apply, updates, updates - 1))


@triton.jit(do_not_specialize=["k", "B", "TILES"])
def loss_kernel(
    loss_ptr,  # (n,) of step k
    applied_ptr,  # (n,) uint8 of step k
    rates_ptr,  # (n, RATES), or None: nothing moves
    draws_ptr,  # (N,)
    updates_ptr,  # (N,)
    errors_ptr,  # (1,) int32: flags of all that was bad, or None: contents were checked
    error_ptr,  # (n, B)
    weight,  # (K, n, B)
    bad,  # flags of labels and inputs, (pointer (slots, TILES), places of the slices or None) each
    lr,  # (K, n), float64
    decay,  # (n,), float64
    index_ptr,  # (n,)
    rows,
    k,
    B,
    TILES,
    FLAGS: tl.constexpr,  # how many there are in `bad`
    RULE: tl.constexpr,
    LOG_BETA_1: tl.constexpr,
    LOG_BETA_2: tl.constexpr,
    PDL: tl.constexpr,
):
    """The loss of a slice, whether it is finite, and the rates of its update."""
    begin(PDL)
    i, n = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    loss = slice_loss(error_ptr, weight, rows, k, i, n, B)
    apply = tl.abs(loss) < float("inf")
    if errors_ptr is not None:
        flags = tl.zeros((128,), tl.int32)
        for j in tl.static_range(FLAGS):
            slot = i if bad[j][1] is None else tl.load(bad[j][1] + i)
            for first in range(0, TILES, 128):
                tile = first + tl.arange(0, 128)
                flags |= tl.load(bad[j][0] + slot * TILES + tile, mask=tile < TILES, other=0)
        flag = tl.reduce_or(flags, 0)
        apply = apply & (flag == 0)
        tl.atomic_or(errors_ptr, flag)
    tl.store(loss_ptr + i, loss)
    tl.store(applied_ptr + i, apply.to(tl.uint8))
    if rates_ptr is not None:
        at = tl.load(index_ptr + i)
        tl.store(draws_ptr + at, tl.load(draws_ptr + at) + 1)
        store_rates(
            rates_ptr, updates_ptr, lr, decay, k, i, n, at, apply, RULE, LOG_BETA_1, LOG_BETA_2
        )


@triton.jit(do_not_specialize=["size"])
def rates_kernel(
    rates_ptr,  # (n, RATES)
    applied_ptr,  # (n,) uint8: written, or read where d_logits is None
    updates_ptr,  # (N,)
    d_logits_ptr,  # (n, size), or None
    lr,
    decay,
    index_ptr,  # (n,)
    k,
    size,
    RULE: tl.constexpr,
    LOG_BETA_1: tl.constexpr,
    LOG_BETA_2: tl.constexpr,
    PDL: tl.constexpr,
):
    """The rates of an update where d_logits is finite, or where `applied` says so."""
    begin(PDL)
    i, n = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    if d_logits_ptr is None:
        apply = tl.load(applied_ptr + i) != 0
    else:
        bad = tl.zeros((1024,), tl.int32)
        for first in range(0, size, 1024):
            place = first + tl.arange(0, 1024)
            value = tl.load(d_logits_ptr + i * size + place, mask=place < size, other=0.0)
            bad |= tl.where(tl.abs(value) < float("inf"), 0, 1)
        apply = tl.reduce_or(bad, 0) == 0
        if applied_ptr is not None:
            tl.store(applied_ptr + i, apply.to(tl.uint8))
    at = tl.load(index_ptr + i)
    store_rates(rates_ptr, updates_ptr, lr, decay, k, i, n, at, apply, RULE, LOG_BETA_1, LOG_BETA_2)


@triton.jit
def moves(rates_ptr, like):
    """Whether the slice is updated, broadcast to a tile: the interpreter mishandles a scalar
    mask."""
    return tl.full(like.shape, tl.load(rates_ptr + 3), tl.float32) != 0


@triton.jit
def put_gradient(param, g, at, here, inside, rates_ptr, hyper, RULE: tl.constexpr):
    """One optimizer step of the entries `at` of a parameter, or their gradients to `here`."""
    if RULE == "none":
        tl.store(param[3] + here, g, mask=inside)
    else:
        inside = inside & moves(rates_ptr, inside)
        w = tl.load(param[0] + at, mask=inside, other=0.0)
        m = w if param[1] is None else tl.load(param[1] + at, mask=inside, other=0.0)
        v = w if param[2] is None else tl.load(param[2] + at, mask=inside, other=0.0)
        lr, decay, root = tl.load(rates_ptr), tl.load(rates_ptr + 1), tl.load(rates_ptr + 2)
        w, m, v = step(g, w, m, v, lr, decay, root, hyper, RULE)
        if param[1] is not None:
            tl.store(param[1] + at, m, mask=inside)
        if param[2] is not None:
            tl.store(param[2] + at, v, mask=inside)
        tl.store(param[0] + at, w, mask=inside)


@triton.jit
def weight_tile(
    part, tile, i, at, rates_ptr, hyper, B, H: tl.constexpr, F: tl.constexpr,
    IN_WIDTH: tl.constexpr, COLUMN: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr, RULE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_weight = d_y.T @ x of a tile, rows ascending, and its step; part is (param, d_y, x)."""
    across = tl.cdiv(F, BLOCK_F)
    h = tile // across * BLOCK_H + tl.arange(0, BLOCK_H)
    f = tile % across * BLOCK_F + tl.arange(0, BLOCK_F)
    d_y_ptr, x_ptr = part[1] + i * B * H, slice_of(part[2], i, B.to(tl.int64) * F)
    g = tl.zeros((BLOCK_H, BLOCK_F), tl.float32)
    for start in range(0, B, BLOCK_B):
        row = start + tl.arange(0, BLOCK_B)
        d_at = d_y_ptr + row[:, None].to(tl.int64) * H + h[None, :]
        d_y = tl.load(d_at, mask=(row < B)[:, None] & (h < H)[None, :], other=0.0)
        x_at = x_ptr + row[:, None].to(tl.int64) * F + f[None, :]
        x = tl.load(x_at, mask=(row < B)[:, None] & (f < F)[None, :], other=0.0)
        g = multiply(tl.trans(d_y), x, g, PRECISION)
    place = h[:, None] * IN_WIDTH + (COLUMN + f)[None, :]
    inside = (h < H)[:, None] & (f < F)[None, :]
    size: tl.constexpr = H * IN_WIDTH
    put_gradient(part[0], g, at * size + place, i * size + place, inside, rates_ptr, hyper, RULE)


@triton.jit
def vector_tile(
    part, tile, i, at, rates_ptr, hyper, B, H: tl.constexpr, SUM: tl.constexpr,
    BLOCK_H: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """A bias: the sum of d_y over rows; a norm's parameter: summed before; part (param, sum)."""
    h = tile * BLOCK_H + tl.arange(0, BLOCK_H)
    if SUM == SUM_ROWS:
        g = tl.zeros((BLOCK_H,), tl.float32)
        for first in range(0, B, CHUNK_ROWS):
            row = first + tl.arange(0, CHUNK_ROWS)
            d_at = part[1] + i * B * H + row[:, None].to(tl.int64) * H + h[None, :]
            g += tl.sum(tl.load(d_at, mask=(row < B)[:, None] & (h < H)[None, :], other=0.0), 0)
    elif SUM == SUM_DONE:
        g = tl.load(part[1] + i * H + h, mask=h < H, other=0.0)
    else:  # batch statistics cancel such a bias
        g = tl.zeros((BLOCK_H,), tl.float32)
    put_gradient(part[0], g, at * H + h, i * H + h, h < H, rates_ptr, hyper, RULE)


@triton.jit(do_not_specialize=["B"])
def update_kernel(
    weights,  # a part for each source of each layer
    vectors,  # a part for each bias and each parameter of a norm
    statistics,  # (running (N, H), batch (n, H), momentum) each
    rates_ptr,  # (n, RATES), or None
    hyper,  # the optimizer's numbers
    index_ptr,  # (n,)
    B,
    WEIGHTS: tl.constexpr,  # (first tile, last, H, F, IN_WIDTH, COLUMN, BLOCK_F) of each part
    VECTORS: tl.constexpr,  # (first tile, last, H, SUM)
    STATISTICS: tl.constexpr,  # (first tile, last, H)
    RULE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    tile = tl.program_id(0)
    i = tl.program_id(1).to(tl.int64)
    at = tl.load(index_ptr + i)
    if rates_ptr is not None:
        rates_ptr += i * RATES
    for p in tl.static_range(len(WEIGHTS)):
        if (tile >= WEIGHTS[p][0]) & (tile < WEIGHTS[p][1]):
            weight_tile(
                weights[p], tile - WEIGHTS[p][0], i, at, rates_ptr, hyper, B, WEIGHTS[p][2],
                WEIGHTS[p][3], WEIGHTS[p][4], WEIGHTS[p][5], WEIGHTS[p][6], BLOCK_H, BLOCK_B, RULE,
                PRECISION,
            )  # fmt: skip
    for p in tl.static_range(len(VECTORS)):
        if (tile >= VECTORS[p][0]) & (tile < VECTORS[p][1]):
            vector_tile(
                vectors[p], tile - VECTORS[p][0], i, at, rates_ptr, hyper, B, VECTORS[p][2],
                VECTORS[p][3], BLOCK_H, RULE,
            )  # fmt: skip
    for p in tl.static_range(len(STATISTICS)):
        if (tile >= STATISTICS[p][0]) & (tile < STATISTICS[p][1]):
            h = (tile - STATISTICS[p][0]) * BLOCK_H + tl.arange(0, BLOCK_H)
            mask = h < STATISTICS[p][2]
            mask = mask & moves(rates_ptr, mask)
            batch = tl.load(statistics[p][1] + i * STATISTICS[p][2] + h, mask=mask, other=0.0)
            move_statistic(
                statistics[p][0] + at * STATISTICS[p][2] + h, batch, statistics[p][2], mask
            )


@triton.jit(do_not_specialize=["size"])
def apply_kernel(
    param,  # (itself, m, v, None), (N, size) each
    grad_ptr,  # (n, size)
    rates_ptr,  # (n, RATES)
    hyper,
    index_ptr,  # (n,)
    size,
    RULE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One optimizer step from gradients in memory."""
    begin(PDL)
    i = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(index_ptr + i) * size + place
    g = tl.load(grad_ptr + i * size + place, mask=place < size, other=0.0)
    put_gradient(param, g, at, at, place < size, rates_ptr + i * RATES, hyper, RULE)
