"""`local_global_similarity` and `assign`: z = G f + g0 and V = softmax(tau z), and their gradients.

Going forward a program forms the [K, BLOCK_P] scores of a tile of positions on tensor cores, from one read of f, and
writes them, their softmax or their argmax. Going back a program owns a chunk of channels and a run of position tiles:
it forms df from dz and G, and sums its part of dG in registers, from one read of f; the parts are summed in a fixed
order by a second launch, so reruns give the same bits.
"""

import torch
import triton
import triton.language as tl

from ..ops.protocol import Gradients, Needs, empty_gradients
from . import configs
from .launch import Cost, Launch, kernel, launch, product_operations
from .reduction import sum_partials
from .tiles import (
    BLOCK_S,
    alignment,
    block,
    divided,
    feature_offsets,
    layout,
    moment_product,
    moment_product_operations,
    operand,
    precision,
    product,
    strides,
)

# Programs that keep any GPU of today busy for several rounds; fixed, so that results do not depend on the GPU.
PROGRAMS = 512
# More classes than this, by the bytes of an element, go through the backward kernel in chunks: with tf32x3 every
# operand is held twice, and the scores and sums of more would not fit the registers.
MOST_CLASSES = {2: 64, 4: 32, 8: 32}


def _forward_cost(started: Launch) -> Cost:
    f, G, g0, out = (started.arguments[name] for name in ("features", "G", "g0", "out"))
    c = started.constexprs
    B, K, C = len(f), c["K"], c["C"]
    tiles = started.programs // B
    padded_C = triton.cdiv(C, c["BLOCK_C"]) * c["BLOCK_C"]
    each_image = K * C * G.element_size() + (0 if g0 is None else K * g0.element_size())
    read = f.numel() * f.element_size()
    return Cost(
        loads=read + B * tiles * each_image,
        stores=out.numel() * out.element_size(),
        distinct_loads=read + B * each_image,
        operations=started.programs * product_operations(c["BLOCK_K"], c["BLOCK_P"], padded_C, c["PRECISION"]),
    )


@triton.jit
def tile_scores(
    features,
    G,
    g0,
    b,
    p,
    P,
    w,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    C: tl.constexpr,
    K: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """z [BLOCK_K, BLOCK_P] of image b at positions p, from one read of f."""
    k = tl.arange(0, BLOCK_K)
    c = tl.arange(0, BLOCK_C)
    f_tile = features + b * divided(stride_b, ALIGN)
    f_tile += feature_offsets(c, p, stride_c, stride_y, stride_x, w, LAYOUT, ALIGN)  # [BLOCK_C, BLOCK_P]
    G_tile = G + b * (K * C) + k[:, None] * C + c[None, :]  # [BLOCK_K, BLOCK_C]

    z = tl.zeros((BLOCK_K, BLOCK_P), G.dtype.element_ty)
    for start in range(0, C, BLOCK_C):
        inside = start + c < C
        f = tl.load(f_tile, mask=inside[:, None] & (p < P)[None, :], other=0)
        G_c = tl.load(G_tile, mask=(k < K)[:, None] & inside[None, :], other=0)
        z = product(operand(G_c, features, G), operand(f, features, G), z, PRECISION)
        f_tile += (
            BLOCK_C * stride_c
            if LAYOUT == "strided"
            else BLOCK_C * (divided(stride_c, ALIGN) if LAYOUT == "positions" else 1)
        )
        G_tile += BLOCK_C
    if g0 is not None:
        z += tl.load(g0 + b * K + k, mask=k < K, other=0)[:, None]
    return z


@triton.jit
def class_softmax(z, temperature, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """softmax(tau z) over the first K rows; 0 in the others."""
    z = tl.where((tl.arange(0, BLOCK_K) < K)[:, None], z * tl.cast(temperature, z.dtype), float("-inf"))
    e = tl.exp(z - tl.max(z, axis=0)[None, :])
    return e / tl.sum(e, axis=0)[None, :]


@kernel(products=True, wide_loads=True, cost=_forward_cost)
def similarity_forward(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    g0,  # [B, K] or None
    out,  # [B, K, P] scores or probabilities, or [B, P] labels
    temperature: tl.float64,
    P: tl.int32,
    w: tl.int32,
    stride_b: tl.int64,
    stride_c: tl.int64,
    stride_y: tl.int64,
    stride_x: tl.int64,
    C: tl.constexpr,
    K: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,  # what the features' strides divide by
    ALIGN_P: tl.constexpr,  # what P divides by
    OUTPUT: tl.constexpr,  # "similarity", "softmax" or "argmax"
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    P = divided(P, ALIGN_P)
    tiles = tl.cdiv(P, BLOCK_P)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    k = tl.arange(0, BLOCK_K)
    # fmt: off
    z = tile_scores(
        features, G, g0, b, p, P, w, stride_b, stride_c, stride_y, stride_x,
        C, K, LAYOUT, ALIGN, PRECISION, BLOCK_K, BLOCK_C, BLOCK_P,
    )
    # fmt: on
    if OUTPUT == "argmax":
        # Of equal classes the lowest; a NaN never wins, so there always is a label below K.
        z = tl.where((k < K)[:, None] & (z == z), z, float("-inf"))
        label = tl.argmax(z, axis=0, tie_break_left=True)  # [BLOCK_P]
        tl.store(out + b * P + p, label.to(tl.uint8), mask=p < P)
    else:
        if OUTPUT == "softmax":
            z = class_softmax(z, temperature, K, BLOCK_K)
        out_tile = out + b * K * P + k.to(tl.int64)[:, None] * P + p[None, :]
        tl.store(out_tile, z.to(out.dtype.element_ty), mask=(k < K)[:, None] & (p < P)[None, :])


def _backward_cost(started: Launch) -> Cost:
    a, c = started.arguments, started.constexprs
    B, P, K, C = len(a["features"]), a["P"], c["K"], c["C"]
    chunks_C, chunks_K = triton.cdiv(max(C, 1), c["BLOCK_C"]), triton.cdiv(K, c["BLOCK_K"])
    tiles = triton.cdiv(P, c["BLOCK_P"])
    formed = chunks_C  # times that the gradient by the scores of all classes is
    if chunks_K > 1 and a["probs"] is not None:  # the sum over all classes comes first
        formed += chunks_C * (chunks_K if c["NEED_G"] else 1)
    scores_once = B * K * P * (0 if a["probs"] is None else a["probs"].element_size())
    score_loads = formed * scores_once
    moment_operations = 0
    if a["statistics"] is None:
        score_loads += formed * B * K * P * a["grad"].element_size()
        scores_once += B * K * P * a["grad"].element_size()
    else:
        itemsize, S = a["grad"].element_size(), a["S"]
        score_loads += formed * B * (chunks_K * S * P + tiles * K * S) * itemsize
        scores_once += (B * S * P + K * S) * itemsize
        each = moment_product_operations(c["BLOCK_K"], BLOCK_S.value, c["BLOCK_P"], itemsize)
        moment_operations = formed * B * tiles * chunks_K * triton.cdiv(S, BLOCK_S.value) * each
    f_bytes = 0 if a["dG"] is None else B * C * P * a["features"].element_size()
    G_bytes = B * K * C * a["G"].element_size() if c["NEED_F"] else 0
    each_product = product_operations(c["BLOCK_K"], c["BLOCK_P"], c["BLOCK_C"], c["PRECISION"])
    written = [x for x in (a["df"], a["dG"], a["dg0"]) if x is not None]
    return Cost(
        loads=f_bytes * chunks_K + score_loads + G_bytes * (a["splits"] if chunks_K == 1 else tiles),
        stores=sum(x.numel() * x.element_size() for x in written),
        distinct_loads=f_bytes + scores_once + G_bytes,
        operations=B * tiles * chunks_C * chunks_K * (c["NEED_F"] + (a["dG"] is not None)) * each_product
        + moment_operations,
    )


@triton.jit
def output_gradient(grad, statistics, b, k, p, S, P, K: tl.constexpr, dtype: tl.constexpr):
    """The gradient by the output, of classes k and positions p: as it is in grad [B, K, P], or with statistics
    [B, S, P] formed from that by their moments, grad [K, S].
    """
    if statistics is None:
        at = b * K * P + k.to(tl.int64)[:, None] * P + p[None, :]
        return tl.load(grad + at, mask=(k < K)[:, None] & (p < P)[None, :], other=0).to(dtype)
    else:
        dV = tl.zeros((k.shape[0], p.shape[0]), dtype)
        for start in range(0, S, BLOCK_S):
            s = start + tl.arange(0, BLOCK_S)
            dM = tl.load(grad + k[:, None] * S + s[None, :], mask=(k < K)[:, None] & (s < S)[None, :], other=0)
            at = (b * S + s)[:, None] * P + p[None, :]
            Y = tl.load(statistics + at, mask=(s < S)[:, None] & (p < P)[None, :], other=0)
            dV = moment_product(dM, Y, dV)
        return dV


@triton.jit
def score_gradient(grad, statistics, probs, b, k, p, total, temperature, S, P, K: tl.constexpr, dtype: tl.constexpr):
    """The gradient by the scores; with probs, of the softmax: tau V (dV - total), total = sum_k V dV."""
    dz = output_gradient(grad, statistics, b, k, p, S, P, K, dtype)
    if probs is not None:
        at = b * K * P + k.to(tl.int64)[:, None] * P + p[None, :]
        V = tl.load(probs + at, mask=(k < K)[:, None] & (p < P)[None, :], other=0).to(dtype)
        dz = tl.cast(temperature, dtype) * V * (dz - total[None, :])
    return dz


@kernel(products=True, wide_loads=True, cost=_backward_cost)
def similarity_backward(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    grad,  # [B, K, P], by the scores or, with probs, by the probabilities; with statistics too [K, S], by their moments
    statistics,  # [B, S, P] or None
    probs,  # [B, K, P] or None
    df,  # as features, or None
    dG,  # [splits, B, K, C] or None
    dg0,  # [splits, B, K] or None
    temperature: tl.float64,
    P: tl.int32,
    w: tl.int32,
    B: tl.int32,
    splits: tl.int32,
    tiles_a_split: tl.int32,
    S: tl.int32,
    stride_b: tl.int64,
    stride_c: tl.int64,
    stride_y: tl.int64,
    stride_x: tl.int64,
    df_stride_b: tl.int64,
    df_stride_c: tl.int64,
    df_stride_y: tl.int64,
    df_stride_x: tl.int64,
    C: tl.constexpr,
    K: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    DF_LAYOUT: tl.constexpr,
    DF_ALIGN: tl.constexpr,
    ALIGN_P: tl.constexpr,
    NEED_F: tl.constexpr,
    NEED_G: tl.constexpr,  # dG or dg0; with more classes than BLOCK_K, one of the two alone
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    P = divided(P, ALIGN_P)
    dtype: tl.constexpr = G.dtype.element_ty
    chunks_K: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    # Programs that share positions are neighbours in time, so what they share comes from the L2 cache.
    chunks_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C if C > 0 else 1
    owned_K: tl.constexpr = chunks_K if NEED_G else 1
    chunk_C = tl.program_id(0) % chunks_C
    chunk_K = tl.program_id(0) // chunks_C % owned_K
    split = tl.program_id(0) // (chunks_C * owned_K) % splits
    b = (tl.program_id(0) // (chunks_C * owned_K) // splits).to(tl.int64)
    c = chunk_C * BLOCK_C + tl.arange(0, BLOCK_C)
    k = chunk_K * BLOCK_K + tl.arange(0, BLOCK_K)
    channels = c < C
    k_c = b * (K * C) + k[:, None] * C + c[None, :]  # [BLOCK_K, BLOCK_C] in G

    G_c = tl.zeros((BLOCK_K, BLOCK_C), dtype)
    if NEED_F and chunks_K == 1:
        G_c = tl.load(G + k_c, mask=(k < K)[:, None] & channels[None, :], other=0)
    sum_G = tl.zeros((BLOCK_K, BLOCK_C), dtype)
    sum_g0 = tl.zeros((BLOCK_K,), dtype)
    tiles = tl.cdiv(P, BLOCK_P)
    for tile in range(split * tiles_a_split, tl.minimum((split + 1) * tiles_a_split, tiles)):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        positions = (p < P)[None, :]
        k_p = b * K * P + k.to(tl.int64)[:, None] * P + p[None, :]  # [BLOCK_K, BLOCK_P] in grad and probs
        total = tl.zeros((BLOCK_P,), dtype)
        if chunks_K == 1:
            dz = output_gradient(grad, statistics, b, k, p, S, P, K, dtype)
            if probs is not None:
                V = tl.load(probs + k_p, mask=(k < K)[:, None] & positions, other=0).to(dtype)
                dz = tl.cast(temperature, dtype) * V * (dz - tl.sum(V * dz, axis=0)[None, :])
        else:
            if probs is not None:
                for start in range(0, K, BLOCK_K):
                    any_k = start + tl.arange(0, BLOCK_K)
                    at = b * K * P + any_k.to(tl.int64)[:, None] * P + p[None, :]
                    V = tl.load(probs + at, mask=(any_k < K)[:, None] & positions, other=0).to(dtype)
                    dV = output_gradient(grad, statistics, b, any_k, p, S, P, K, dtype)
                    total += tl.sum(V * dV, axis=0)
            if NEED_G:
                dz = score_gradient(grad, statistics, probs, b, k, p, total, temperature, S, P, K, dtype)
        if NEED_F:
            df_c = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            if chunks_K == 1:
                left = operand(tl.trans(G_c), features, G)
                df_c = product(left, operand(dz, features, G), df_c, PRECISION)
            else:
                for start in range(0, K, BLOCK_K):
                    any_k = start + tl.arange(0, BLOCK_K)
                    dz_here = score_gradient(grad, statistics, probs, b, any_k, p, total, temperature, S, P, K, dtype)
                    G_at = G + b * (K * C) + any_k[:, None] * C + c[None, :]
                    G_here = tl.load(G_at, mask=(any_k < K)[:, None] & channels[None, :], other=0)
                    left = operand(tl.trans(G_here), features, G)
                    df_c = product(left, operand(dz_here, features, G), df_c, PRECISION)
            df_tile = df + b * divided(df_stride_b, DF_ALIGN)
            df_tile += feature_offsets(c, p, df_stride_c, df_stride_y, df_stride_x, w, DF_LAYOUT, DF_ALIGN)
            tl.store(df_tile, df_c.to(df.dtype.element_ty), mask=channels[:, None] & positions)
        if NEED_G:
            sum_g0 += tl.sum(dz, axis=1)
            if dG is not None:
                f_tile = features + b * divided(stride_b, ALIGN)
                f_tile += feature_offsets(c, p, stride_c, stride_y, stride_x, w, LAYOUT, ALIGN)
                f = tl.load(f_tile, mask=channels[:, None] & positions, other=0)
                right = operand(tl.trans(f), features, G)
                sum_G = product(operand(dz, features, G), right, sum_G, PRECISION)
    if NEED_G:
        row = split.to(tl.int64) * B
        if dG is not None:
            tl.store(dG + row * (K * C) + k_c, sum_G, mask=(k < K)[:, None] & channels[None, :])
        if dg0 is not None and chunk_C == 0:
            tl.store(dg0 + (row + b) * K + k, sum_g0, mask=k < K)


class SimilarityKernel:
    """The kernels of `local_global_similarity` (see `infoseg_fast.ops.protocol`)."""

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        from . import unsupported

        return unsupported(device_type, dtype)

    def forward(self, features, G, g0, needs):
        B, _, h, w = features.shape
        return scores(features, G, g0, features.new_empty(B, G.shape[1], h, w), "similarity", 1.0), []

    def backward(self, grad_z, saved, features, G, g0, needs):
        return gradients(grad_z, None, 1.0, features, G, needs)


class AssignKernel(SimilarityKernel):
    """The kernels of `assign`."""

    def forward(self, features, G, g0, temperature, needs):
        B, _, h, w = features.shape
        return scores(features, G, g0, features.new_empty(B, G.shape[1], h, w), "softmax", temperature), []

    def backward(self, grad_V, saved, features, G, g0, temperature, needs):
        return gradients(grad_V, saved[0], temperature, features, G, needs)


def scores(features, G, g0, out, output: str, temperature: float):
    """Fill `out` with what `output` of `similarity_forward` says; return it."""
    B, C, h, w = features.shape
    K, P = G.shape[1], h * w
    kind, align = layout(features)

    def started(config):
        launch(
            similarity_forward,
            (triton.cdiv(P, config.blocks["BLOCK_P"]) * B,),
            {
                "features": features,
                "G": G,
                "g0": g0,
                "out": out,
                "temperature": temperature,
                "P": P,
                "w": w,
                **strides(features),
            },
            {
                "C": C,
                "K": K,
                "LAYOUT": kind,
                "ALIGN": align,
                "ALIGN_P": alignment(P),
                "OUTPUT": output,
                "PRECISION": precision(features.dtype),
                "BLOCK_K": block(K),
            },
            config,
        )
        return out

    return configs.run("similarity_forward", key(features, K), features.device, started)


def key(features, K: int) -> configs.Key:
    return configs.Key(features.element_size(), features.shape[1], K, str(features.dtype).removeprefix("torch."))


def gradients(grad, probs, temperature: float, features, G, needs: Needs, statistics=None) -> Gradients:
    """df, dG and dg0 from the gradient by the scores, with `probs` by the probabilities, or with statistics
    [B, S, h, w], contiguous, by their moments.
    """
    B, C, h, w = features.shape
    K, P = G.shape[1], h * w
    kind, align = layout(features)
    block_K = min(block(K), MOST_CLASSES[features.element_size()])
    chunks_K = triton.cdiv(K, block_K)

    def started(config):
        found = empty_gradients(features, G, needs)
        if B * P == 0:
            return Gradients(*(x.zero_() for x in found))
        chunks_C = triton.cdiv(max(C, 1), config.blocks["BLOCK_C"])
        tiles = triton.cdiv(P, config.blocks["BLOCK_P"])
        df_kind, df_align = layout(found.features) if needs.features else (kind, align)

        def part(need_f, need_G, need_g0):
            owned = chunks_C * (chunks_K if need_G or need_g0 else 1)
            tiles_a_split = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, B * owned)))
            splits = triton.cdiv(tiles, tiles_a_split)
            # One split writes the sums themselves.
            sums = found[1:] if splits == 1 else [x.new_empty(splits, *x.shape) for x in found[1:]]
            launch(
                similarity_backward,
                (B * splits * owned,),
                {
                    "features": features,
                    "G": G,
                    "grad": grad,
                    "statistics": statistics,
                    "probs": probs,
                    "df": found.features if need_f else None,
                    "dG": sums[0] if need_G else None,
                    "dg0": sums[1] if need_g0 else None,
                    "temperature": temperature,
                    "P": P,
                    "w": w,
                    "B": B,
                    "splits": splits,
                    "tiles_a_split": tiles_a_split,
                    "S": 0 if statistics is None else statistics.shape[1],
                    **strides(features),
                    **strides(found.features if need_f else features, "df_"),
                },
                {
                    "C": C,
                    "K": K,
                    "LAYOUT": kind,
                    "ALIGN": align,
                    "DF_LAYOUT": df_kind,
                    "DF_ALIGN": df_align,
                    "ALIGN_P": alignment(P),
                    "NEED_F": need_f,
                    "NEED_G": need_G or need_g0,
                    "PRECISION": precision(features.dtype),
                    "BLOCK_K": block_K,
                },
                config,
            )
            wanted = [
                pair for pair, need in zip(zip(sums, found[1:], strict=True), (need_G, need_g0), strict=True) if need
            ]
            if wanted and splits > 1:
                sum_partials(*wanted)

        if chunks_K == 1:
            part(*needs)
        else:
            if needs.features:
                part(True, False, False)
            if needs.G or needs.g0:
                part(False, needs.G, needs.g0)
        return found

    table = "similarity_backward" if statistics is None else "moments_backward"
    return configs.run(table, key(features, K), features.device, started)
