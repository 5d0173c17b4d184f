"""`local_global_similarity` and `assign`: z = G f + g0, V = softmax(tau z), and their gradients.

Forward: a program computes the [K, BLOCK_P] scores of a tile of positions on tensor cores, from one
read of f, and writes the scores, their softmax or their argmax. Backward: a program owns a chunk of
channels and a run of position tiles. It computes df from dz and G, and sums its part of dG in
registers, from one read of f. A second launch adds the parts in a fixed order, so reruns give the
same bits.
"""

from dataclasses import replace

import triton
import triton.language as tl

from ..ops.protocol import Gradients, Needs, empty_gradients
from . import configs
from .launch import Cost, Launch, kernel, launch, num_bytes, product_operations
from .plans import planned
from .projection import FeatureKernel
from .reduction import sum_partials
from .tiles import (
    BLOCK_S,
    block,
    divided,
    feature_offsets,
    layout,
    map_arguments,
    map_constexprs,
    moment_product,
    moment_product_operations,
    no_positions,
    operand,
    over_channels,
    over_positions,
    precision,
    product,
    strides,
)

PROGRAMS = 512  # keeps any GPU busy for several rounds; fixed, so that results do not depend on the GPU
# Maximum K in one block of classes, by the bytes of an element. Larger K is processed in chunks of
# classes: tf32x3 holds every operand twice, and the scores and sums of more classes do not fit the
# registers.
MAX_BLOCK_K = {2: 64, 4: 32, 8: 32}


def scores_cost(started: Launch) -> Cost:
    """The cost of computing the scores [K, P] of every image, without the stores."""
    f, G, g0 = (started.arguments[name] for name in ("features", "G", "g0"))
    c = started.constexprs
    per_image = num_bytes(G, g0) // max(len(f), 1)
    padded_C = triton.cdiv(c["C"], c["BLOCK_C"]) * c["BLOCK_C"]
    return Cost(
        loads=num_bytes(f) + started.programs * per_image,
        stores=0,
        distinct_loads=num_bytes(f, G, g0),
        operations=started.programs * product_operations(c["BLOCK_K"], c["BLOCK_P"], padded_C, c["PRECISION"]),
    )


def _forward_cost(started: Launch) -> Cost:
    return replace(scores_cost(started), stores=num_bytes(started.arguments["out"]))


@triton.jit
def tile_scores(
    features, G, g0, b, p, P, w, stride_b, stride_c, stride_y, stride_x, C: tl.constexpr, K: tl.constexpr,
    LAYOUT: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
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
        if LAYOUT == "strided":
            f_tile += BLOCK_C * stride_c
        else:
            f_tile += BLOCK_C * (divided(stride_c, ALIGN) if LAYOUT == "positions" else 1)
        G_tile += BLOCK_C
    if g0 is not None:
        z += tl.load(g0 + b * K + k, mask=k < K, other=0)[:, None]
    return z


@triton.jit
def class_softmax(z, temperature, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """softmax(tau z) over the first K rows; the other rows are 0."""
    z = tl.where((tl.arange(0, BLOCK_K) < K)[:, None], z * tl.cast(temperature, z.dtype), float("-inf"))
    e = tl.exp(z - tl.max(z, axis=0)[None, :])
    return e / tl.sum(e, axis=0)[None, :]


@kernel(products=True, wide_loads=True, cost=_forward_cost, feature_loop=over_channels)
def similarity_forward(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    g0,  # [B, K] or None
    out,  # [B, K, P] scores or probabilities, or [B, P] labels
    temperature: tl.float64, P: tl.int32, w: tl.int32, stride_b: tl.int64, stride_c: tl.int64, stride_y: tl.int64,
    stride_x: tl.int64, C: tl.constexpr, K: tl.constexpr, LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,  # divisor of the features' strides
    ALIGN_P: tl.constexpr,  # divisor of P
    OUTPUT: tl.constexpr,  # "similarity", "softmax" or "argmax"
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
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
        # The lowest of equal classes. NaN never wins, so every label is below K.
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
    repeats = chunks_C  # how often the gradient by the scores of all classes is computed
    if chunks_K > 1 and a["probs"] is not None:  # the sum over all classes comes first
        repeats += chunks_C * (chunks_K if c["NEED_G"] else 1)
    scores_once = num_bytes(a["probs"])
    score_loads = repeats * scores_once
    moment_operations = 0
    if a["statistics"] is None:
        score_loads += repeats * num_bytes(a["grad"])
        scores_once += num_bytes(a["grad"])
    else:
        itemsize, S = a["grad"].element_size(), a["S"]
        score_loads += repeats * B * (chunks_K * S * P + tiles * K * S) * itemsize
        scores_once += num_bytes(a["statistics"], a["grad"])
        each = moment_product_operations(c["BLOCK_K"], BLOCK_S.value, c["BLOCK_P"], itemsize)
        moment_operations = repeats * B * tiles * chunks_K * triton.cdiv(S, BLOCK_S.value) * each
    f_bytes = 0 if a["dG"] is None else num_bytes(a["features"])
    G_bytes = num_bytes(a["G"]) if c["NEED_F"] else 0
    each_product = product_operations(c["BLOCK_K"], c["BLOCK_P"], c["BLOCK_C"], c["PRECISION"])
    products = B * tiles * chunks_C * chunks_K * (c["NEED_F"] + (a["dG"] is not None))
    return Cost(
        loads=f_bytes * chunks_K + score_loads + G_bytes * (a["splits"] if chunks_K == 1 else tiles),
        stores=num_bytes(a["df"], a["dG"], a["dg0"]),
        distinct_loads=f_bytes + scores_once + G_bytes,
        operations=products * each_product + moment_operations,
    )


@triton.jit
def output_gradient(grad, statistics, b, k, p, S, P, K: tl.constexpr, dtype: tl.constexpr):
    """The gradient by the output for classes k and positions p.

    It is grad [B, K, P] itself, or with statistics Y [B, S, P] the product of Y and the moments'
    gradient, grad [K, S].
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
    """The gradient by the scores. With probs V it is tau V (dV - total), total = sum_k V dV."""
    dz = output_gradient(grad, statistics, b, k, p, S, P, K, dtype)
    if probs is not None:
        at = b * K * P + k.to(tl.int64)[:, None] * P + p[None, :]
        V = tl.load(probs + at, mask=(k < K)[:, None] & (p < P)[None, :], other=0).to(dtype)
        dz = tl.cast(temperature, dtype) * V * (dz - total[None, :])
    return dz


@kernel(products=True, wide_loads=True, cost=_backward_cost, feature_loop=over_positions)
def similarity_backward(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    grad,  # [B, K, P] by the scores, or with probs by the probabilities; with statistics [K, S] by their moments
    statistics,  # [B, S, P] or None
    probs,  # [B, K, P] or None
    df,  # as features, or None
    dG,  # [splits, B, K, C] or None
    dg0,  # [splits, B, K] or None
    temperature: tl.float64, P: tl.int32, w: tl.int32, B: tl.int32, splits: tl.int32, tiles_per_split: tl.int32,
    S: tl.int32, stride_b: tl.int64, stride_c: tl.int64, stride_y: tl.int64, stride_x: tl.int64,
    df_stride_b: tl.int64, df_stride_c: tl.int64, df_stride_y: tl.int64, df_stride_x: tl.int64, C: tl.constexpr,
    K: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, DF_LAYOUT: tl.constexpr, DF_ALIGN: tl.constexpr,
    ALIGN_P: tl.constexpr, NEED_F: tl.constexpr,
    NEED_G: tl.constexpr,  # dG or dg0. With more classes than BLOCK_K, NEED_F or NEED_G alone
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    P = divided(P, ALIGN_P)
    dtype: tl.constexpr = G.dtype.element_ty
    chunks_K: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    # Programs that share positions run at the same time, so the L2 cache serves their common loads.
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
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
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


class LocalGlobalSimilarityKernel(FeatureKernel, op="local_global_similarity"):
    def forward(self, features, G, g0, needs):
        return _score_map(features, G, g0, "similarity", 1.0)[0], []

    def backward(self, grad_z, saved, features, G, g0, needs):
        return gradients(grad_z, None, 1.0, features, G, needs)


class AssignKernel(FeatureKernel, op="assign"):
    saves_output = True

    def forward(self, features, G, g0, temperature, needs):
        return _score_map(features, G, g0, "softmax", temperature)[0], []

    def backward(self, grad_V, saved, features, G, g0, temperature, needs):
        return gradients(grad_V, saved[0], temperature, features, G, needs)


@planned
def _score_map(features, G, g0, output, temperature):
    """(z,) or (V,) in the dtype of the features."""
    out = features.new_empty(len(features), G.shape[1], *features.shape[2:])
    return (scores(features, G, g0, out, output, temperature),)


def scores(features, G, g0, out, output: str, temperature: float):
    """Fill `out` with the OUTPUT of `similarity_forward` and return it."""
    K = G.shape[1]
    arguments = map_arguments(features) | {"G": G, "g0": g0, "out": out, "temperature": temperature}
    constexprs = map_constexprs(features, K) | {
        "OUTPUT": output, "PRECISION": precision(features.dtype), "BLOCK_K": block(K)
    }  # fmt: skip

    def run(config):
        programs = triton.cdiv(arguments["P"], config.blocks["BLOCK_P"]) * len(features)
        launch(similarity_forward, (programs,), arguments, constexprs, config)
        return out

    return configs.run("similarity_forward", configs.feature_key(features, K), features.device, run)


def gradients(grad, probs, temperature: float, features, G, needs: Needs, statistics=None) -> Gradients:
    """df, dG and dg0 from the gradient by the scores, with `probs` by the probabilities.

    With `statistics` [B, S, h, w], contiguous, `grad` is the gradient by their moments.
    """
    if no_positions(features):
        return Gradients(*(x.zero_() for x in empty_gradients(features, G, needs)))
    return Gradients(*_gradients(grad, probs, temperature, features, G, needs, statistics))


@planned
def _gradients(grad, probs, temperature, features, G, needs, statistics):
    B, C, h, w = features.shape
    K, P = G.shape[1], h * w
    block_K = min(block(K), MAX_BLOCK_K[features.element_size()])
    chunks_K = triton.cdiv(K, block_K)
    inputs = map_arguments(features) | {"G": G, "grad": grad, "statistics": statistics, "probs": probs}
    inputs |= {"temperature": temperature, "B": B, "S": 0 if statistics is None else statistics.shape[1]}
    constexprs = map_constexprs(features, K) | {"PRECISION": precision(features.dtype), "BLOCK_K": block_K}

    def run(config):
        found = empty_gradients(features, G, needs)
        chunks_C = triton.cdiv(max(C, 1), config.blocks["BLOCK_C"])
        tiles = triton.cdiv(P, config.blocks["BLOCK_P"])
        df = found.features if needs.features else features
        df_kind, df_align = layout(df)

        def part(need_f, need_G, need_g0):
            owned = chunks_C * (chunks_K if need_G or need_g0 else 1)
            tiles_per_split = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, B * owned)))
            splits = triton.cdiv(tiles, tiles_per_split)
            # A single split writes the sums themselves.
            sums = found[1:] if splits == 1 else [x.new_empty(splits, *x.shape) for x in found[1:]]
            outputs = {
                "df": found.features if need_f else None,
                "dG": sums[0] if need_G else None,
                "dg0": sums[1] if need_g0 else None,
            }
            launch(
                similarity_backward,
                (B * splits * owned,),
                inputs
                | outputs
                | {"splits": splits, "tiles_per_split": tiles_per_split}
                | strides(found.features if need_f else features, "df_"),
                constexprs
                | {"DF_LAYOUT": df_kind, "DF_ALIGN": df_align, "NEED_F": need_f, "NEED_G": need_G or need_g0},
                config,
            )
            wanted = [pair for *pair, need in zip(sums, found[1:], (need_G, need_g0), strict=True) if need]
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

    table = "similarity_backward" if statistics is None else "class_moments_backward"
    return configs.run(table, configs.feature_key(features, K), features.device, run)
