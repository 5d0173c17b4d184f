"""`appearance_statistics`: products of (1, y), y scaled to mean 0 and variance 1, through the
adjoint of a mean.

`appearance_statistics_sums` writes for each of a few runs of positions their number, and per
channel the sum and the sum of squares about the mean of the run, in float64. Each program of
`appearance_statistics_products` combines them in the same order to the mean m of all positions and
the variance sum_i [q_i + n_i (m_i - m)^2] / N. All of y must be read before the second launch can
begin; a launch for combining the sums would add time and save no bytes.

The weight of a position in the neighbourhood mean is separable and has a closed form at the border
too (`taps`). So the adjoint is gathered: every output is written once, without atomics.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from . import configs
from .launch import Cost, Launch, OpKernel, kernel, launch, num_bytes
from .plans import planned
from .tiles import alignment, block, divided

MAX_PARTS: tl.constexpr = tl.constexpr(128)  # runs of positions
BLOCK_N: tl.constexpr = tl.constexpr(8)  # factors of (1, y) in a block of products


def _sums_cost(started: Launch) -> Cost:
    a = started.arguments
    read = num_bytes(a["y"], a["valid"])
    return Cost(loads=2 * read, stores=num_bytes(a["partials"]), distinct_loads=read)


@triton.jit
def channels_of_tile(y, valid, tile, P, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr):
    """y [BLOCK_D, BLOCK_P] of a tile of positions in float64, and a mask [BLOCK_P] of the valid
    positions.
    """
    tiles = tl.cdiv(P, BLOCK_P)
    b = (tile // tiles).to(tl.int64)
    p = tile % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_D)
    at = (b * D + channel)[:, None] * P + p[None, :]
    value = tl.load(y + at, mask=(channel < D)[:, None] & (p < P)[None, :], other=0).to(tl.float64)
    counts = p < P
    if valid is not None:
        counts = tl.load(valid + b * P + p, mask=p < P, other=0).to(tl.int1)
    return value, counts


@kernel(wide_loads=True, cost=_sums_cost)
def appearance_statistics_sums(
    y,  # [B, D, P]
    valid,  # [B, P] bool, or None: all are valid
    partials,  # [2 D + 1, parts] float64: valid positions, sums, sums of squares about the part's mean
    tiles: tl.int32,  # of all images
    each: tl.int32,  # tiles per part
    P: tl.int32, D: tl.constexpr,
    ALIGN_P: tl.constexpr,  # divisor of P
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    BLOCK_P: tl.constexpr = BLOCK // BLOCK_D
    P = divided(P, ALIGN_P)
    part, parts = tl.program_id(0), tl.num_programs(0)
    first = part * each
    last = tl.minimum(first + each, tiles)
    channel = tl.arange(0, BLOCK_D)
    number = tl.zeros((BLOCK_P,), tl.float64)
    total = tl.zeros((BLOCK_D, BLOCK_P), tl.float64)
    for tile in range(first, last):
        value, counts = channels_of_tile(y, valid, tile, P, D, BLOCK_D, BLOCK_P)
        number += counts.to(tl.float64)
        total += tl.where(counts[None, :], value, 0.0)
    n = tl.sum(number, axis=0)
    sums = tl.sum(total, axis=1)
    mean = sums / tl.maximum(n, 1.0)
    squares = tl.zeros((BLOCK_D, BLOCK_P), tl.float64)
    for tile in range(first, last):
        value, counts = channels_of_tile(y, valid, tile, P, D, BLOCK_D, BLOCK_P)
        difference = value - mean[:, None]
        squares += tl.where(counts[None, :], difference * difference, 0.0)
    tl.store(partials + part, n)
    to = partials + (1 + channel) * parts + part
    tl.store(to, sums, mask=channel < D)
    tl.store(to + D * parts, tl.sum(squares, axis=1), mask=channel < D)


def _products_cost(started: Launch) -> Cost:
    a, D = started.arguments, started.constexprs["D"]
    y, valid, out, partials = a["y"], a["valid"], a["out"], a["partials"]
    blocks = triton.cdiv(D + 1, BLOCK_N.value)
    channels = [min(D + 1, n + BLOCK_N.value) - max(1, n) for n in range(0, D + 1, BLOCK_N.value)]

    def neighbours(n: int, reach: int) -> int:  # pairs of positions of a row or column of n
        return n * (2 * reach + 1) - reach * (reach + 1)

    h, w = a["P"] // a["w"], a["w"]
    pairs = len(y) * neighbours(h, a["reach_y"]) * neighbours(w, a["reach_x"])
    tiles = started.programs // (blocks * (blocks + 1) // 2)
    loads = 0
    for i in range(blocks):
        for j in range(i, blocks):
            rows = channels[i] + channels[j]
            loads += pairs * (rows * y.element_size() + (valid is not None))
            loads += tiles * (2 + 2 * rows) * a["parts"] * partials.element_size()
    return Cost(loads=loads, stores=num_bytes(out), distinct_loads=num_bytes(y, valid, partials))


@triton.jit
def standardisation(partials, row, parts, D: tl.constexpr, TINY: tl.constexpr):
    """Mean and 1 / deviation of the channels of the factors `row` [BLOCK_N], and the number of
    valid positions.
    """
    part = tl.arange(0, MAX_PARTS)
    n = tl.load(partials + part, mask=part < parts, other=0)
    mask = ((row >= 1) & (row <= D))[:, None] & (part < parts)[None, :]
    at = partials + row[:, None] * parts + part[None, :]
    sums = tl.load(at, mask=mask, other=0)
    within = tl.load(at + D * parts, mask=mask, other=0)
    number = tl.sum(n, axis=0)
    mean = tl.sum(sums, axis=1) / number
    apart = sums / tl.maximum(n, 1.0)[None, :] - mean[:, None]
    deviation = tl.sqrt(tl.sum(within + n[None, :] * apart * apart, axis=1) / number)
    # tl.maximum would lose NaN.
    return mean, 1 / tl.where(deviation < TINY, TINY, deviation), number


@triton.jit
def taps(source, to, n, radius):
    """How often the mean around position `source` of n in a row contains position `to`. Border
    positions repeat.
    """
    least = tl.where(to == 0, -radius, tl.maximum(to - source, -radius))
    most = tl.where(to == n - 1, radius, tl.minimum(to - source, radius))
    return tl.maximum(most - least + 1, 0)


@kernel(cost=_products_cost)
def appearance_statistics_products(
    y,  # [B, D, P]
    valid,  # [B, P] bool, or None: all are valid
    partials,  # [2 D + 1, parts] float64 of `appearance_statistics_sums`
    out,  # [B, (D + 1) (D + 2) / 2, P]
    parts: tl.int32, P: tl.int32, w: tl.int32, radius: tl.int32,
    reach_y: tl.int32,  # min(radius, h - 1)
    reach_x: tl.int32, D: tl.constexpr, TINY: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (D + BLOCK_N) // BLOCK_N
    PAIRS: tl.constexpr = BLOCKS * (BLOCKS + 1) // 2
    pair = tl.program_id(0) % PAIRS
    tile = tl.program_id(0) // PAIRS
    tiles = tl.cdiv(P, BLOCK_P)
    b = (tile // tiles).to(tl.int64)
    p = tile % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    h = P // w
    own_y, own_x = p // w, p % w
    # The pairs of blocks of factors are the rows of an upper triangle.
    block_i = 0
    for i in tl.static_range(1, BLOCKS):
        block_i += (pair >= i * BLOCKS - i * (i - 1) // 2).to(tl.int32)
    block_j = pair - block_i * BLOCKS + block_i * (block_i - 1) // 2 + block_i
    i = block_i * BLOCK_N + tl.arange(0, BLOCK_N)
    j = block_j * BLOCK_N + tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = out.dtype.element_ty
    mean, scale, number = standardisation(partials, i, parts, D, TINY)
    mean_i, scale_i = mean.to(dtype)[:, None, None], scale.to(dtype)[:, None, None]
    mean, scale, number = standardisation(partials, j, parts, D, TINY)
    mean_j, scale_j = mean.to(dtype)[None, :, None], scale.to(dtype)[None, :, None]
    across = 2 * radius + 1
    share = (1 / (number * (across * across).to(tl.float64))).to(dtype)

    i, j = i[:, None, None], j[None, :, None]
    products = tl.zeros((BLOCK_N, BLOCK_N, BLOCK_P), dtype)
    for dy in range(-reach_y, reach_y + 1):
        for dx in range(-reach_x, reach_x + 1):
            at_y, at_x = own_y + dy, own_x + dx
            inside = (p < P) & (at_y >= 0) & (at_y < h) & (at_x >= 0) & (at_x < w)
            at = at_y * w + at_x
            counts = inside
            if valid is not None:
                counts = tl.load(valid + b * P + at, mask=inside, other=0).to(tl.int1)
            weight = taps(at_y, own_y, h, radius) * taps(at_x, own_x, w, radius)
            weight = tl.where(counts, weight, 0).to(dtype) * share  # NaN if no position is valid
            inside, counts = inside[None, None, :], counts[None, None, :]
            at = at[None, None, :]
            y_i = tl.load(y + (b * D + i - 1) * P + at, mask=inside & (i >= 1) & (i <= D), other=0)
            y_j = tl.load(y + (b * D + j - 1) * P + at, mask=inside & (j >= 1) & (j <= D), other=0)
            # Invalid positions may hold NaN.
            y_i = tl.where(i == 0, 1, tl.where(counts, (y_i - mean_i) * scale_i, 0))
            y_j = tl.where(j == 0, 1, tl.where(counts, (y_j - mean_j) * scale_j, 0))
            products += y_i * y_j * weight[None, None, :]
    s = i * (D + 1) - i * (i - 1) // 2 + j - i
    to = out + (b * ((D + 1) * (D + 2) // 2) + s) * P + p[None, None, :]
    tl.store(to, products, mask=(i <= j) & (j <= D) & (p < P)[None, None, :])


class AppearanceStatisticsKernel(OpKernel, op="appearance_statistics"):
    dtypes = (torch.float32, torch.float64)

    def forward(self, appearance, mask, smooth):
        return _forward(appearance.contiguous(), None if mask is None else mask.contiguous(), smooth)[0]


@planned
def _forward(y, valid, smooth):
    B, D, h, w = y.shape
    P, key = h * w, configs.Key(y.element_size(), D, 0)
    config, block_d = configs.rows("appearance_statistics_sums", key)[0], block(D, 8)
    # A tile has at least one position, whatever the number of channels.
    config = replace(config, blocks={"BLOCK": max(config.blocks["BLOCK"], block_d)})
    tiles = triton.cdiv(P, config.blocks["BLOCK"] // block_d) * B
    each = max(triton.cdiv(tiles, MAX_PARTS.value), 1)
    parts = triton.cdiv(tiles, each)
    partials = y.new_empty(2 * D + 1, parts, dtype=torch.float64)
    shared = {"y": y, "valid": valid, "partials": partials, "P": P}
    constexprs = {"D": D, "ALIGN_P": alignment(P), "BLOCK_D": block_d}
    launch(appearance_statistics_sums, (parts,), shared | {"tiles": tiles, "each": each}, constexprs, config)
    out = y.new_empty(B, (D + 1) * (D + 2) // 2, h, w)
    config = configs.rows("appearance_statistics_products", key)[0]
    blocks = triton.cdiv(D + 1, BLOCK_N.value)
    launch(
        appearance_statistics_products,
        (triton.cdiv(P, config.blocks["BLOCK_P"]) * B * (blocks * (blocks + 1) // 2),),
        shared
        | {"out": out, "parts": parts, "w": w, "radius": smooth}
        | {"reach_y": min(smooth, h - 1), "reach_x": min(smooth, w - 1)},
        {"D": D, "TINY": torch.finfo(y.dtype).tiny},
        config,
    )
    return (out,)
