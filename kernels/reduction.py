"""The second pass of sums over many programs. Parts are added in a fixed order, so reruns give the
same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from .configs import Config
from .launch import Cost, Launch, kernel, launch, num_bytes
from .tiles import alignment, divided

# Few bytes and no reuse: 1,024 sums per program suit every shape.
CONFIG = Config({"BLOCK": 1024}, num_warps=4, num_stages=1)


def _cost(started: Launch) -> Cost:
    first, first_sum, second, second_sum = list(started.arguments.values())[:4]
    read = num_bytes(first, second)
    return Cost(loads=read, stores=num_bytes(first_sum, second_sum), distinct_loads=read)


@triton.jit
def add_parts(partials, out, tile, parts, size, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    size = divided(size, ALIGN)
    i = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), partials.dtype.element_ty)
    for part in range(parts):
        total += tl.load(partials + part * size + i, mask=i < size, other=0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)


@kernel(wide_loads=True, cost=_cost)
def sum_partials_kernel(
    first,  # [parts, first_size]
    first_sum,  # [first_size]
    second,  # [parts, second_size] or None
    second_sum,  # [second_size] or None
    parts: tl.int32, first_size: tl.int64, second_size: tl.int64,
    FIRST_ALIGN: tl.constexpr,  # what the sizes divide by
    SECOND_ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(first_size, BLOCK).to(tl.int32)
    tile = tl.program_id(0)
    if tile < tiles:
        add_parts(first, first_sum, tile, parts, first_size, FIRST_ALIGN, BLOCK)
    elif second is not None:
        add_parts(second, second_sum, tile - tiles, parts, second_size, SECOND_ALIGN, BLOCK)


# Many parts of few sums: 32 sums per program, 64 parts at once.
ROWS_CONFIG = Config({"BLOCK_PARTS": 64, "BLOCK": 32}, num_warps=4, num_stages=1)


def _rows_cost(started: Launch) -> Cost:
    read = num_bytes(started.arguments["partials"])
    return Cost(loads=read, stores=num_bytes(started.arguments["out"]), distinct_loads=read)


@kernel(cost=_rows_cost)
def sum_rows_kernel(
    partials,  # [parts, size]
    out,  # [size]
    parts: tl.int32,
    size: tl.int32,
    BLOCK_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK_PARTS, BLOCK), tl.float64)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)
        at = part.to(tl.int64)[:, None] * size + i[None, :]
        total += tl.load(partials + at, mask=(part < parts)[:, None] & (i < size)[None, :], other=0)
    tl.store(out + i, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=i < size)


def sum_rows(partials: Tensor, out: Tensor) -> None:
    """out = the sum of `partials` [parts, *out.shape] over the parts, formed in float64. Both are
    contiguous.
    """
    launch(
        sum_rows_kernel,
        (triton.cdiv(out.numel(), ROWS_CONFIG.blocks["BLOCK"]),),
        {"partials": partials, "out": out, "parts": len(partials), "size": out.numel()},
        {},
        ROWS_CONFIG,
    )


def sum_partials(*pairs: tuple[Tensor, Tensor]) -> None:
    """out = the sum of partials over the parts, in one launch.

    Takes one or two pairs of `partials` [parts, *out.shape] and `out`, all contiguous, with the
    same number of parts.
    """
    (first, first_sum), (second, second_sum) = pairs if len(pairs) == 2 else (*pairs, (None, None))
    sizes = [0 if out is None else out.numel() for out in (first_sum, second_sum)]
    launch(
        sum_partials_kernel,
        (sum(triton.cdiv(size, CONFIG.blocks["BLOCK"]) for size in sizes),),
        {"first": first, "first_sum": first_sum, "second": second, "second_sum": second_sum}
        | {"parts": len(first), "first_size": sizes[0], "second_size": sizes[1]},
        {"FIRST_ALIGN": alignment(sizes[0]), "SECOND_ALIGN": alignment(sizes[1])},
        CONFIG,
    )
