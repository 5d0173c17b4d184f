"""`local_appearance`: log channel means, roughness and coherence of every cell of pixels.

`local_appearance_cells` reads the images from DRAM once, one row of pixels of a tile of cells after
the other. It writes the channel means and the means of the structure tensor over each cell. The
brightness differences need the pixel on the right and the row below, which the L1 or L2 cache
serves. `local_appearance_texture` averages the structure tensor over 3 x 3 cells.
"""

import math

import torch
import triton
import triton.language as tl

from ..reference.local_appearance import DARK as DARK_INTENSITY
from ..reference.local_appearance import FACTORS as MAX_FACTORS
from ..reference.local_appearance import FLAT as FLAT_TRACE
from . import configs
from .launch import Cost, Launch, OpKernel, kernel, launch, num_bytes
from .plans import planned
from .tiles import WIDEST, divided, strides

DARK: tl.constexpr = tl.constexpr(DARK_INTENSITY)
FLAT: tl.constexpr = tl.constexpr(FLAT_TRACE)
FACTORS: tl.constexpr = tl.constexpr(MAX_FACTORS)
MAX_COLUMNS = 32  # columns of pixels of a cell that a program reads at once


def _cells_cost(started: Launch) -> Cost:
    a = started.arguments
    images, out, tensor = a["images"], a["out"], a["tensor"]
    B, C, H, W = images.shape
    rows = H + a["P"] // a["w"] - 1  # each row of cells but the last reads the row below it too
    means = out.numel() // out.shape[1] * C
    return Cost(
        loads=B * C * rows * (2 * W - 1) * images.element_size(),
        stores=means * out.element_size() + num_bytes(tensor),
        distinct_loads=num_bytes(images),
    )


@kernel(wide_loads=True, cost=_cells_cost)
def local_appearance_cells(
    images,  # [B, C, H, W], any strides
    out,  # [B, C + 2, P]; the first C are written
    tensor,  # [B, 3, P]: trace, difference of the diagonal, twice the off-diagonal element
    P: tl.int32, w: tl.int32, H: tl.int32, W: tl.int32, stride_b: tl.int64, stride_c: tl.int64, stride_y: tl.int64,
    stride_x: tl.int64, C: tl.constexpr, CELL_H: tl.constexpr, CELL_W: tl.constexpr,
    ROWS: tl.constexpr,  # the pixels of a row are adjacent in memory
    ALIGN: tl.constexpr,  # divisor of the offset of a cell in memory
    BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    BLOCK_P: tl.constexpr = BLOCK // BLOCK_X
    tiles = tl.cdiv(P, BLOCK_P)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    top = p // w * CELL_H
    left = p % w * CELL_W
    channel = tl.arange(0, BLOCK_C)
    image = images + b * divided(stride_b, ALIGN)
    colour = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    trace = tl.zeros((BLOCK_P, BLOCK_X), tl.float32)
    difference = tl.zeros((BLOCK_P, BLOCK_X), tl.float32)
    twice_uv = tl.zeros((BLOCK_P, BLOCK_X), tl.float32)
    for start in range(0, CELL_W, BLOCK_X):
        dx = start + tl.arange(0, BLOCK_X)
        x = left[:, None] + dx[None, :]
        within = (p < P)[:, None] & (dx < CELL_W)[None, :]
        columns = x if ROWS else x.to(tl.int64) * stride_x
        next_column = 1 if ROWS else stride_x
        above = tl.zeros((BLOCK_P, BLOCK_X), tl.float32)
        above_right = tl.zeros((BLOCK_P, BLOCK_X), tl.float32)
        for dy in range(CELL_H + 1):
            y = top + dy
            inside = within & (y < H)[:, None]
            step = inside & (x + 1 < W)
            row = image + y.to(tl.int64)[:, None] * divided(stride_y, ALIGN) + columns
            # The mean of the channels' logarithms is the logarithm of their product, divided by C.
            # A product of more than FACTORS channels could underflow.
            bright = tl.full((BLOCK_P, BLOCK_X), 1.0, tl.float32)
            right = tl.full((BLOCK_P, BLOCK_X), 1.0, tl.float32)
            bright_logs = tl.zeros((BLOCK_P, BLOCK_X), tl.float32)
            right_logs = tl.zeros((BLOCK_P, BLOCK_X), tl.float32)
            for i in tl.static_range(C):
                plane = row + i * divided(stride_c, ALIGN)
                value = tl.load(plane, mask=inside, other=0.0)
                own = tl.sum(value, axis=1)[None, :]
                colour += tl.where((channel == i)[:, None] & (dy < CELL_H), own, 0.0)
                bright *= value + DARK
                right *= tl.load(plane + next_column, mask=step, other=0.0) + DARK
                if (FACTORS + i + 1) % FACTORS == 0 and i + 1 < C:
                    bright_logs += tl.log(bright)
                    right_logs += tl.log(right)
                    bright = tl.full((BLOCK_P, BLOCK_X), 1.0, tl.float32)
                    right = tl.full((BLOCK_P, BLOCK_X), 1.0, tl.float32)
            bright = (bright_logs + tl.log(bright)) / C
            right = (right_logs + tl.log(right)) / C
            u = right - above
            v = above_right - bright
            both = step & (dy > 0)
            trace += tl.where(both, u * u + v * v, 0.0)
            difference += tl.where(both, u * u - v * v, 0.0)
            twice_uv += tl.where(both, 2 * u * v, 0.0)
            above = bright
            above_right = right

    share = 1.0 / (CELL_H * CELL_W)
    to = out + (b * (C + 2) + channel)[:, None] * P + p[None, :]
    tl.store(to, tl.log(colour * share + DARK), mask=(channel < C)[:, None] & (p < P)[None, :])
    means = tensor + b * 3 * P + p
    tl.store(means, tl.sum(trace, axis=1) * share, mask=p < P)
    tl.store(means + P, tl.sum(difference, axis=1) * share, mask=p < P)
    tl.store(means + 2 * P, tl.sum(twice_uv, axis=1) * share, mask=p < P)


def _texture_cost(started: Launch) -> Cost:
    read = num_bytes(started.arguments["tensor"])
    return Cost(loads=9 * read, stores=read // 3 * 2, distinct_loads=read)


@triton.jit
def mean_of_nine(plane, y, x, h, w, inside):
    """Mean over 3 x 3 positions of a plane [h, w]. Border positions are repeated."""
    total = tl.zeros(y.shape, tl.float32)
    for dy in tl.static_range(-1, 2):
        row = plane + tl.minimum(tl.maximum(y + dy, 0), h - 1) * w
        for dx in tl.static_range(-1, 2):
            total += tl.load(row + tl.minimum(tl.maximum(x + dx, 0), w - 1), mask=inside, other=0.0)
    return total / 9


@kernel(cost=_texture_cost)
def local_appearance_texture(
    tensor,  # [B, 3, P] of `local_appearance_cells`
    out,  # [B, C + 2, P]; the last two are written
    P: tl.int32,
    h: tl.int32,
    w: tl.int32,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(P, BLOCK)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = p < P
    y, x = p // w, p % w
    image = tensor + b * 3 * P
    trace = mean_of_nine(image, y, x, h, w, inside)
    difference = mean_of_nine(image + P, y, x, h, w, inside)
    twice_uv = mean_of_nine(image + 2 * P, y, x, h, w, inside)
    to = out + (b * (C + 2) + C) * P + p
    tl.store(to, tl.log(trace + FLAT), mask=inside)
    tl.store(to + P, tl.sqrt(difference * difference + twice_uv * twice_uv) / (trace + FLAT), mask=inside)


class LocalAppearanceKernel(OpKernel, op="local_appearance"):
    dtypes = (torch.float32,)

    def forward(self, images, size):
        return _forward(images, tuple(size))[0]


@planned
def _forward(images, size):
    B, C, H, W = images.shape
    h, w = size
    P, cell_w = h * w, W // w
    out, tensor = images.new_empty(B, C + 2, h, w), images.new_empty(B, 3, h, w)
    key = configs.Key(images.element_size(), C, 0)
    config = configs.rows("local_appearance_cells", key)[0]
    block_x = min(triton.next_power_of_2(cell_w), MAX_COLUMNS)
    rows = images.stride(3) == 1
    align = math.gcd(*images.stride()[:3], cell_w, WIDEST) if rows else 1
    launch(
        local_appearance_cells,
        (triton.cdiv(P, config.blocks["BLOCK"] // block_x) * B,),
        {"images": images, "out": out, "tensor": tensor, "P": P, "w": w, "H": H, "W": W, **strides(images)},
        {"C": C, "CELL_H": H // h, "CELL_W": cell_w, "ROWS": rows, "ALIGN": align}
        | {"BLOCK_C": triton.next_power_of_2(C), "BLOCK_X": block_x},
        config,
    )
    config = configs.rows("local_appearance_texture", key)[0]
    launch(
        local_appearance_texture,
        (triton.cdiv(P, config.blocks["BLOCK"]) * B,),
        {"tensor": tensor, "out": out, "P": P, "h": h, "w": w},
        {"C": C},
        config,
    )
    return (out,)
