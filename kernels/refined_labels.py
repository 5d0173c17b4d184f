"""`refined_labels`: the class of each pixel by Bayes' rule, one byte a pixel.

A program owns a run of pixels of an image and loops over the classes. The channels of its pixels
and of their surroundings, upsampled, stay in registers. The prior is upsampled and the residuals
are computed class by class, so no map of K values per pixel is in memory. Every program reads the
matrices of all classes, K (2 c^2 + c + 1) numbers, which stay in the L1 cache.

The arithmetic is the limit: c (2 c + 1) multiply-adds per pixel and class, without tensor cores. As
one product [K, (c + 1) (2 c + 1)] with the products of each pixel's (y, s, 1) it could use tensor
cores, but that squares the condition number: |R u|^2 from u u^T cancels, and tf32x3 has too few
bits for it.
"""

import torch
import triton
import triton.language as tl

from ..reference.refined_labels import FLOOR as MIN_PRIOR
from . import configs
from .launch import Cost, Launch, OpKernel, kernel, launch, num_bytes
from .plans import planned
from .tiles import alignment, divided
from .upsampling import sources, upsampled

FLOOR: tl.constexpr = tl.constexpr(MIN_PRIOR)


def pixel_cost(started: Launch, passes: int, output: str) -> Cost:
    """The cost of a launch that loops over the classes `passes` times and writes the argument
    `output`.
    """
    a = started.arguments
    colour = a["colour"]
    maps = passes * a["K"] + started.constexprs["C"]
    matrices = a["residual"].numel() + a["log_scale"].numel()
    small = a["prior"].numel() + a["around"].numel() + matrices
    # The pixels of the last tile beyond the image are interpolated too, from positions within the
    # maps.
    per_program = 4 * maps * started.constexprs["BLOCK"] + passes * matrices
    itemsize = colour.element_size()
    return Cost(
        loads=(colour.numel() + started.programs * per_program) * itemsize,
        stores=num_bytes(a[output]),
        distinct_loads=(colour.numel() + small) * itemsize,
    )


@triton.jit
def score_of(prior, row, log_scale, seen, at, C: tl.constexpr):
    """log prior + log p(y | s, k) of the pixels `at`, for the class with this prior [h, w] and
    matrix [C, 2 C + 1].

    seen: a tuple of the C channels of y, then of s.
    """
    dtype: tl.constexpr = seen[0].dtype
    squares = tl.zeros(seen[0].shape, dtype)
    for _ in range(C):
        left = tl.zeros(seen[0].shape, dtype) + tl.load(row + 2 * C)
        for n in tl.static_range(2 * C):
            left += seen[n] * tl.load(row + n)
        row += 2 * C + 1
        squares += left * left
    return tl.log(tl.maximum(upsampled(prior, at), FLOOR)) + tl.load(log_scale) - squares * 0.5


@kernel(cost=lambda started: pixel_cost(started, 1, "labels"))
def refined_labels(
    prior,  # [B, K, h, w]
    colour,  # [B, C, rows, columns]
    around,  # [B, C, h, w]
    residual,  # [K, C, 2 C + 1]
    log_scale,  # [K]
    labels,  # [B, rows, columns] uint8
    K: tl.int32, h: tl.int32, w: tl.int32, rows: tl.int32, columns: tl.int32,
    scale_y: tl.float64,  # h / rows
    scale_x: tl.float64, C: tl.constexpr,
    ALIGN: tl.constexpr,  # divisor of rows * columns
    BLOCK: tl.constexpr,
):  # fmt: skip
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
        score = score_of(image, row, log_scale + k, seen, at, C)
        # The lowest of equal classes. NaN never wins.
        better = score > best
        best = tl.where(better, score, best)
        label = tl.where(better, k, label)
        image += h * w
        row += C * (2 * C + 1)
    tl.store(labels + b * pixels + i, label.to(tl.uint8), mask=inside)


class RefinedLabelsKernel(OpKernel, op="refined_labels"):
    dtypes = (torch.float32, torch.float64)

    def forward(self, prior, colour, around, residual, log_scale):
        return _forward(*(x.contiguous() for x in (prior, colour, around, residual, log_scale)))[0]


@planned
def _forward(prior, colour, around, residual, log_scale):
    B, C, rows, columns = colour.shape
    K, h, w = prior.shape[1:]
    labels = prior.new_empty(B, rows, columns, dtype=torch.uint8)
    config = configs.rows("refined_labels", configs.Key(prior.element_size(), C, K))[0]
    launch(
        refined_labels,
        (triton.cdiv(rows * columns, config.blocks["BLOCK"]) * B,),
        {"prior": prior, "colour": colour, "around": around, "residual": residual, "log_scale": log_scale}
        | {"labels": labels, "K": K, "h": h, "w": w, "rows": rows, "columns": columns}
        | {"scale_y": h / rows, "scale_x": w / columns},
        {"C": C, "ALIGN": alignment(rows * columns)},
        config,
    )
    return (labels,)
