"""`refined_labels`: which class each pixel's colour speaks for, one byte a pixel (see `infoseg_fast.refinement`).

A program has a run of pixels of an image and goes over the classes. The colours of its pixels and their surroundings,
upsampled, stay in registers; of a class the prior is upsampled and the residuals are formed where they are needed, so
nothing of the size of K maps of pixels is in memory. The matrices of the classes are read by every program: K (2 c^2 +
c + 1) numbers, which stay in the L1 cache.

The arithmetic binds, not the bytes: c (2 c + 1) multiply-adds for every pixel and class, outside of the tensor cores.
The same numbers as a product [K, (c + 1) (2 c + 1)] with the products of each pixel's (y, s, 1) would be one for the
tensor cores, but squares the condition: |R u|^2 from u u^T cancels, and tf32x3 holds too few bits for it.
"""

import torch
import triton
import triton.language as tl

from ..reference import refinement as reference
from . import configs
from .launch import Cost, Launch, kernel, launch
from .tiles import alignment, divided
from .upsampling import sources, upsampled

FLOOR: tl.constexpr = tl.constexpr(reference.FLOOR)


def _cost(started: Launch) -> Cost:
    a = started.arguments
    colour, labels = a["colour"], a["labels"]
    maps = a["K"] + started.constexprs["C"]
    matrices = a["residual"].numel() + a["log_scale"].numel()
    small = a["prior"].numel() + a["around"].numel() + matrices
    # The last tile's pixels beyond the image interpolate too: their positions are within the maps.
    of_program = 4 * maps * started.constexprs["BLOCK"] + matrices
    itemsize = colour.element_size()
    return Cost(
        loads=(colour.numel() + started.programs * of_program) * itemsize,
        stores=labels.numel(),
        distinct_loads=(colour.numel() + small) * itemsize,
    )


@kernel(products=False, wide_loads=False, cost=_cost)
def refined_labels(
    prior,  # [B, K, h, w]
    colour,  # [B, C, rows, columns]
    around,  # [B, C, h, w]
    residual,  # [K, C, 2 C + 1]
    log_scale,  # [K]
    labels,  # [B, rows, columns] uint8
    K: tl.int32,
    h: tl.int32,
    w: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
    scale_y: tl.float64,  # h / rows
    scale_x: tl.float64,
    C: tl.constexpr,
    ALIGN: tl.constexpr,  # what rows * columns divides by
    BLOCK: tl.constexpr,
):
    pixels = divided(rows * columns, ALIGN)
    tiles = tl.cdiv(pixels, BLOCK)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = i < pixels
    dtype: tl.constexpr = prior.dtype.element_ty
    at = sources(i, columns, h, w, scale_y, scale_x, dtype)
    seen = ()  # y and s
    for j in tl.static_range(C):
        seen += (tl.load(colour + (b * C + j) * pixels + i, mask=inside, other=0.0),)
    for j in tl.static_range(C):
        seen += (upsampled(around + (b * C + j) * (h * w), at),)

    image = prior + b * K * (h * w)
    row = residual
    best = tl.full((BLOCK,), float("-inf"), dtype)
    label = tl.zeros((BLOCK,), tl.int32)
    for k in range(K):
        squares = tl.zeros((BLOCK,), dtype)
        for _ in range(C):
            left = tl.zeros((BLOCK,), dtype) + tl.load(row + 2 * C)
            for n in tl.static_range(2 * C):
                left += seen[n] * tl.load(row + n)
            row += 2 * C + 1
            squares += left * left
        score = tl.log(tl.maximum(upsampled(image, at), FLOOR)) + tl.load(log_scale + k) - squares * 0.5
        # Of equal classes the lowest; a NaN never wins.
        better = score > best
        best = tl.where(better, score, best)
        label = tl.where(better, k, label)
        image += h * w
    tl.store(labels + b * pixels + i, label.to(tl.uint8), mask=inside)


class RefinedLabelsKernel:
    """The kernel as `infoseg_fast.refinement` calls it."""

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        from . import unsupported

        return unsupported(device_type, dtype, (torch.float32, torch.float64))

    def forward(self, prior, colour, around, residual, log_scale):
        B, C, rows, columns = colour.shape
        K, h, w = prior.shape[1:]
        labels = prior.new_empty(B, rows, columns, dtype=torch.uint8)
        config = configs.rows("refined_labels", configs.Key(prior.element_size(), C, K))[0]
        launch(
            refined_labels,
            (triton.cdiv(rows * columns, config.blocks["BLOCK"]) * B,),
            {
                "prior": prior.contiguous(),
                "colour": colour.contiguous(),
                "around": around.contiguous(),
                "residual": residual.contiguous(),
                "log_scale": log_scale.contiguous(),
                "labels": labels,
                "K": K,
                "h": h,
                "w": w,
                "rows": rows,
                "columns": columns,
                "scale_y": h / rows,
                "scale_x": w / columns,
            },
            {"C": C, "ALIGN": alignment(rows * columns)},
            config,
        )
        return labels
