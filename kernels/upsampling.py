"""Bilinear upsampling of maps of positions to pixels (align_corners=False), as torch.nn.functional.interpolate does."""

import triton
import triton.language as tl


@triton.jit
def source(to, scale, LENGTH, dtype: tl.constexpr):
    """Where pixel `to` lies among LENGTH positions: the position before, the one after, and the share of the latter."""
    at = tl.maximum((to.to(dtype) + 0.5) * tl.cast(scale, dtype) - 0.5, 0.0)
    before = tl.minimum(at.to(tl.int32), LENGTH - 1)
    return before, tl.minimum(before + 1, LENGTH - 1), tl.minimum(at - before.to(dtype), 1.0)


@triton.jit
def sources(i, columns, h, w, scale_y, scale_x, dtype: tl.constexpr):
    """Of the flat pixels i, of `columns` in a row, what `upsampled` takes: the four positions about each in a map
    [h, w], those above first, and the shares of those below and of those on the right. Pixels below the image have
    positions too.
    """
    top, bottom, down = source(i // columns, scale_y, h, dtype)
    left, right, across = source(i % columns, scale_x, w, dtype)
    return top * w + left, top * w + right, bottom * w + left, bottom * w + right, down, across


@triton.jit
def upsampled(plane, at):
    """Of a map [h, w], what it is at the pixels whose `sources` are given."""
    upper_left, upper_right, lower_left, lower_right, down, across = at
    upper = tl.load(plane + upper_left) * (1 - across) + tl.load(plane + upper_right) * across
    lower = tl.load(plane + lower_left) * (1 - across) + tl.load(plane + lower_right) * across
    return upper * (1 - down) + lower * down
