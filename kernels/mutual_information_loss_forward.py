"""Forward pass: the loss from one read of f (two reads for jsd with several partners at the same
position).

A program owns an image and every splits-th tile of its positions, and writes the sums of its terms.
A second kernel adds them in a fixed order. The first block of columns is the own image with the
partners that fit beside it; the others follow block by block. An online log-sum-exp (infonce) or a
softplus per partner (jsd) avoids storing the scores. See `_Sizes.keeps` for what is kept for the
backward pass.
"""

import triton.language as tl

from .launch import kernel
from .mutual_information_loss_costs import forward_cost, value_cost
from .mutual_information_loss_tiles import (
    at_same_position,
    feature_tile,
    global_tile,
    kept_row,
    log_sum_exp,
    partner_columns,
    partner_negatives,
    position_tile,
    scores,
    scores_of_partner,
    softmax,
    softplus,
)
from .tiles import divided, over_channels

SUMS = tl.constexpr(3)  # positive terms, negative terms, valid positions; K sums of V follow


@kernel(products=True, wide_loads=True, cost=forward_cost, feature_loop=over_channels)
def loss_forward(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    g0,  # [B, K] or None
    valid,  # [B, P] or None
    V,  # [B, K, P] probabilities, written with the own block, else read; None unless same_position with MORE
    lse,  # [B, P] log-sum-exp of all scores, written, or None
    kept,  # [B, own, K, P] scores of the own block, written, or None
    partials,  # [3 + K, parts] sums of the programs, from column `part`
    part: tl.int32, parts: tl.int32, splits: tl.int32, B: tl.int32, n: tl.int32, P: tl.int32, w: tl.int32,
    channels: tl.int32,  # C
    stride_b: tl.int64, stride_c: tl.int64, stride_y: tl.int64, stride_x: tl.int64, tau: tl.float64,
    C: tl.constexpr, K: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, ALIGN_P: tl.constexpr,
    PRECISION: tl.constexpr,
    LOSS: tl.constexpr,  # "infonce", "reassigned" or "same_position"
    OWN_IMAGES: tl.constexpr,  # images of the first block; 0: there is none
    MORE: tl.constexpr,  # whether partners follow the first block
    BALANCE: tl.constexpr, BLOCK_K: tl.constexpr, IMAGES: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    P = divided(P, ALIGN_P)
    tau = tl.cast(tau, tl.float32)
    b = tl.program_id(0) % B
    split = tl.program_id(0) // B
    image = features + b.to(tl.int64) * divided(stride_b, ALIGN)
    positive = tl.zeros((BLOCK_P,), tl.float32)
    negative = tl.zeros((BLOCK_P,), tl.float32)
    count = tl.zeros((BLOCK_P,), tl.float32)
    usage = tl.zeros((BLOCK_K,), tl.float32)
    # disable_licm: loop-invariant operands, split for tf32x3, would stay in registers and spill.
    for tile in tl.range(split, tl.cdiv(P, BLOCK_P), splits, disable_licm=True):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = p < P
        ok = inside
        if valid is not None:
            ok = tl.load(valid + b.to(tl.int64) * P + p, mask=inside, other=0) != 0
        if C <= BLOCK_C:
            f = feature_tile(image, 0, p, inside, stride_c, stride_y, stride_x, w, C, LAYOUT, ALIGN, BLOCK_C)
            f = f.to(G.dtype.element_ty)
        else:
            f = None
            own_g = None

        if OWN_IMAGES > 0:
            own, own_live = partner_columns(b, 0, B, n, K, OWN_IMAGES, BLOCK_K)
            if C <= BLOCK_C:
                own_g = global_tile(G, own, own_live, 0, C, BLOCK_C)
            own_q = scores(
                f, own_g, image, p, inside, stride_c, stride_y, stride_x, w, G, g0, own, own_live, channels, C,
                LAYOUT, ALIGN, PRECISION, BLOCK_C,
            )  # fmt: skip
            z = scores_of_partner(own_q, 0, OWN_IMAGES, BLOCK_K)
            V_own = softmax(z, tau, K)
            T = tl.sum(V_own * z, 1)
            count += ok.to(tl.float32)
            if BALANCE:
                usage += tl.sum(tl.where(ok[:, None], V_own, 0), 0)
            if LOSS == "infonce":
                top, total = log_sum_exp(own_q, own_live)
            else:
                positive += tl.where(ok, softplus(-T), 0)
                if LOSS == "same_position" and OWN_IMAGES == 2:
                    next_image = (b + 1) % B
                    row_z, live_z = partner_columns(next_image, 0, B, 0, K, 1, BLOCK_K)
                    next_z = scores(
                        None, None, features + next_image.to(tl.int64) * divided(stride_b, ALIGN), p, inside,
                        stride_c, stride_y, stride_x, w, G, g0, row_z, live_z, channels, C, LAYOUT, ALIGN, PRECISION,
                        BLOCK_C,
                    )  # fmt: skip
                    next_w = scores_of_partner(own_q, 1, OWN_IMAGES, BLOCK_K)
                    next_T, _, _ = at_same_position(next_w, softmax(next_z, tau, K), tau, n)
                    negative += tl.where(ok, softplus(next_T), 0)
                elif OWN_IMAGES > 1:
                    _, _, own_T_neg = partner_negatives(own_q, None, tau, K, LOSS, OWN_IMAGES, BLOCK_K)
                    j = tl.arange(0, OWN_IMAGES)
                    own_counts = ok[:, None] & ((j >= 1) & (j <= n))[None, :]
                    negative += tl.sum(tl.where(own_counts, softplus(own_T_neg), 0), 1)
            if V is not None:
                k = tl.arange(0, BLOCK_K)
                to = V + (b * K + k).to(tl.int64)[None, :] * P + p[:, None]
                tl.store(to, V_own, mask=inside[:, None] & (k < K)[None, :])
            if kept is not None:
                to = kept + kept_row(b, n, K, OWN_IMAGES, BLOCK_K).to(tl.int64)[None, :] * P + p[:, None]
                tl.store(to, own_q, mask=inside[:, None] & own_live[None, :])

        if MORE:
            for first in range(max(OWN_IMAGES, 1), n + 1, IMAGES):
                row, live = partner_columns(b, first, B, n, K, IMAGES, BLOCK_K)
                g = None
                if C <= BLOCK_C:
                    g = global_tile(G, row, live, 0, C, BLOCK_C)
                q = scores(
                    f, g, image, p, inside, stride_c, stride_y, stride_x, w, G, g0, row, live, channels, C, LAYOUT,
                    ALIGN, PRECISION, BLOCK_C,
                )  # fmt: skip
                if LOSS == "infonce":
                    block_top, block_total = log_sum_exp(q, live)
                    new_top = tl.maximum(top, block_top)
                    total = total * tl.exp(top - new_top) + block_total * tl.exp(block_top - new_top)
                    top = new_top
                else:
                    R = position_tile(V, row, live, p, inside, P) if LOSS == "same_position" else None
                    _, _, T_neg = partner_negatives(q, R, tau, K, LOSS, IMAGES, BLOCK_K)
                    counts = ok[:, None] & (first + tl.arange(0, IMAGES) <= n)[None, :]
                    negative += tl.sum(tl.where(counts, softplus(T_neg), 0), 1)

        if LOSS == "infonce":
            positive += tl.where(ok, top - T + tl.log(total), 0)
            if lse is not None:
                tl.store(lse + b.to(tl.int64) * P + p, top + tl.log(total), mask=inside)

    to = partials + part + b * splits + split
    tl.store(to, tl.sum(positive))
    tl.store(to + parts, tl.sum(negative))
    tl.store(to + 2 * parts, tl.sum(count))
    k = tl.arange(0, BLOCK_K)
    tl.store(to + (k + SUMS) * parts, usage, mask=k < K)


@kernel(cost=value_cost)
def loss_value(
    partials,  # [3 + K, parts]
    loss,  # []
    share,  # [1 + K]: 1 / M of M valid positions (0 if M = 0), then M times the gradient of the balance term by V
    parts: tl.int32, n: tl.int32, balance: tl.float64, K: tl.constexpr, LOSS: tl.constexpr, BALANCE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BLOCK_K)
    part = tl.arange(0, BLOCK)
    positive = tl.zeros((BLOCK,), tl.float64)
    negative = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.float64)
    usage = tl.zeros((BLOCK_K,), tl.float64)
    for first in range(0, parts, BLOCK):
        x = partials + first + part
        inside = first + part < parts
        positive += tl.load(x, mask=inside, other=0)
        negative += tl.load(x + parts, mask=inside, other=0)
        count += tl.load(x + 2 * parts, mask=inside, other=0)
        if BALANCE:
            V = tl.load(x[None, :] + (k + SUMS)[:, None] * parts, mask=(k < K)[:, None] & inside[None, :], other=0)
            usage += tl.sum(V.to(tl.float64), 1)
    M = tl.sum(count)
    value = tl.sum(positive) / M
    if LOSS != "infonce":
        value += tl.sum(negative) / (M * n)
    if BALANCE:
        mean = (usage / M).to(tl.float32)
        # The clamp keeps the slope of x log x finite for an unused class, as in the reference.
        tiny: tl.constexpr = 1.17549435e-38
        log = tl.log(tl.where(mean < tiny, tiny, mean))
        used = tl.where(k < K, mean * log, 0)
        value += balance * (tl.log(tl.full((), K, tl.float32)) + tl.sum(used))
        slope = tl.cast(balance, tl.float32) * (log + (mean >= tiny).to(tl.float32))
        tl.store(share + 1 + k, slope, mask=k < K)
    tl.store(share, tl.where(M > 0, 1 / M, 0).to(tl.float32))
    tl.store(loss, value.to(tl.float32))
