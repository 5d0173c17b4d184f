"""`class_moments`: M[k, s] = sum_{b,p} V[b, k, p] Y[b, s, p]. V is stored only if a gradient is
wanted.

Forward: a program computes the probabilities of a tile of positions as `similarity_forward` does
and multiplies them, in registers, with the tile's statistics. A second launch adds the products of
all programs in a fixed order in float64. Backward: a program owns a chunk of channels, and without
V it would need the scores of all channels; so the forward pass keeps V, K numbers a position.
`similarity_backward` computes dV = dM Y a tile at a time.
"""

from dataclasses import replace

import triton
import triton.language as tl

from . import configs
from .launch import Cost, Launch, kernel, launch, num_bytes
from .local_global_similarity import class_softmax, gradients, scores_cost, tile_scores
from .plans import planned
from .projection import FeatureKernel
from .reduction import sum_rows
from .tiles import (
    BLOCK_S,
    block,
    divided,
    map_arguments,
    map_constexprs,
    moment_product,
    moment_product_operations,
    over_channels,
    precision,
)


def _cost(started: Launch) -> Cost:
    a, c, scores = started.arguments, started.constexprs, scores_cost(started)
    Y = num_bytes(a["statistics"])
    each = moment_product_operations(c["BLOCK_K"], BLOCK_S.value, c["BLOCK_P"], a["G"].element_size())
    return replace(
        scores,
        loads=scores.loads + Y,
        stores=num_bytes(a["probs"], a["partials"]),
        distinct_loads=scores.distinct_loads + Y,
        operations=scores.operations + started.programs * triton.cdiv(a["S"], BLOCK_S.value) * each,
    )


@kernel(products=True, wide_loads=True, cost=_cost, feature_loop=over_channels)
def class_moments_forward(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    g0,  # [B, K] or None
    statistics,  # [B, S, P]
    probs,  # [B, K, P], or None where no gradient is wanted
    partials,  # [programs, K, S]
    temperature: tl.float64, P: tl.int32, w: tl.int32, S: tl.int32, stride_b: tl.int64, stride_c: tl.int64,
    stride_y: tl.int64, stride_x: tl.int64, C: tl.constexpr, K: tl.constexpr, LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,  # divisor of the features' strides
    ALIGN_P: tl.constexpr,  # divisor of P
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
    V = class_softmax(z, temperature, K, BLOCK_K)
    if probs is not None:
        to = probs + b * K * P + k.to(tl.int64)[:, None] * P + p[None, :]
        tl.store(to, V.to(probs.dtype.element_ty), mask=(k < K)[:, None] & (p < P)[None, :])
    part = partials + tl.program_id(0).to(tl.int64) * K * S
    for start in range(0, S, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = (b * S + s)[:, None] * P + p[None, :]
        # 0 beyond the last position, where V is not 0.
        Y = tl.load(statistics + at, mask=(s < S)[:, None] & (p < P)[None, :], other=0)
        M = moment_product(V, tl.trans(Y), tl.zeros((BLOCK_K, BLOCK_S), V.dtype))
        tl.store(part + k[:, None] * S + s[None, :], M, mask=(k < K)[:, None] & (s < S)[None, :])


class ClassMomentsKernel(FeatureKernel, op="class_moments"):
    def fake_saved(self, features, G, g0, statistics, temperature, needs):
        return _saved(features, G) if any(needs) else []

    def forward(self, features, G, g0, statistics, temperature, needs):
        moments, *saved = _forward(features, G, g0, statistics.contiguous(), temperature, any(needs))
        return moments, saved

    def backward(self, grad_moments, saved, features, G, g0, statistics, temperature, needs):
        return gradients(grad_moments, saved[0], temperature, features, G, needs, statistics.contiguous())

    # A plan copies nothing, so the statistics are contiguous before it is found.
    def forward_projected(self, tensors, settings, wanted):
        return super().forward_projected((*tensors[:-1], tensors[-1].contiguous()), settings, wanted)

    def backward_projected(self, grad, layout, kept, tensors, settings, wanted):
        tensors = *tensors[:-1], tensors[-1].contiguous()
        return super().backward_projected(grad, layout, kept, tensors, settings, wanted)


@planned
def _forward(features, G, g0, statistics, temperature, gradient):
    """The moments and, if a gradient is wanted, V."""
    K, S = G.shape[1], statistics.shape[1]
    arguments = map_arguments(features) | {
        "G": G, "g0": g0, "statistics": statistics, "temperature": temperature, "S": S
    }  # fmt: skip
    constexprs = map_constexprs(features, K) | {"PRECISION": precision(features.dtype), "BLOCK_K": block(K)}

    def run(config):
        programs = triton.cdiv(arguments["P"], config.blocks["BLOCK_P"]) * len(features)
        saved = _saved(features, G) if gradient else []
        partials, moments = G.new_empty(programs, K, S), G.new_empty(K, S)
        outputs = {"probs": saved[0] if saved else None, "partials": partials}
        launch(class_moments_forward, (programs,), arguments | outputs, constexprs, config)
        sum_rows(partials, moments)
        return moments, *saved

    return configs.run("class_moments_forward", configs.feature_key(features, K), features.device, run)


def _saved(features, G):
    return [features.new_empty(len(features), G.shape[1], *features.shape[2:])]
