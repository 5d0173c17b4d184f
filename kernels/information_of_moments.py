"""`information_of_moments`: log-determinants of small symmetric positive definite matrices, one
program per class.

The matrix Q of a class is one tile in float64. It is swept by each of its pivots in turn: with d
the pivot p, element q_ij becomes q_ij - q_ip q_pj / d, row and column p become q_ip / d, and the
pivot itself becomes -1 / d. At the end the tile is -Q^-1, and the product of the pivots is det Q.
No pivot is small, since Q is a covariance plus r^2. A second launch adds the terms of the classes
in a fixed order. The backward pass sweeps again, from a few KB, and keeps nothing.
"""

import math

import torch
import triton
import triton.language as tl

from . import configs
from .launch import Cost, Launch, OpKernel, kernel, launch, num_bytes
from .plans import planned
from .reduction import sum_rows


def _cost(started: Launch) -> Cost:
    a, n = started.arguments, started.constexprs["N"]
    upstream = num_bytes(a["upstream"])
    element = a["K"] * a["moments"].element_size() + (0 if a["total"] is None else a["total"].element_size())
    return Cost(
        loads=n * n * element + started.programs * upstream,  # both halves of the matrices
        stores=num_bytes(a["terms"], a["gradient"]),
        distinct_loads=num_bytes(a["moments"], a["total"]) + upstream,
    )


@kernel(cost=_cost)
def information_of_moments(
    moments,  # [K, S] with S = N (N + 1) / 2
    total,  # [S], or None where the terms are not wanted
    terms,  # [K + 1] float64: the term of each class, then of all positions; or None
    upstream,  # []: factor of the gradient; or None
    gradient,  # [K, S] or None
    K: tl.int32, resolution: tl.float64, N: tl.constexpr, TINY: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0)
    S: tl.constexpr = N * (N + 1) // 2
    i = tl.arange(0, BLOCK_N)[:, None]
    j = tl.arange(0, BLOCK_N)[None, :]
    inside = (i < N) & (j < N)
    first, second = tl.minimum(i, j), tl.maximum(i, j)
    s = first * N - first * (first - 1) // 2 + second - first
    if total is None:  # noqa: SIM114 (known to the compiler, the next one is not)
        M = tl.load(moments + k * S + s, mask=inside, other=0).to(tl.float64)
    elif k < K:
        M = tl.load(moments + k * S + s, mask=inside, other=0).to(tl.float64)
    else:
        M = tl.load(total + s, mask=inside, other=0).to(tl.float64)
    corner = (i == 0) & (j == 0)
    size = tl.sum(tl.sum(tl.where(corner, M, 0.0), axis=1), axis=0)
    # A class without positions has all moments 0. tl.maximum would lose NaN.
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
    if terms is not None:
        tl.store(terms + k, tl.where(k < K, -size * half, half))
    if gradient is not None:
        trace = tl.sum(tl.sum(tl.where((i == j) & (i > 0) & inside, -Q, 0.0), axis=1), axis=0)
        # A moment off the diagonal is two elements of M.
        by_M = tl.where(i == j, Q / 2, Q) + tl.where(corner, (N - floor * trace) / 2 - half, 0.0)
        by_M *= tl.load(upstream).to(tl.float64)
        tl.store(gradient + k * S + s, by_M.to(gradient.dtype.element_ty), mask=inside & (i <= j))


class InformationOfMomentsKernel(OpKernel, op="information_of_moments"):
    dtypes = (torch.float32, torch.float64)

    def forward(self, moments, total, resolution, needs):
        return _value(moments.contiguous(), total.contiguous(), resolution)[0], []

    def backward(self, grad, saved, moments, total, resolution, needs):
        return _gradient(grad, moments.contiguous(), resolution)


@planned
def _value(moments, total, resolution):
    terms, value = moments.new_empty(len(moments) + 1, dtype=torch.float64), moments.new_empty(())
    _launch(moments, resolution, total=total, terms=terms)
    sum_rows(terms, value)
    return (value,)


@planned
def _gradient(upstream, moments, resolution):
    gradient = moments.new_empty(moments.shape)
    _launch(moments, resolution, upstream=upstream, gradient=gradient)
    return (gradient,)


def _launch(moments, resolution, total=None, terms=None, upstream=None, gradient=None):
    K, S = moments.shape
    n = (math.isqrt(8 * S + 1) - 1) // 2
    launch(
        information_of_moments,
        (K if total is None else K + 1,),
        {"moments": moments, "total": total, "terms": terms, "upstream": upstream, "gradient": gradient}
        | {"K": K, "resolution": resolution},
        {"N": n, "TINY": torch.finfo(moments.dtype).tiny, "BLOCK_N": triton.next_power_of_2(n)},
        configs.rows("information_of_moments", configs.Key(moments.element_size(), n, K))[0],
    )
