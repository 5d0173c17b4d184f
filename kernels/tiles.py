"""What the kernels share: addresses of feature tiles, products, and the host's view of a layout.

A feature map [B, C, h, w] is read in tiles [BLOCK_C, BLOCK_P] of channels by flat positions p = y * w + x, wherever
its strides put them:

- "positions": neighbouring positions are neighbours in memory (contiguous);
- "channels": neighbouring channels are (channels-last), positions lie at one pitch;
- "strided": anything else, with a division for each position.
"""

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import product_operations

# In Triton's interpreter a product of bfloat16 multiplies their bit patterns.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
WIDEST = 16  # elements: no layout is known to more than this


BLOCK_S: tl.constexpr = tl.constexpr(16)  # statistics in a product: the least that one takes


@triton.jit
def divided(x, DIVISOR: tl.constexpr):
    """x, a multiple of DIVISOR, in a form that tells the compiler so: wide loads depend on it."""
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
    """x as it is multiplied. Only bfloat16 features are multiplied as they are: float16 holds neither all global
    features nor all coefficients, and is exact in tf32.
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
    """accumulator + a b of sums over statistics or with them, which are few and stay as precise as they come."""
    if accumulator.dtype == tl.float64:
        return product(a, b, accumulator, "ieee")
    else:
        return product(a, b, accumulator, "tf32x3")


def moment_product_operations(m: int, n: int, k: int, itemsize: int) -> int:
    """Of one `moment_product` [m, k] [k, n] in numbers of `itemsize` bytes."""
    return product_operations(m, n, k, "ieee" if itemsize == 8 else "tf32x3")


def precision(dtype: torch.dtype) -> str:
    """How products of `dtype` are formed (see `operand`), for float32 as torch.get_float32_matmul_precision() says.

    "highest" is three tf32 products of the operands' upper and lower halves, which keeps about 22 of the 24 bits on
    tensor cores; "high" and "medium" are one tf32 product, float16's too.
    """
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "tf32x3"
    return "tf32" if dtype in (torch.float32, torch.float16) else "ieee"


def layout(x: Tensor) -> tuple[str, int]:
    """The layout of a [B, C, h, w] map, and the power of two that its strides (and run length) divide by."""
    _, C, h, w = x.shape
    stride_b, stride_c, stride_y, stride_x = x.stride()
    one_pitch = h <= 1 or stride_y == w * stride_x
    if one_pitch and (stride_x == 1 or h * w <= 1):
        return "positions", math.gcd(stride_b, stride_c, h * w, WIDEST)
    if one_pitch and (stride_c == 1 or C <= 1):
        return "channels", math.gcd(stride_b, stride_x, C, WIDEST)
    return "strided", 1


def alignment(n: int) -> int:
    """The power of two that n divides by, as far as the kernels ask."""
    return math.gcd(n, WIDEST)


def strides(x: Tensor, prefix: str = "") -> dict[str, int]:
    """The strides of a [B, C, h, w] map by the kernels' names for them."""
    return {f"{prefix}stride_{name}": stride for name, stride in zip("bcyx", x.stride(), strict=True)}


def block(n: int, least: int = 16) -> int:
    """The power of two that holds n, at least what a product needs."""
    return max(least, triton.next_power_of_2(n))
