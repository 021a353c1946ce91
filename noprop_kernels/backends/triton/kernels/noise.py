"""Noise in Triton: Philox4x32-10 and Box-Muller, the noisy embedding, and the chain's z.

z = signal * u_y + noise * eps + sigma * eps_1. A program has some rows of one slice and all their
columns; a lane draws the four columns of one counter, so that no number is drawn twice.
"""

import triton
import triton.language as tl

from .products import begin, per_row

STREAM_EPS_1 = tl.constexpr(1)
STREAM_INFERENCE = tl.constexpr(2)
BLOCK_Z_0 = tl.constexpr(0xFFFF)


@triton.jit
def cos_sin_turns(word):
    """cos and sin of 2 pi v, v = (word >> 8) * 2^-24: the quadrant and the remainder are exact."""
    v = (word >> 8).to(tl.int32)
    quadrant = (v + 0x200000) >> 22
    r = (v - (quadrant << 22)).to(tl.float32) * 2.384185791015625e-07  # 2^-22: in [-1/2, 1/2]
    r2 = r * r
    # Taylor's coefficients of sin(pi/2 r) and cos(pi/2 r)
    s = 1.6044118e-4 * r2 - 4.6817541e-3
    s = s * r2 + 7.9692626e-2
    s = s * r2 - 6.4596409e-1
    s = (s * r2 + 1.5707963) * r
    c = -2.5202042e-5 * r2 + 9.1926028e-4
    c = c * r2 - 2.0863481e-2
    c = c * r2 + 2.5366951e-1
    c = c * r2 - 1.2337006
    c = c * r2 + 1.0
    odd = (quadrant & 1) == 1
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    turned = ((quadrant + 1) & 2) == 2  # quadrants 1 and 2
    return tl.where(turned, -cosine, cosine), tl.where((quadrant & 2) == 2, -sine, sine)


@triton.jit
def box_muller(r0, r1):
    """Two tiles of normals from two of words: sqrt(-2 ln u) {cos, sin}(2 pi v)."""
    u = ((r0 >> 8).to(tl.int32) + 1).to(tl.float32) * 5.960464477539063e-08  # 2^-24: in (0, 1]
    radius = tl.sqrt_rn(tl.maximum(-2.0 * tl.log(u), 0.0))
    turns = cos_sin_turns(r1)
    return radius * turns[0], radius * turns[1]


@triton.jit
def draw_normal(seed, place, draw, row, group):
    """Standard normals of the columns 4 group + 0..3 of the rows: four tiles of (rows, groups).

    The counter is (group, row, place, draw), place = block | stream << 16.
    """
    zero = tl.zeros((row.shape[0], group.shape[0]), tl.uint32)
    r0, r1, r2, r3 = tl.philox_impl(
        zero + group[None, :].to(tl.uint32),
        zero + (row[:, None] & 0xFFFFFFFF).to(tl.uint32),
        zero + place.to(tl.uint32),
        zero + (draw & 0xFFFFFFFF).to(tl.uint32),
        (seed & 0xFFFFFFFF).to(tl.uint32),
        ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32),
        10,
    )
    n0, n1 = box_muller(r0, r1)
    n2, n3 = box_muller(r2, r3)
    return n0, n1, n2, n3


@triton.jit
def store_noisy(z_ptr, eps_ptr, W_ptr, y, signal, noise, sigma, eps, eps_1, at, column, inside, D):
    """Columns (rows, groups) of z and eps; either address may be None."""
    if eps_ptr is not None:
        tl.store(eps_ptr + at, eps, mask=inside)
    if z_ptr is not None:
        if W_ptr is None:
            u_y = (column[None, :] == y[:, None]).to(tl.float32)
        else:
            u_y = tl.load(W_ptr + y[:, None] * D + column[None, :], mask=inside, other=0.0)
        z = signal[:, None] * u_y + noise[:, None] * eps
        if eps_1 is not None:
            z += sigma * eps_1
        tl.store(z_ptr + at, z, mask=inside)


@triton.jit(do_not_specialize=["R", "rows", "k", "B", "first_row"])
def add_noise_kernel(
    z_ptr,  # (n, B, D)
    eps_ptr,  # (n, B, D)
    labels_ptr,  # (n, B) int64, or None: the labels as the head reads them
    bad_ptr,  # (n, tiles) int32, or None: 1 where a label is out of range, 2 where an index is
    y,  # (K, n, B), or with indices (pointer to the data set's labels,)
    indices,  # (pointer (K, R, B), pointer to replica (n,)), or None
    R,
    rows,  # of the data set
    W_ptr,  # (M, D), or None: one-hot
    seeds_ptr,  # (n,)
    draw,  # (K, n)
    block,  # (K, n)
    signal,  # (K, n, B)
    noise,
    sigma,
    k,
    B,
    first_row,
    M: tl.constexpr,
    D: tl.constexpr,
    STREAM: tl.constexpr,
    SECOND: tl.constexpr,  # sigma is not 0
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    i, n = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < B
    if indices is None:
        label = tl.load(per_row(y, k, i, n, B) + row * y[3], mask=real, other=0)
        bad = tl.zeros((ROWS,), tl.int32)
    else:
        batch = (k.to(tl.int64) * R + tl.load(indices[1] + i)) * B
        index = tl.load(indices[0] + batch + row, mask=real, other=0)
        found = (index >= 0) & (index < rows)
        label = tl.load(y[0] + tl.where(found, index, 0), mask=real, other=0)
        bad = tl.where(found, 0, 2)
    known = (label >= 0) & (label < M)
    label = tl.where(known, label, 0)
    if labels_ptr is not None:
        tl.store(labels_ptr + i * B + row, label, mask=real)
    if bad_ptr is not None:
        bad = tl.max(bad, 0) | tl.max(tl.where(known, 0, 1), 0)
        tl.store(bad_ptr + i * tl.num_programs(0) + tl.program_id(0), bad)

    seed = tl.load(seeds_ptr + i)
    count, place = tl.load(per_row(draw, k, i, n, B)), tl.load(per_row(block, k, i, n, B))
    signals = tl.load(per_row(signal, k, i, n, B) + row * signal[3], mask=real, other=0.0)
    noises = tl.load(per_row(noise, k, i, n, B) + row * noise[3], mask=real, other=0.0)
    counter_row = row.to(tl.int64) + first_row
    for start in range(0, (D + 3) // 4, GROUPS):
        group = start + tl.arange(0, GROUPS)
        e0, e1, e2, e3 = draw_normal(seed, place | STREAM << 16, count, counter_row, group)
        if SECOND:
            f0, f1, f2, f3 = draw_normal(
                seed, place | STREAM_EPS_1 << 16, count, counter_row, group
            )
        else:
            f0, f1, f2, f3 = None, None, None, None
        for j in tl.static_range(4):
            column = 4 * group + j
            inside = real[:, None] & (column < D)[None, :]
            at = (i * B + row[:, None]) * D + column[None, :]
            eps = e0 if j == 0 else e1 if j == 1 else e2 if j == 2 else e3
            eps_1 = f0 if j == 0 else f1 if j == 1 else f2 if j == 2 else f3
            store_noisy(
                z_ptr, eps_ptr, W_ptr, label, signals, noises, sigma, eps, eps_1, at, column,
                inside, D,
            )  # fmt: skip


@triton.jit(do_not_specialize=["sample", "step", "B", "first_row"])
def chain_kernel(
    z_ptr,  # (R, B, D): the new z
    before_ptr,  # (R, B, D), or None: z is z_0
    u_hat_ptr,  # (R, B, D)
    a_ptr,  # (L,), and so b and sqrt_c; sqrt_c None: no noise
    b_ptr,
    sqrt_c_ptr,
    seeds_ptr,  # (R,)
    sample,
    step,
    B,
    first_row,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    PDL: tl.constexpr,
):
    """z = a u_hat + b z + sqrt(c) eps of chain step `step`, or z_0 = eps."""
    begin(PDL)
    i = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    seed = tl.load(seeds_ptr + i)
    counter_row = row.to(tl.int64) + first_row
    for start in range(0, (D + 3) // 4, GROUPS):
        group = start + tl.arange(0, GROUPS)
        if before_ptr is None or sqrt_c_ptr is not None:
            block = BLOCK_Z_0 if before_ptr is None else step
            place = tl.full((), STREAM_INFERENCE << 16, tl.int64) | block
            e0, e1, e2, e3 = draw_normal(seed, place, sample.to(tl.int64), counter_row, group)
        else:
            e0, e1, e2, e3 = None, None, None, None
        for j in tl.static_range(4):
            column = 4 * group + j
            inside = (row < B)[:, None] & (column < D)[None, :]
            at = (i * B + row[:, None]) * D + column[None, :]
            eps = e0 if j == 0 else e1 if j == 1 else e2 if j == 2 else e3
            if before_ptr is None:
                z = eps
            else:
                u_hat = tl.load(u_hat_ptr + at, mask=inside, other=0.0)
                z = tl.load(before_ptr + at, mask=inside, other=0.0)
                z = tl.load(a_ptr + step) * u_hat + tl.load(b_ptr + step) * z
                if eps is not None:
                    z += tl.load(sqrt_c_ptr + step) * eps
            tl.store(z_ptr + at, z, mask=inside)


@triton.jit(do_not_specialize=["size"])
def look_kernel(
    flags_ptr,  # (1,) int32
    x_ptr,  # (size,)
    size,
    BIT: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Sets a bit where x is not finite."""
    begin(PDL)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < size, other=0.0)
    bad = tl.max(tl.where(tl.abs(x) < float("inf"), 0, BIT), 0)
    tl.atomic_or(flags_ptr, bad, mask=bad != 0)


@triton.jit(do_not_specialize=["rows", "k", "B"])
def gather_kernel(
    out_ptr,  # (R, B, F) float32, or None: the rows are only checked
    bad_ptr,  # (R, tiles) int32, or None: 2 where an index is out of range, 4 where x is not finite
    data,  # (pointer,), or without indices (pointer, whether replicas differ)
    indices_ptr,  # (K, R, B), or None
    rows,  # of the data set
    mean_ptr,  # (F,), or None
    scale_ptr,  # (F,), or None
    k,
    B,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PDL: tl.constexpr,
):
    """x = (data[indices] - mean) * scale of some rows of a replica."""
    begin(PDL)
    r = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < B
    bad = tl.zeros((ROWS,), tl.int32)
    if indices_ptr is None:
        source = data[0] + (r * data[1] * B + row) * F
    else:
        at = (k.to(tl.int64) * tl.num_programs(1) + r) * B + row
        index = tl.load(indices_ptr + at, mask=real, other=0)
        found = (index >= 0) & (index < rows)
        bad = tl.where(found, 0, 2)
        source = data[0] + tl.where(found, index, 0) * F
    for start in range(0, F, BLOCK_F):
        column = start + tl.arange(0, BLOCK_F)
        inside = real[:, None] & (column < F)[None, :]
        x = tl.load(source[:, None] + column[None, :], mask=inside, other=0).to(tl.float32)
        if scale_ptr is not None:
            mean = tl.load(mean_ptr + column, mask=column < F, other=0.0)
            x = (x - mean[None, :]) * tl.load(scale_ptr + column, mask=column < F, other=0.0)[None]
        if bad_ptr is not None:
            bad = bad | tl.max(tl.where(tl.abs(x) < float("inf"), 0, 4), 1)
        if out_ptr is not None:
            tl.store(out_ptr + (r * B + row[:, None]) * F + column[None, :], x, mask=inside)
    if bad_ptr is not None:
        tl.store(bad_ptr + r * tl.num_programs(0) + tl.program_id(0), tl.reduce_or(bad, 0))
