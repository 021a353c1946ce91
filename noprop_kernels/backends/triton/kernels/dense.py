"""Dense layers in Triton: y = concat(sources) @ weight.T + bias, and the gradient of a result.

A source is (pointer, 1 or 0: whether its slices differ, their places or None), contiguous. Several
sources are read one after another into one sum, and never concatenated in memory. A product sums in
ascending order and is never split, so that no bit depends on the grid.
"""

import triton
import triton.language as tl

from .activation import activate, activation_gradient
from .products import begin, multiply


@triton.jit
def slice_of(source, i, size):
    """The address of slice i in a source, whose slices have `size` entries each."""
    if source[2] is None:
        return source[0] + i * source[1] * size
    else:
        return source[0] + tl.load(source[2] + i) * source[1] * size


@triton.jit
def add_product(
    total, x_ptr, w_ptr, row, column, B, H: tl.constexpr, F: tl.constexpr,
    ROW_STRIDE: tl.constexpr, COLUMN_STRIDE: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + x @ w of a tile, x (B, F) contiguous and w (F, H) with the strides given."""
    for start in range(0, F, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_at = x_ptr + row[:, None].to(tl.int64) * F + k[None, :]
        x = tl.load(x_at, mask=(row < B)[:, None] & (k < F)[None, :], other=0.0)
        w_at = w_ptr + k[:, None] * ROW_STRIDE + column[None, :] * COLUMN_STRIDE
        w = tl.load(w_at, mask=(k < F)[:, None] & (column < H)[None, :], other=0.0)
        total = multiply(x, w, total, PRECISION)
    return total


@triton.jit(do_not_specialize=["B"])
def dense_kernel(
    out_ptr,  # (n, B, H)
    kept_ptr,  # (n, B, H), or None: what the gradient of the activation reads
    sources,  # of layer inputs, a tuple for each
    add,  # a source to add last, or None
    w_ptr,  # (N, H, sum of WIDTHS)
    b_ptr,  # (N, H)
    index_ptr,  # (n,)
    B,
    H: tl.constexpr,
    WIDTHS: tl.constexpr,
    IN_WIDTH: tl.constexpr,
    ADDS: tl.constexpr,  # there is a source to add
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,  # one for each source
    PDL: tl.constexpr,
):
    begin(PDL)
    i = tl.program_id(2).to(tl.int64)
    at = tl.load(index_ptr + i)
    row = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (row < B)[:, None] & (column < H)[None, :]
    total = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    w = w_ptr + at * (H * IN_WIDTH)
    for s in tl.static_range(len(WIDTHS)):
        x = slice_of(sources[s], i, B.to(tl.int64) * WIDTHS[s])
        total = add_product(
            total, x, w, row, column, B, H, WIDTHS[s], 1, IN_WIDTH, BLOCK_K[s], PRECISION
        )
        w += WIDTHS[s]
    y = total + tl.load(b_ptr + at * H + column, mask=column < H, other=0.0)[None, :]
    y, kept = activate(y, ACTIVATION)
    out_at = row[:, None].to(tl.int64) * H + column[None, :]
    if kept_ptr is not None:
        tl.store(kept_ptr + i * B * H + out_at, kept, mask=inside)
    if ADDS:
        y += tl.load(slice_of(add, i, B.to(tl.int64) * H) + out_at, mask=inside, other=0.0)
    tl.store(out_ptr + i * B * H + out_at, y, mask=inside)


@triton.jit(do_not_specialize=["B"])
def result_gradient_kernel(
    d_result_ptr,  # (n, B, F), or None
    d_y_ptr,  # (n, B, F), or None: behind the activation
    kept_ptr,  # (n, B, F): what the gradient of the activation reads, or None
    consumers,  # in plan order: (d_y (n, B, H), weight (N, H, in)), or (d_result of `add`, None)
    index_ptr,  # (n,)
    B,
    F: tl.constexpr,
    HEIGHTS: tl.constexpr,  # of the consumers' layers
    IN_WIDTHS: tl.constexpr,
    COLUMNS: tl.constexpr,  # the result's first column among a consumer's inputs
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,  # one for each consumer
    PDL: tl.constexpr,
):
    """d_result = sum over consumers of d_y @ weight[:, columns];  d_y = d_result times the
    activation's derivative."""
    begin(PDL)
    i = tl.program_id(2).to(tl.int64)
    at = tl.load(index_ptr + i)
    row = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = (row < B)[:, None] & (column < F)[None, :]
    out_at = i * B * F + row[:, None].to(tl.int64) * F + column[None, :]
    total = tl.zeros((BLOCK_B, BLOCK_F), tl.float32)
    for c in tl.static_range(len(HEIGHTS)):
        if consumers[c][1] is None:
            part = tl.load(consumers[c][0] + out_at, mask=inside, other=0.0)
        else:
            w = consumers[c][1] + at * (HEIGHTS[c] * IN_WIDTHS[c]) + COLUMNS[c]
            part = add_product(
                tl.zeros((BLOCK_B, BLOCK_F), tl.float32), consumers[c][0] + i * B * HEIGHTS[c], w,
                row, column, B, F, HEIGHTS[c], IN_WIDTHS[c], 1, BLOCK_K[c], PRECISION,
            )  # fmt: skip
        total = part if c == 0 else total + part
    if d_result_ptr is not None:
        tl.store(d_result_ptr + out_at, total, mask=inside)
    if d_y_ptr is not None:
        if ACTIVATION is not None:
            kept = tl.load(kept_ptr + out_at, mask=inside, other=0.0)
            total = activation_gradient(total, kept, ACTIVATION)
        tl.store(d_y_ptr + out_at, total, mask=inside)
