"""Functions that the kernels share: addresses of feature tiles, matrix products, and the layout of
a map on the host.

A feature map [B, C, h, w] is read in tiles [BLOCK_C, BLOCK_P] of channels and flat positions p = y
* w + x. LAYOUT:

- "positions": neighbouring positions are adjacent in memory (contiguous);
- "channels": neighbouring channels are adjacent (channels-last), and positions have one pitch;
- "strided": anything else, with a division per position.
"""

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import product_operations

# Triton's interpreter would multiply the bit patterns of bfloat16.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
WIDEST = 16  # elements: the largest divisor that a kernel is compiled for
BLOCK_S: tl.constexpr = tl.constexpr(16)  # statistics in a product, the minimum of tl.dot


@triton.jit
def divided(x, DIVISOR: tl.constexpr):
    """x, a multiple of DIVISOR, in a form from which the compiler derives this; wide loads depend
    on it.
    """
    return x // DIVISOR * DIVISOR


@triton.jit
def feature_offsets(
    c, p, stride_c, stride_y, stride_x, w, LAYOUT: tl.constexpr, ALIGN: tl.constexpr
):  # c: [BLOCK_C], p: [BLOCK_P] -> [BLOCK_C, BLOCK_P] int64
    c = c.to(tl.int64)[:, None]
    p = p[None, :]
    if LAYOUT == "positions":
        return c * divided(stride_c, ALIGN) + p
    elif LAYOUT == "channels":
        return c + p.to(tl.int64) * divided(stride_x, ALIGN)
    else:
        return c * stride_c + (p // w).to(tl.int64) * stride_y + (p % w).to(tl.int64) * stride_x


@triton.jit
def operand(x, features, G):
    """x in the dtype of the products: bfloat16 for bfloat16 features, else the accumulation dtype.

    The coefficients and global features may exceed the range of float16, and float16 features are
    exact in tf32.
    """
    if features.dtype.element_ty == tl.bfloat16:
        return x.to(tl.bfloat16)
    else:
        return x.to(G.dtype.element_ty)


@triton.jit
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a b. a: [M, N], b: [N, L], accumulator: [M, L] float32 or float64."""
    if INTERPRETED:
        a = a.to(accumulator.dtype)
        b = b.to(accumulator.dtype)
    return tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=accumulator.dtype)


@triton.jit
def moment_product(a, b, accumulator):
    """accumulator + a b of class moments, always in the highest precision: these products are few."""
    if accumulator.dtype == tl.float64:
        return product(a, b, accumulator, "ieee")
    else:
        return product(a, b, accumulator, "tf32x3")


def moment_product_operations(m: int, n: int, k: int, itemsize: int) -> int:
    """Operations of one `moment_product` [m, k] [k, n] of elements of `itemsize` bytes."""
    return product_operations(m, n, k, "ieee" if itemsize == 8 else "tf32x3")


def over_channels(c: dict[str, object]) -> tuple[int, int]:
    """`Kernel.feature_loop` of a loop over the channels of a tile of positions."""
    return c["BLOCK_C"] * c["BLOCK_P"], triton.cdiv(c["C"], c["BLOCK_C"])


def over_positions(c: dict[str, object]) -> tuple[int, int]:
    """`Kernel.feature_loop` of a loop over many tiles of positions for one chunk of channels."""
    return c.get("BLOCK_D", c["BLOCK_C"]) * c["BLOCK_P"], 1 << 30


def precision(dtype: torch.dtype) -> str:
    """PRECISION of products with features of `dtype` (see `operand`).

    For float32 it follows torch.get_float32_matmul_precision(). "highest" is "tf32x3": three tf32
    products of the operands' upper and lower halves, which keep about 22 of 24 bits. "high" and
    "medium" are one tf32 product.
    """
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "tf32x3"
    return "tf32" if dtype in (torch.float32, torch.float16) else "ieee"


def layout(x: Tensor) -> tuple[str, int]:
    """LAYOUT of a [B, C, h, w] map, and the power of two that divides its strides and the length of
    its runs.
    """
    _, C, h, w = x.shape
    stride_b, stride_c, stride_y, stride_x = x.stride()
    one_pitch = h <= 1 or stride_y == w * stride_x
    if one_pitch and (stride_x == 1 or h * w <= 1):
        return "positions", math.gcd(stride_b, stride_c, h * w, WIDEST)
    if one_pitch and (stride_c == 1 or C <= 1):
        return "channels", math.gcd(stride_b, stride_x, C, WIDEST)
    return "strided", 1


def alignment(n: int) -> int:
    """The power of two, at most `WIDEST`, that divides n."""
    return math.gcd(n, WIDEST)


def strides(x: Tensor, prefix: str = "") -> dict[str, int]:
    """The strides of a [B, C, h, w] map under the kernels' parameter names."""
    return {f"{prefix}stride_{name}": stride for name, stride in zip("bcyx", x.stride(), strict=True)}


def no_positions(features: Tensor) -> bool:
    """Whether a feature map [B, C, h, w] has no images or no positions."""
    B, _, h, w = features.shape
    return B * h * w == 0


def map_arguments(features: Tensor) -> dict[str, Tensor | int]:
    """A feature map [B, C, h, w] and its sizes as arguments of a kernel."""
    h, w = features.shape[2:]
    return {"features": features, "P": h * w, "w": w, **strides(features)}


def map_constexprs(features: Tensor, K: int) -> dict[str, int | str]:
    """The constexprs of a kernel that follow from its feature map and the number of classes."""
    kind, align = layout(features)
    C, h, w = features.shape[1:]
    return {"C": C, "K": K, "LAYOUT": kind, "ALIGN": align, "ALIGN_P": alignment(h * w)}


def block(n: int, minimum: int = 16) -> int:
    """The smallest power of two >= n and >= `minimum`, which is the minimum of tl.dot."""
    return max(minimum, triton.next_power_of_2(n))
