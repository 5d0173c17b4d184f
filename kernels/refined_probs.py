"""`refined_probs`: the class probabilities of the pixels by Bayes' rule, averaged over each position.

A program owns the pixels of some positions. It loops over the classes twice, for the softmax and
for its means: K scores of each pixel would not fit the registers. The scores are those of
`refined_labels`.
"""

import torch
import triton
import triton.language as tl

from . import configs
from .launch import OpKernel, kernel, launch
from .refined_labels import pixel_arguments, pixel_cost, score_of
from .upsampling import sources, upsampled


@kernel(cost=lambda started: pixel_cost(started, 2, "probs"))
def refined_probs(
    prior,  # [B, K, h, w]
    colour,  # [B, C, h * high, w * wide]
    around,  # [B, C, h, w]
    residual,  # [K, C, 2 C + 1]
    log_scale,  # [K]
    probs,  # [B, K, h, w]
    K: tl.int32, h: tl.int32, w: tl.int32,
    high: tl.int32,  # rows and columns of pixels of a position
    wide: tl.int32, C: tl.constexpr,
    EACH: tl.constexpr,  # power of two >= high * wide
    BLOCK: tl.constexpr,  # pixels of BLOCK // EACH positions
):  # fmt: skip
    POSITIONS: tl.constexpr = BLOCK // EACH
    tiles = tl.cdiv(h * w, POSITIONS)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * POSITIONS
    # Adjacent threads have the pixels of a position, so two positions share the 32-byte sectors of
    # a row of 4 pixels.
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
        mean = tl.exp(score_of(image, row, log_scale + k, seen, at, C) - top) * share
        mean = tl.sum(tl.reshape(mean, (POSITIONS, EACH)), axis=1)
        tl.store(out + position, mean, mask=position < h * w)
        image += h * w
        out += h * w
        row += C * (2 * C + 1)


class RefinedProbsKernel(OpKernel, op="refined_probs"):
    dtypes = (torch.float32, torch.float64)

    def forward(self, prior, colour, around, residual, log_scale):
        B, C, rows, columns = colour.shape
        K, h, w = prior.shape[1:]
        high, wide = rows // h, columns // w
        probs = torch.empty_like(prior, memory_format=torch.contiguous_format)
        config = configs.rows("refined_probs", configs.Key(prior.element_size(), C, K))[0]
        each = triton.next_power_of_2(high * wide)
        launch(
            refined_probs,
            (triton.cdiv(h * w, config.blocks["BLOCK"] // each) * B,),
            pixel_arguments(prior, colour, around, residual, log_scale) | {"probs": probs, "high": high, "wide": wide},
            {"C": C, "EACH": each},
            config,
        )
        return probs
