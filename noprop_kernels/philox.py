"""Random numbers as a function of (seed, stream, site, draw, block, row, column): Philox4x32-10.

    key     = (low word of the seed, high word)
    counter = (column // 4, row, block | stream << 16 | site << 24, draw mod 2^32)

The four words of one counter belong to columns 4q .. 4q + 3. The numbers do not depend on order,
threads, or resumption. They are not those of torch.randn.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .plan import Plan

STREAM_EPS = 0
STREAM_EPS_1 = 1
STREAM_INFERENCE = 2
STREAM_DROPOUT = 3
STREAM_INITIALISATION = 4
STREAM_ORDER = 5
STREAM_TIME = 6
STREAM_AUGMENTATION = 7
STREAM_HEAD = 8

BLOCK_Z_0 = 0xFFFF  # block of inference's z_0, beside the blocks of its steps
BLOCK_SHARED = 0xFFFE  # block of what all blocks share: embeddings, gamma, the order of t

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al. 2011, "Parallel random numbers", table 2
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the two key words after each round
ROUNDS = 10
CHUNK = 1 << 15  # counters per pass: 256 KiB an array, which stays in the cache

# seeds, stream, site, draw, block, rows, columns: the arguments of `words`
Address = tuple[Tensor, int, int, Tensor | int, Tensor | int, int, int]


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words for four counter words and two key words, all int64 below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2^64, so that both halves hold the right bits
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD
        c2, c3 = ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def draw_numbers(
    transform: Callable[[Tensor], Tensor],
    seeds: Tensor,
    stream: int,
    site: int,
    draw: Tensor | int,
    block: Tensor | int,
    rows: int,
    columns: int,
    *,
    first_row: int,
    dtype: torch.dtype,
) -> Tensor:
    """transform(words (n, r, columns / 4, 4)) -> (n, r, columns), by chunks of rows."""
    for name, value, limit in (("stream", stream, 0xFF), ("site", site, 0xFF)):
        if not 0 <= value <= limit:
            raise ValueError(f"noise: {name} must be in [0, {limit}], got {value}")
    n, groups = len(seeds), -(-columns // 4)

    def per_slice(value: Tensor | int) -> Tensor:
        return torch.as_tensor(value, dtype=torch.int64, device=seeds.device).reshape(-1, 1, 1)

    key = (per_slice(seeds & WORD), per_slice((seeds >> 32) & WORD))
    column = torch.arange(groups, dtype=torch.int64, device=seeds.device)
    place = per_slice(block) | stream << 16 | site << 24
    count = per_slice(draw) & WORD
    out = torch.empty(n, rows, columns, dtype=dtype, device=seeds.device)
    step = max(1, CHUNK // max(1, n * groups))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        row = torch.arange(start, stop, dtype=torch.int64, device=seeds.device) + first_row
        counter = torch.broadcast_tensors(column, row[:, None] & WORD, place, count)
        words = torch.stack(philox(counter, key), dim=-1).expand(n, -1, -1, -1)
        out[:, start:stop] = transform(words)[..., :columns]
    return out


def words(
    seeds: Tensor,
    stream: int,
    site: int,
    draw: Tensor | int,
    block: Tensor | int,
    rows: int,
    columns: int,
    *,
    first_row: int = 0,
) -> Tensor:
    """Random words r in [0, 2^32), from which all other numbers are made.

    Args:
        seeds: (n,) int64, keys by their bit pattern.
        stream, site: the purpose of the numbers, each below 256.
        draw: (n,) int64 or int; its low 32 bits count.
        block: (n,) int64 or int, below 2^16.
        rows, columns: B and D.
        first_row: counter of row 0.

    Returns:
        (n, rows, columns) int64.

    Raises:
        ValueError: stream or site does not fit its byte.
    """
    return draw_numbers(
        lambda r: r.flatten(-2),
        *(seeds, stream, site, draw, block, rows, columns),
        first_row=first_row,
        dtype=torch.int64,
    )


def uniform(*address: *Address, first_row: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers (r >> 8) * 2^-24 in [0, 1), one word each. Arguments as `words`.

    Returns:
        (n, rows, columns) of `dtype`; exact in float32.
    """
    return draw_numbers(
        lambda r: (r.flatten(-2) >> 8).double() * 2.0**-24,
        *address,
        first_row=first_row,
        dtype=dtype,
    )


def box_muller(r: Tensor) -> Tensor:
    """sqrt(-2 ln u) * (cos, sin)(2 pi v) of the word pairs (r0, r1) and (r2, r3): (..., 4).

    u = ((r0 >> 8) + 1) * 2^-24 lies in (0, 1], v = (r1 >> 8) * 2^-24 in [0, 1).
    """
    r = r.unflatten(-1, (2, 2))
    u = ((r[..., 0] >> 8) + 1).double() * 2.0**-24
    radius = (-2 * u.log()).clamp_min(0).sqrt()
    # the top two bits of v are the quadrant, so that its borders are exact
    angle = ((r[..., 1] >> 8) & 0x3FFFFF).double() * (math.pi / 2 * 2.0**-22)
    quadrant = r[..., 1] >> 30
    cos, sin = angle.cos(), angle.sin()
    odd = quadrant & 1 == 1
    cos, sin = torch.where(odd, -sin, cos), torch.where(odd, cos, sin)
    sign = 1 - (quadrant & 2).double()
    return torch.stack([radius * sign * cos, radius * sign * sin], dim=-1).flatten(-2)


def normal(*address: *Address, first_row: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by Box-Muller, in float64 and rounded once. Arguments as `words`.

    Returns:
        (n, rows, columns) of `dtype`.
    """
    return draw_numbers(
        lambda r: box_muller(r).flatten(-2), *address, first_row=first_row, dtype=dtype
    )


def permutation(seed: int, epoch: int, rows: int) -> Tensor:
    """Order of the data in an epoch: the stable argsort of (r0 >> 1) << 32 | r1 over the rows.

    r0 and r1 are the first two words of stream 5, draw = epoch, block 0, at each row.

    Returns:
        (rows,) int64.
    """
    seeds = torch.tensor([seed], dtype=torch.int64, device="cpu")
    pair = words(seeds, STREAM_ORDER, 0, epoch, 0, rows, 2)[0]
    return torch.argsort(pair[:, 0] >> 1 << 32 | pair[:, 1], stable=True)


def initial_parameters(plan: Plan, seeds: Tensor, blocks: Tensor) -> dict[str, Tensor]:
    """Initial parameters, distributed as torch.nn.Linear's, Conv2d's and BatchNorm1d's.

    weight and bias = (2 * uniform - 1) / sqrt(fan_in of the layer), from stream 4, draw 0, with the
    parameter's ordinal in the plan as site. A row of a weight is what forms one output; a bias is
    one row. norm.weight starts at
    1 and norm.bias at 0.

    Args:
        plan: the layers.
        seeds: (n,) int64.
        blocks: (n,) int64, t - 1.

    Returns:
        (n, ...) float32 by state_dict name, in plan order.

    Raises:
        ValueError: the plan has more than 256 parameters.
    """
    params = {}
    for site, (name, shape) in enumerate(plan.parameters().items()):
        layer, _, part = name.partition(".")
        if part.startswith("norm."):
            start = seeds.new_empty(len(seeds), *shape, dtype=torch.float32)
            params[name] = start.fill_(part == "norm.weight")
            continue
        rows = shape[0] if len(shape) > 1 else 1
        columns = math.prod(shape) // rows
        value = uniform(seeds, STREAM_INITIALISATION, site, 0, blocks, rows, columns)
        value.mul_(2).sub_(1).mul_(plan.fan_in(layer) ** -0.5)
        params[name] = value.reshape(len(seeds), *shape)
    return params
