"""`local_appearance`: the logarithms of the channels' means, the roughness and the coherence of every cell of pixels.

`appearance_cells` reads the images once from DRAM, a row of pixels of a tile of cells after the other, and leaves the
colour and the means of the structure tensor over each cell; `appearance_texture` averages those over 3 x 3 cells. A
step of the brightness reaches to the pixel on the right and to the row below: those loads are in the L1 or L2 cache.
"""

import math

import torch
import triton
import triton.language as tl

from ..reference.local_appearance import DARK as DARK_INTENSITY
from ..reference.local_appearance import FLAT as FLAT_TRACE
from . import configs
from .launch import Cost, Launch, kernel, launch
from .tiles import WIDEST, divided, strides

DARK: tl.constexpr = tl.constexpr(DARK_INTENSITY)
FLAT: tl.constexpr = tl.constexpr(FLAT_TRACE)
MOST_COLUMNS = 32  # of pixels of a cell at once


def _cells_cost(started: Launch) -> Cost:
    a = started.arguments
    images, out, tensor = a["images"], a["out"], a["tensor"]
    B, C, H, W = images.shape
    rows = H + a["P"] // a["w"] - 1  # the row below a row of cells is read with it, but for the last
    means = out.numel() // out.shape[1] * C
    return Cost(
        loads=B * C * rows * (2 * W - 1) * images.element_size(),
        stores=means * out.element_size() + tensor.numel() * tensor.element_size(),
        distinct_loads=images.numel() * images.element_size(),
    )


@kernel(products=False, wide_loads=True, cost=_cells_cost)
def appearance_cells(
    images,  # [B, C, H, W], any strides
    out,  # [B, C + 2, P], of which this writes the first C
    tensor,  # [B, 3, P]: trace, difference of the diagonal, twice the rest
    P: tl.int32,
    w: tl.int32,
    H: tl.int32,
    W: tl.int32,
    stride_b: tl.int64,
    stride_c: tl.int64,
    stride_y: tl.int64,
    stride_x: tl.int64,
    C: tl.constexpr,
    CELL_H: tl.constexpr,
    CELL_W: tl.constexpr,
    ROWS: tl.constexpr,  # pixels of a row are neighbours in memory
    ALIGN: tl.constexpr,  # what the place of a cell in memory divides by
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
            # The mean of the channels' logarithms is that of their product.
            bright = tl.full((BLOCK_P, BLOCK_X), 1.0, tl.float32)
            right = tl.full((BLOCK_P, BLOCK_X), 1.0, tl.float32)
            for i in tl.static_range(C):
                plane = row + i * divided(stride_c, ALIGN)
                value = tl.load(plane, mask=inside, other=0.0)
                own = tl.sum(value, axis=1)[None, :]
                colour += tl.where((channel == i)[:, None] & (dy < CELL_H), own, 0.0)
                bright *= value + DARK
                right *= tl.load(plane + next_column, mask=step, other=0.0) + DARK
            bright = tl.log(bright) / C
            right = tl.log(right) / C
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
    tensor = started.arguments["tensor"]
    read = tensor.numel() * tensor.element_size()
    return Cost(loads=9 * read, stores=read // 3 * 2, distinct_loads=read)


@triton.jit
def mean_of_nine(plane, y, x, h, w, inside):
    """Of 3 x 3 positions of a plane [h, w]; beyond the border the last ones are repeated."""
    total = tl.zeros(y.shape, tl.float32)
    for dy in tl.static_range(-1, 2):
        row = plane + tl.minimum(tl.maximum(y + dy, 0), h - 1) * w
        for dx in tl.static_range(-1, 2):
            total += tl.load(row + tl.minimum(tl.maximum(x + dx, 0), w - 1), mask=inside, other=0.0)
    return total / 9


@kernel(products=False, wide_loads=False, cost=_texture_cost)
def appearance_texture(
    tensor,  # [B, 3, P], of `appearance_cells`
    out,  # [B, C + 2, P], of which this writes the last two
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


class LocalAppearanceKernel:
    """The kernel of `local_appearance`."""

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        from . import unsupported

        return unsupported(device_type, dtype, (torch.float32,))

    def forward(self, images, size):
        B, C, H, W = images.shape
        h, w = size
        P, cell_w = h * w, W // w
        out, tensor = images.new_empty(B, C + 2, h, w), images.new_empty(B, 3, h, w)
        key = configs.Key(images.element_size(), C, 0)
        config = configs.rows("appearance_cells", key)[0]
        block_x = min(triton.next_power_of_2(cell_w), MOST_COLUMNS)
        rows = images.stride(3) == 1
        launch(
            appearance_cells,
            (triton.cdiv(P, config.blocks["BLOCK"] // block_x) * B,),
            {"images": images, "out": out, "tensor": tensor, "P": P, "w": w, "H": H, "W": W, **strides(images)},
            {
                "C": C,
                "CELL_H": H // h,
                "CELL_W": cell_w,
                "ROWS": rows,
                "ALIGN": math.gcd(*images.stride()[:3], cell_w, WIDEST) if rows else 1,
                "BLOCK_C": triton.next_power_of_2(C),
                "BLOCK_X": block_x,
            },
            config,
        )
        config = configs.rows("appearance_texture", key)[0]
        launch(
            appearance_texture,
            (triton.cdiv(P, config.blocks["BLOCK"]) * B,),
            {"tensor": tensor, "out": out, "P": P, "h": h, "w": w},
            {"C": C},
            config,
        )
        return out
