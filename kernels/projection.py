"""The projection of local features, folded into the global features: G = H W and g0 = H b, and
their gradients. Every op of features takes these kernels; `reference.fold_projection` states them.

The products are small, and a call of PyTorch for each of them takes the host longer than the GPU.
So one launch forms G and g0, and one forms dH = dG W^T + dg0 b^T, dW = H^T dG and db = H^T dg0. A
program owns a tile of one result and sums over the third axis, so no sum is split and reruns give
the same bits.
"""

import torch
import triton
import triton.language as tl

from ..ops.protocol import Needs
from ..reference.folding import accumulation_dtype, fold_projection
from . import configs
from .launch import Cost, Launch, OpKernel, kernel, launch, num_bytes, product_operations
from .plans import Passes, planned
from .tiles import alignment, divided, precision, product


def _cost(started: Launch) -> Cost:
    a, block = started.arguments, started.constexprs["BLOCK"]
    rows, columns = triton.cdiv(a["M"], block), max(triton.cdiv(a["C"], block), 1)
    each = product_operations(block, block, block, started.constexprs["PRECISION"])
    return Cost(
        loads=columns * (num_bytes(a["H"]) + rows * num_bytes(a["b"])) + rows * num_bytes(a["W"]),
        stores=num_bytes(a["G"], a["g0"]),
        distinct_loads=num_bytes(a["H"], a["W"], a["b"]) if rows * columns else 0,
        operations=rows * columns * triton.cdiv(a["D"], block) * each,
    )


def _operand_elements(c: dict[str, object]) -> tuple[int, int]:
    """`Kernel.feature_loop`: what an iteration loads, and iterations, of which there may be many."""
    return 2 * c["BLOCK"] * c["BLOCK"], 1 << 30


@kernel(products=True, wide_loads=True, cost=_cost, feature_loop=_operand_elements)
def projection_fold(
    H,  # [M, D] global features of all images
    W,  # [D, C]
    b,  # [D] or None
    G,  # [M, C]
    g0,  # [M], or None without b
    M: tl.int32, D: tl.int32, C: tl.int32,
    ALIGN_D: tl.constexpr,  # divisor of D
    ALIGN_C: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    D = divided(D, ALIGN_D)
    C = divided(C, ALIGN_C)
    dtype: tl.constexpr = tl.float64 if H.dtype.element_ty == tl.float64 else tl.float32
    columns = tl.maximum(tl.cdiv(C, BLOCK), 1)  # without channels too there is a bias
    column = tl.program_id(0) % columns
    m = (tl.program_id(0) // columns).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = column * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype)
    by_bias = tl.zeros((BLOCK,), dtype)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        h = tl.load(H + m[:, None] * D + d[None, :], mask=(m < M)[:, None] & (d < D)[None, :], other=0)
        at = d.to(tl.int64)[:, None] * C + c[None, :]
        w = tl.load(W + at, mask=(d < D)[:, None] & (c < C)[None, :], other=0)
        total = product(h, w, total, PRECISION)
        if b is not None:
            bias = tl.load(b + d, mask=d < D, other=0).to(dtype)
            by_bias += tl.sum(h.to(dtype) * bias[None, :], axis=1)
    tl.store(G + m[:, None] * C + c[None, :], total.to(G.dtype.element_ty), mask=(m < M)[:, None] & (c < C)[None, :])
    if b is not None and column == 0:
        tl.store(g0 + m, by_bias, mask=m < M)


def _gradient_tiles(a: dict, block: int) -> tuple[int, int]:
    """Programs that own a tile of dH, and of dW or db."""
    rows, columns, depth = (triton.cdiv(a[name], block) for name in "MCD")
    of_weight = depth * (max(columns, 1) if a["dW"] is not None else 1)
    wanted = a["dW"] is not None or a["db"] is not None
    return rows * depth if a["dH"] is not None else 0, of_weight if wanted else 0


def _gradient_cost(started: Launch) -> Cost:
    a, block = started.arguments, started.constexprs["BLOCK"]
    rows, columns, depth = (triton.cdiv(a[name], block) for name in "MCD")
    each = product_operations(block, block, block, started.constexprs["PRECISION"])
    dG, dg0, H, W, b = (num_bytes(a[name]) for name in ("dG", "dg0", "H", "W", "b"))
    of_H, of_weight = _gradient_tiles(a, block)
    weight = a["dW"] is not None
    loads = operations = 0
    read = set()
    if of_H:
        loads += depth * (dG + dg0) + rows * (W + b)
        operations += of_H * columns * each
        read |= {"dG", "dg0", "W", "b"}
    if of_weight:
        per_column = of_weight // depth
        loads += per_column * H + (depth * dG if weight else 0) + (of_weight * dg0 if a["db"] is not None else 0)
        operations += of_weight * rows * each if weight else 0
        read |= {"H"} | ({"dG"} if weight else set()) | ({"dg0"} if a["db"] is not None else set())
    return Cost(
        loads=loads,
        stores=num_bytes(a["dH"], a["dW"], a["db"]),
        distinct_loads=sum(num_bytes(a[name]) for name in read),
        operations=operations,
    )


@kernel(products=True, wide_loads=True, cost=_gradient_cost, feature_loop=_operand_elements)
def projection_gradient(
    H,  # [M, D] global features of all images
    W,  # [D, C]
    b,  # [D] or None
    dG,  # [M, C]; None where neither dH nor dW is wanted
    dg0,  # [M], or None without b
    dH,  # [M, D] or None
    dW,  # [D, C] or None
    db,  # [D] or None
    M: tl.int32, D: tl.int32, C: tl.int32,
    ALIGN_D: tl.constexpr,  # divisor of D
    ALIGN_C: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    D = divided(D, ALIGN_D)
    C = divided(C, ALIGN_C)
    dtype: tl.constexpr = tl.float64 if H.dtype.element_ty == tl.float64 else tl.float32
    depth = tl.cdiv(D, BLOCK)
    programs_of_H = tl.cdiv(M, BLOCK) * depth if dH is not None else 0
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    if program < programs_of_H:
        if dH is not None:
            m = (program // depth).to(tl.int64) * BLOCK + i
            d = program % depth * BLOCK + i
            total = tl.zeros((BLOCK, BLOCK), dtype)
            for start in range(0, C, BLOCK):
                c = start + i
                dg = tl.load(dG + m[:, None] * C + c[None, :], mask=(m < M)[:, None] & (c < C)[None, :], other=0)
                at = d.to(tl.int64)[:, None] * C + c[None, :]
                w = tl.load(W + at, mask=(d < D)[:, None] & (c < C)[None, :], other=0)
                total = product(dg, tl.trans(w).to(dtype), total, PRECISION)
            if b is not None:
                bias = tl.load(b + d, mask=d < D, other=0).to(dtype)
                total += tl.load(dg0 + m, mask=m < M, other=0)[:, None] * bias[None, :]
            to = dH + m[:, None] * D + d[None, :]
            tl.store(to, total.to(dH.dtype.element_ty), mask=(m < M)[:, None] & (d < D)[None, :])
    elif dW is not None or db is not None:
        columns = tl.maximum(tl.cdiv(C, BLOCK), 1) if dW is not None else 1
        column = (program - programs_of_H) % columns
        d = (program - programs_of_H) // columns * BLOCK + i
        c = column * BLOCK + i
        total = tl.zeros((BLOCK, BLOCK), dtype)
        by_bias = tl.zeros((BLOCK,), dtype)
        for start in range(0, M, BLOCK):
            m = (start + i).to(tl.int64)
            h = tl.load(H + m[:, None] * D + d[None, :], mask=(m < M)[:, None] & (d < D)[None, :], other=0)
            h = h.to(dtype)
            if dW is not None:
                dg = tl.load(dG + m[:, None] * C + c[None, :], mask=(m < M)[:, None] & (c < C)[None, :], other=0)
                total = product(tl.trans(h), dg, total, PRECISION)
            if db is not None:
                by_bias += tl.sum(h * tl.load(dg0 + m, mask=m < M, other=0)[:, None], axis=0)
        if dW is not None:
            to = dW + d.to(tl.int64)[:, None] * C + c[None, :]
            tl.store(to, total.to(dW.dtype.element_ty), mask=(d < D)[:, None] & (c < C)[None, :])
        if db is not None and column == 0:
            tl.store(db + d, by_bias.to(db.dtype.element_ty), mask=d < D)


class FeatureKernel(OpKernel):
    """Base class of the kernels of ops of features.

    It folds the projection in the same plan as the op, so the op calls nothing else. Without a
    weight nothing is projected, and `reference.fold_projection` is called.
    """

    saves_output = False  # whether `backward` reads the result

    def __init__(self):
        self._passes = Passes(self._forward, self._backward)

    def operands(self, features):
        """The dtype of G: what the kernels multiply the features with, and round to if they do."""
        return accumulation_dtype(features.dtype)

    def fold(self, H, W, b, dtype=None):
        """G and g0 as `reference.fold_projection`; G in `dtype` if that is given."""
        if W is None:
            return fold_projection(H, W, b)
        b = None if b is None else b.contiguous()
        G, *g0 = _fold(H.contiguous(), W.contiguous(), b, dtype or accumulation_dtype(H.dtype))
        return G, g0[0] if g0 else None

    def fold_gradient(self, dG, dg0, H, W, b, wanted):
        """dH, dW and db, None where they are not wanted; none may be wanted of None. dG and dg0 are
        read where they matter, and contiguous.
        """
        return _fold_gradient(dG, dg0, H, W, b, wanted)

    def forward_projected(self, tensors, settings, wanted):
        """The result, what is kept for `backward_projected`, and a layout that it needs too.

        tensors: features, H, W, b and the op's constants; H, W and b are contiguous.
        wanted: whether a gradient is wanted by each of the first four.
        """
        out, kept, layout = self._passes.forward(tensors, settings, wanted)
        return out, (out, *kept) if self.saves_output else kept, layout

    def backward_projected(self, grad, layout, kept, tensors, settings, wanted):
        """Gradients by features, H, W and b that are `wanted`; None for the others."""
        if self.saves_output:
            out, *kept = kept
            tensors = *tensors, out
        found = iter(self._passes.backward(layout, kept, grad, tensors, settings, wanted))
        return tuple([next(found) if need else None for need in wanted])

    def _forward(self, features, H, W, b, *rest):
        *constants, settings, wanted = rest
        folded = _fold(H, W, b, self.operands(features))
        G, g0 = folded if len(folded) == 2 else (*folded, None)
        out, saved = self.forward(features, G, g0, *constants, *settings, Needs.of(wanted, b))
        return out, *folded, *saved

    def _backward(self, kept, grad, tensors, settings, wanted):
        features, H, W, b, *constants = tensors
        G, *saved = kept
        g0 = None if b is None else saved.pop(0)
        if self.saves_output:
            *constants, out = constants
            saved = [out, *saved]
        df, dG, dg0 = self.backward(grad, saved, features, G, g0, *constants, *settings, Needs.of(wanted, b))
        found = df, *self.fold_gradient(dG, dg0, H, W, b, wanted[1:])
        return tuple(x for x, need in zip(found, wanted, strict=True) if need)


def _sizes(H, W):
    D, C = W.shape
    numbers = {"M": H.shape[0] * H.shape[1], "D": D, "C": C}
    return numbers, {"ALIGN_D": alignment(D), "ALIGN_C": alignment(C)}


@planned
def _fold(H, W, b, dtype):
    """G in `dtype` and, with b, g0."""
    numbers, constexprs = _sizes(H, W)
    sums = accumulation_dtype(H.dtype)
    constexprs["PRECISION"] = "ieee" if H.dtype.itemsize == 2 else precision(sums)

    def run(config):
        G = H.new_empty(*H.shape[:2], numbers["C"], dtype=dtype)
        g0 = None if b is None else H.new_empty(H.shape[:2], dtype=sums)
        rows, columns = (triton.cdiv(numbers[name], config.blocks["BLOCK"]) for name in "MC")
        programs = rows * max(columns, 1)
        launch(projection_fold, (programs,), {"H": H, "W": W, "b": b, "G": G, "g0": g0} | numbers, constexprs, config)
        return (G,) if g0 is None else (G, g0)

    return configs.run("projection_fold", configs.Key(H.element_size(), numbers["C"], 0), H.device, run)


def _fold_gradient(dG, dg0, H, W, b, wanted):
    """dH, dW and db, None where they are not wanted."""
    numbers, constexprs = _sizes(H, W)
    constexprs["PRECISION"] = precision(accumulation_dtype(H.dtype))

    def run(config):
        found = [torch.empty_like(x) if need else None for x, need in zip((H, W, b), wanted, strict=True)]
        by_G = {"dG": dG if wanted[0] or wanted[1] else None, "dg0": None if b is None else dg0}
        arguments = {"H": H, "W": W, "b": b, **by_G, **dict(zip(("dH", "dW", "db"), found, strict=True)), **numbers}
        programs = sum(_gradient_tiles(arguments, config.blocks["BLOCK"]))
        launch(projection_gradient, (programs,), arguments, constexprs, config)
        return found

    return configs.run("projection_gradient", configs.Key(H.element_size(), numbers["C"], 0), H.device, run)
