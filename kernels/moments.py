"""`class_moments`: M[k, s] = sum_{b,p} V[b, k, p] Y[b, s, p], V never read again but for the gradient.

Going forward a program forms the probabilities of a tile of positions as `similarity_forward` does and, while they are
in registers, their product with the tile's statistics; the products of all programs are added in a fixed order, in
float64, by a second launch. Where a gradient is wanted V is kept, K numbers a position beside the C of f: going back a
program owns a chunk of channels, so without V each would need the scores of all channels. `similarity_backward` takes
it from there, and forms dV = dM Y a tile at a time.
"""

import torch
import triton
import triton.language as tl

from . import configs
from .launch import Cost, Launch, kernel, launch, product_operations
from .reduction import sum_rows
from .similarity import class_softmax, gradients, key, tile_scores
from .tiles import (
    BLOCK_S,
    alignment,
    block,
    divided,
    layout,
    moment_product,
    moment_product_operations,
    precision,
    strides,
)


def _cost(started: Launch) -> Cost:
    f, G, g0, Y, probs, partials = (
        started.arguments[name] for name in ("features", "G", "g0", "statistics", "probs", "partials")
    )
    c, S = started.constexprs, started.arguments["S"]
    B, K, C = len(f), c["K"], c["C"]
    padded_C = triton.cdiv(C, c["BLOCK_C"]) * c["BLOCK_C"]
    each_image = K * C * G.element_size() + (0 if g0 is None else K * g0.element_size())
    read = f.numel() * f.element_size() + Y.numel() * Y.element_size()
    scores = product_operations(c["BLOCK_K"], c["BLOCK_P"], padded_C, c["PRECISION"])
    moments = moment_product_operations(c["BLOCK_K"], BLOCK_S.value, c["BLOCK_P"], G.element_size())
    return Cost(
        loads=read + started.programs * each_image,
        stores=sum(x.numel() * x.element_size() for x in (probs, partials) if x is not None),
        distinct_loads=read + B * each_image,
        operations=started.programs * (scores + triton.cdiv(S, BLOCK_S.value) * moments),
    )


@kernel(products=True, wide_loads=True, cost=_cost)
def moments_forward(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    g0,  # [B, K] or None
    statistics,  # [B, S, P]
    probs,  # [B, K, P], or None where no gradient is wanted
    partials,  # [programs, K, S]
    temperature: tl.float64,
    P: tl.int32,
    w: tl.int32,
    S: tl.int32,
    stride_b: tl.int64,
    stride_c: tl.int64,
    stride_y: tl.int64,
    stride_x: tl.int64,
    C: tl.constexpr,
    K: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,  # what the features' strides divide by
    ALIGN_P: tl.constexpr,  # what P divides by
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
    V = class_softmax(z, temperature, K, BLOCK_K)
    if probs is not None:
        to = probs + b * K * P + k.to(tl.int64)[:, None] * P + p[None, :]
        tl.store(to, V.to(probs.dtype.element_ty), mask=(k < K)[:, None] & (p < P)[None, :])
    part = partials + tl.program_id(0).to(tl.int64) * K * S
    for start in range(0, S, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = (b * S + s)[:, None] * P + p[None, :]
        # 0 beyond the last position, where V is not.
        Y = tl.load(statistics + at, mask=(s < S)[:, None] & (p < P)[None, :], other=0)
        M = moment_product(V, tl.trans(Y), tl.zeros((BLOCK_K, BLOCK_S), V.dtype))
        tl.store(part + k[:, None] * S + s[None, :], M, mask=(k < K)[:, None] & (s < S)[None, :])


class ClassMomentsKernel:
    """The kernels of `class_moments` (see `infoseg_fast.ops.protocol`)."""

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        from . import unsupported

        return unsupported(device_type, dtype)

    def fake_saved(self, features, G, g0, statistics, temperature, needs):
        B, _, h, w = features.shape
        return [features.new_empty(B, G.shape[1], h, w)] if any(needs) else []

    def forward(self, features, G, g0, statistics, temperature, needs):
        B, C, h, w = features.shape
        K, P, S = G.shape[1], h * w, statistics.shape[1]
        kind, align = layout(features)
        statistics = statistics.contiguous()

        def started(config):
            programs = triton.cdiv(P, config.blocks["BLOCK_P"]) * B
            saved = self.fake_saved(features, G, g0, statistics, temperature, needs)
            partials, moments = G.new_empty(programs, K, S), G.new_empty(K, S)
            launch(
                moments_forward,
                (programs,),
                {
                    "features": features,
                    "G": G,
                    "g0": g0,
                    "statistics": statistics,
                    "probs": saved[0] if saved else None,
                    "partials": partials,
                    "temperature": temperature,
                    "P": P,
                    "w": w,
                    "S": S,
                    **strides(features),
                },
                {
                    "C": C,
                    "K": K,
                    "LAYOUT": kind,
                    "ALIGN": align,
                    "ALIGN_P": alignment(P),
                    "PRECISION": precision(features.dtype),
                    "BLOCK_K": block(K),
                },
                config,
            )
            sum_rows(partials, moments)
            return moments, saved

        return configs.run("moments_forward", key(features, K), features.device, started)

    def backward(self, grad_moments, saved, features, G, g0, statistics, temperature, needs):
        return gradients(grad_moments, saved[0], temperature, features, G, needs, statistics.contiguous())
