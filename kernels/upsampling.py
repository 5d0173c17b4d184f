"""Bilinear upsampling of maps of positions to pixels (align_corners=False), as
torch.nn.functional.interpolate does.
"""

import triton
import triton.language as tl


@triton.jit
def source(to, scale, LENGTH, dtype: tl.constexpr):
    """The positions before and after pixel `to` in a row of LENGTH positions, and the weight of the
    one after.
    """
    at = tl.maximum((to.to(dtype) + 0.5) * tl.cast(scale, dtype) - 0.5, 0.0)
    before = tl.minimum(at.to(tl.int32), LENGTH - 1)
    return before, tl.minimum(before + 1, LENGTH - 1), tl.minimum(at - before.to(dtype), 1.0)


@triton.jit
def sources(i, columns, h, w, scale_y, scale_x, dtype: tl.constexpr):
    """The arguments of `upsampled` for the flat pixels i of an image with `columns` columns and maps
    [h, w].

    These are the four positions around each pixel (upper left, upper right, lower left, lower
    right) and the weights of the lower and the right ones. Pixels below the image have positions
    too.
    """
    top, bottom, down = source(i // columns, scale_y, h, dtype)
    left, right, across = source(i % columns, scale_x, w, dtype)
    return top * w + left, top * w + right, bottom * w + left, bottom * w + right, down, across


@triton.jit
def upsampled(plane, at):
    """Values of a map [h, w] at the pixels whose `sources` are given."""
    upper_left, upper_right, lower_left, lower_right, down, across = at
    upper = tl.load(plane + upper_left) * (1 - across) + tl.load(plane + upper_right) * across
    lower = tl.load(plane + lower_left) * (1 - across) + tl.load(plane + lower_right) * across
    return upper * (1 - down) + lower * down
