"""The second pass of sums over many programs: their parts are added in a fixed order, so reruns give the same bits."""

import triton
import triton.language as tl
from torch import Tensor

from .configs import Config
from .launch import Cost, Launch, kernel, launch

# Few bytes and no reuse: one row of 1,024 sums a program is enough for any shape.
CONFIG = Config({"BLOCK": 1024}, num_warps=4, num_stages=1)


def _cost(started: Launch) -> Cost:
    partials, out = started.arguments["partials"], started.arguments["out"]
    read = partials.numel() * partials.element_size()
    return Cost(loads=read, stores=out.numel() * out.element_size(), distinct_loads=read, operations=partials.numel())


@kernel(products=False, wide_loads=True, cost=_cost)
def sum_partials_kernel(
    partials,  # [parts, size]
    out,  # [size]
    parts: tl.int32,
    size: tl.int64,
    ALIGN: tl.constexpr,  # what size divides by
    BLOCK: tl.constexpr,
):
    size = size // ALIGN * ALIGN
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), partials.dtype.element_ty)
    for part in range(parts):
        total += tl.load(partials + part * size + i, mask=i < size, other=0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)


def sum_partials(partials: Tensor, out: Tensor) -> Tensor:
    """Sum `partials` [parts, *out.shape], contiguous, over the first dimension into `out`, which is returned."""
    size = out.numel()
    launch(
        sum_partials_kernel,
        (triton.cdiv(size, CONFIG.blocks["BLOCK"]),),
        {"partials": partials, "out": out, "parts": len(partials), "size": size},
        {"ALIGN": 4 if size % 4 == 0 else 1},
        CONFIG,
    )
    return out
