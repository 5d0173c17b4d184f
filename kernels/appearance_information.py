"""`information_of_moments`: a small symmetric positive definite matrix a class, in float64, one program each.

The matrix Q is held as one tile and swept by each of its pivots in turn: with d the pivot, q_ij - q_ip q_pj / d
everywhere else, q_ip / d in its row and column, and -1 / d in its place. In the end the tile is -Q^-1, and the product
of the pivots is det Q; none is small, since Q is a covariance to which r^2 is added. The classes' terms are added in a
fixed order by a second launch.
"""

import math

import torch
import triton
import triton.language as tl

from . import configs
from .launch import Cost, Launch, kernel, launch
from .reduction import sum_rows


def _cost(started: Launch) -> Cost:
    a, n = started.arguments, started.constexprs["N"]

    def size(*names: str) -> int:
        present = [x for x in map(a.get, names) if x is not None]
        return sum(x.numel() * x.element_size() for x in present)

    each = a["K"] * a["moments"].element_size() + a["total"].element_size()
    return Cost(
        loads=n * n * each,  # both halves of the matrices
        stores=size("terms", "gradient"),
        distinct_loads=size("moments", "total"),
    )


@kernel(products=False, wide_loads=False, cost=_cost)
def class_information(
    moments,  # [K, S] with S = N (N + 1) / 2
    total,  # [S]
    terms,  # [K + 1] float64: what each class adds, then all positions
    gradient,  # [K, S], or None where it is not wanted
    K: tl.int32,
    resolution: tl.float64,
    N: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    k = tl.program_id(0)
    S: tl.constexpr = N * (N + 1) // 2
    i = tl.arange(0, BLOCK_N)[:, None]
    j = tl.arange(0, BLOCK_N)[None, :]
    inside = (i < N) & (j < N)
    first, second = tl.minimum(i, j), tl.maximum(i, j)
    s = first * N - first * (first - 1) // 2 + second - first
    if k < K:
        M = tl.load(moments + k * S + s, mask=inside, other=0).to(tl.float64)
    else:
        M = tl.load(total + s, mask=inside, other=0).to(tl.float64)
    corner = (i == 0) & (j == 0)
    size = tl.sum(tl.sum(tl.where(corner, M, 0.0), axis=1), axis=0)
    # A class without positions has all moments 0. Not the larger of the two: NaN stays.
    pi = tl.where(size < TINY, TINY, size)
    floor = resolution * resolution
    Q = M / pi + tl.where((i == j) & (i > 0), floor, 0.0)
    Q = tl.where(corner, tl.where(pi == pi, 1.0, pi), Q)
    log_det = pi * 0
    for p in range(N):
        row = tl.sum(tl.where(i == p, Q, 0.0), axis=0)[None, :]
        column = tl.sum(tl.where(j == p, Q, 0.0), axis=1)[:, None]
        pivot = tl.sum(tl.sum(tl.where((i == p) & (j == p), Q, 0.0), axis=1), axis=0)
        log_det += tl.log(tl.abs(pivot))
        rest = Q - column * row / pivot
        Q = tl.where(i == p, tl.where(j == p, -1.0, row) / pivot, tl.where(j == p, column / pivot, rest))
    half = log_det / 2
    tl.store(terms + k, tl.where(k < K, -size * half, half))
    if gradient is not None:
        trace = tl.sum(tl.sum(tl.where((i == j) & (i > 0) & inside, -Q, 0.0), axis=1), axis=0)
        # A product off the diagonal stands for two elements of M.
        by_M = tl.where(i == j, Q / 2, Q) + tl.where(corner, (N - floor * trace) / 2 - half, 0.0)
        at = k * S + s  # beyond the end for the matrix of all positions
        tl.store(gradient + at, by_M.to(gradient.dtype.element_ty), mask=inside & (i <= j) & (at < K * S))


class InformationOfMomentsKernel:
    """The kernel of `information_of_moments`, which forms the gradient with the value."""

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        from . import unsupported

        return unsupported(device_type, dtype, (torch.float32, torch.float64))

    def fake_saved(self, moments, total, resolution, needs):
        return [moments.new_empty(moments.shape)] if needs[0] else []

    def forward(self, moments, total, resolution, needs):
        moments, total = moments.contiguous(), total.contiguous()
        K, S = moments.shape
        n = (math.isqrt(8 * S + 1) - 1) // 2
        terms, value = moments.new_empty(K + 1, dtype=torch.float64), moments.new_empty(())
        saved = self.fake_saved(moments, total, resolution, needs)
        launch(
            class_information,
            (K + 1,),
            {
                "moments": moments,
                "total": total,
                "terms": terms,
                "gradient": saved[0] if saved else None,
                "K": K,
                "resolution": resolution,
            },
            {"N": n, "TINY": torch.finfo(moments.dtype).tiny, "BLOCK_N": triton.next_power_of_2(n)},
            configs.rows("class_information", configs.Key(moments.element_size(), n, K))[0],
        )
        sum_rows(terms, value)
        return value, saved

    def backward(self, grad, saved, moments, total, resolution, needs):
        return [grad * saved[0]]
