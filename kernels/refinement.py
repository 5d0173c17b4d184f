"""`refined_labels`: which class each pixel's colour speaks for, one byte a pixel; and `refined_probs`: what the pixels
of every position tell of it, K numbers a position (see `infoseg_fast.ops.refined_labels`).

A program has a run of pixels of an image and goes over the classes. The colours of its pixels and their surroundings,
upsampled, stay in registers; of a class the prior is upsampled and the residuals are formed where they are needed, so
nothing of the size of K maps of pixels is in memory. For `refined_probs` it goes over the classes twice, for the
softmax and for its sums: K scores of each pixel would take more registers than there are. The matrices of the classes
are read by every program: K (2 c^2 + c + 1) numbers, which stay in the L1 cache.

The arithmetic binds, not the bytes: c (2 c + 1) multiply-adds for every pixel and class, outside of the tensor cores.
The same numbers as a product [K, (c + 1) (2 c + 1)] with the products of each pixel's (y, s, 1) would be one for the
tensor cores, but squares the condition: |R u|^2 from u u^T cancels, and tf32x3 holds too few bits for it.
"""

import torch
import triton
import triton.language as tl

from ..reference.refined_labels import FLOOR as LEAST_PRIOR
from . import configs
from .launch import Cost, Launch, kernel, launch
from .tiles import alignment, divided
from .upsampling import sources, upsampled

FLOOR: tl.constexpr = tl.constexpr(LEAST_PRIOR)


def _cost(started: Launch, times: int, stored: str) -> Cost:
    """times: how often the classes are gone over."""
    a = started.arguments
    colour, out = a["colour"], a[stored]
    maps = times * a["K"] + started.constexprs["C"]
    matrices = a["residual"].numel() + a["log_scale"].numel()
    small = a["prior"].numel() + a["around"].numel() + matrices
    # The last tile's pixels beyond the image interpolate too: their positions are within the maps.
    of_program = 4 * maps * started.constexprs["BLOCK"] + times * matrices
    itemsize = colour.element_size()
    return Cost(
        loads=(colour.numel() + started.programs * of_program) * itemsize,
        stores=out.numel() * out.element_size(),
        distinct_loads=(colour.numel() + small) * itemsize,
    )


@triton.jit
def score_of(prior, row, log_scale, seen, at, C: tl.constexpr):
    """log prior + log p(y | s, k) of the pixels `at`, for the class of this prior [h, w] and this matrix [C, 2 C + 1].

    seen: y, then s, of C colours.
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


@kernel(products=False, wide_loads=False, cost=lambda started: _cost(started, 1, "labels"))
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
        score = score_of(image, row, log_scale + k, seen, at, C)
        # Of equal classes the lowest; a NaN never wins.
        better = score > best
        best = tl.where(better, score, best)
        label = tl.where(better, k, label)
        image += h * w
        row += C * (2 * C + 1)
    tl.store(labels + b * pixels + i, label.to(tl.uint8), mask=inside)


@kernel(products=False, wide_loads=False, cost=lambda started: _cost(started, 2, "probs"))
def refined_probs(
    prior,  # [B, K, h, w]
    colour,  # [B, C, h * high, w * wide]
    around,  # [B, C, h, w]
    residual,  # [K, C, 2 C + 1]
    log_scale,  # [K]
    probs,  # [B, K, h, w]
    K: tl.int32,
    h: tl.int32,
    w: tl.int32,
    high: tl.int32,  # pixels of a position
    wide: tl.int32,
    C: tl.constexpr,
    EACH: tl.constexpr,  # at least high * wide, a power of 2
    BLOCK: tl.constexpr,  # pixels, of BLOCK // EACH positions
):
    POSITIONS: tl.constexpr = BLOCK // EACH
    tiles = tl.cdiv(h * w, POSITIONS)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * POSITIONS
    # The pixels of a position are neighbours in a program: two positions share whole sectors of a row of 4 pixels.
    n = tl.arange(0, BLOCK)
    p, j = first + n // EACH, n % EACH
    inside = (p < h * w) & (j < high * wide)
    i = (p // w * high + j // wide) * (w * wide) + p % w * wide + j % wide
    dtype: tl.constexpr = prior.dtype.element_ty
    one = tl.full((), 1.0, dtype)
    at = sources(i, w * wide, h, w, one / high, one / wide, dtype)
    pixels = h * w * high * wide
    seen = ()  # y and s
    for c in tl.static_range(C):
        seen += (tl.load(colour + (b * C + c) * pixels + i, mask=inside, other=0.0),)
    for c in tl.static_range(C):
        seen += (upsampled(around + (b * C + c) * (h * w), at),)

    image = prior + b * K * (h * w)
    row = residual
    top = tl.full((BLOCK,), float("-inf"), dtype)
    total = tl.zeros((BLOCK,), dtype)
    for k in range(K):
        score = score_of(image, row, log_scale + k, seen, at, C)
        higher = tl.maximum(top, score)
        total = total * tl.exp(top - higher) + tl.exp(score - higher)
        top = higher
        image += h * w
        row += C * (2 * C + 1)

    share = tl.where(inside, 1 / (total * (high * wide)), 0.0)
    position = first + tl.arange(0, POSITIONS)
    image = prior + b * K * (h * w)
    out = probs + b * K * (h * w)
    row = residual
    for k in range(K):
        told = tl.exp(score_of(image, row, log_scale + k, seen, at, C) - top) * share
        told = tl.sum(tl.reshape(told, (POSITIONS, EACH)), axis=1)
        tl.store(out + position, told, mask=position < h * w)
        image += h * w
        out += h * w
        row += C * (2 * C + 1)


class _RefinementKernel:
    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        from . import unsupported

        return unsupported(device_type, dtype, (torch.float32, torch.float64))


class RefinedLabelsKernel(_RefinementKernel):
    """The kernel of `refined_labels`."""

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


class RefinedProbsKernel(_RefinementKernel):
    """The kernel of `refined_probs`."""

    def forward(self, prior, colour, around, residual, log_scale):
        B, C, rows, columns = colour.shape
        K, h, w = prior.shape[1:]
        probs = torch.empty_like(prior, memory_format=torch.contiguous_format)
        config = configs.rows("refined_probs", configs.Key(prior.element_size(), C, K))[0]
        each = triton.next_power_of_2(rows // h * (columns // w))
        launch(
            refined_probs,
            (triton.cdiv(h * w, config.blocks["BLOCK"] // each) * B,),
            {
                "prior": prior.contiguous(),
                "colour": colour.contiguous(),
                "around": around.contiguous(),
                "residual": residual.contiguous(),
                "log_scale": log_scale.contiguous(),
                "probs": probs,
                "K": K,
                "h": h,
                "w": w,
                "high": rows // h,
                "wide": columns // w,
            },
            {"C": C, "EACH": each},
            config,
        )
        return probs
