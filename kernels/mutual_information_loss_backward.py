"""Backward pass: df, dG and dg0 of the loss from the gradient by the scores (identity 3 of the
method).

`loss_image_gradient`: a program owns an image, a chunk of channels and every splits-th tile of
positions. From one read of f it computes the coefficients of the scores with the own image and the
partners beside it, multiplies them out to df, and sums its part of the dG of these images in
registers. It adds the other partners to df block by block.

`loss_partner_gradient`: a program owns the columns of some images and runs over the positions of
all images that have one of them as a partner. It gives the rest of dG and, with same_position, the
gradient by the partner's own scores.

Coefficients are those of a sum. df and the parts of dG are multiplied by upstream / M when they are
written, and `reduction.sum_partials` adds the parts in a fixed order.
"""

import triton.language as tl

from .launch import kernel
from .mutual_information_loss_costs import image_cost, partner_cost
from .mutual_information_loss_tiles import (
    at_same_position,
    feature_tile,
    global_tile,
    kept_row,
    log_sum_exp,
    own_coefficients,
    partner_coefficients,
    partner_columns,
    position_tile,
    scores,
    scores_of_partner,
    softmax,
    times_global,
)
from .tiles import divided, feature_offsets, over_channels, over_positions, product


def _image_loop(c):
    """With kept scores the one loop is that over positions; they are None in c without."""
    return over_channels(c) if "kept" in c else over_positions(c)


@kernel(products=True, wide_loads=True, cost=image_cost, feature_loop=_image_loop)
def loss_image_gradient(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    g0,  # [B, K] or None
    valid,  # [B, P] or None
    V,  # [B, K, P] probabilities; None unless same_position with MORE
    by_partners,  # [B, K, P] gradient by z of the terms in which the image is a partner; None as V
    lse,  # [B, P]; None unless infonce with MORE
    kept,  # [B, own, K, P] scores of the own block; None: they are computed again
    share,  # [1 + K]: 1 / M, then the gradient of the balance term by V
    upstream,  # []
    df,  # as features, or None
    dG,  # [own * splits, B, K, C] or None: own = min(OWN_IMAGES, 1 + n)
    dg0,  # [own * splits, B, K] or None
    splits: tl.int32, B: tl.int32, n: tl.int32, P: tl.int32, w: tl.int32,
    channels: tl.int32,  # C
    stride_b: tl.int64, stride_c: tl.int64, stride_y: tl.int64, stride_x: tl.int64, df_stride_b: tl.int64,
    df_stride_c: tl.int64, df_stride_y: tl.int64, df_stride_x: tl.int64, tau: tl.float64, C: tl.constexpr,
    K: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, DF_LAYOUT: tl.constexpr, DF_ALIGN: tl.constexpr,
    ALIGN_P: tl.constexpr, PRECISION: tl.constexpr, LOSS: tl.constexpr, OWN_IMAGES: tl.constexpr,
    MORE: tl.constexpr, BALANCE: tl.constexpr, NEED_F: tl.constexpr, NEED_G: tl.constexpr, BLOCK_K: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK_C: tl.constexpr,  # channels of a product of scores
    BLOCK_D: tl.constexpr,  # channels of the gradients; BLOCK_C if that is all channels
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    P = divided(P, ALIGN_P)
    tau = tl.cast(tau, tl.float32)
    chunks: tl.constexpr = (C + BLOCK_D - 1) // BLOCK_D if C > 0 else 1
    chunk = tl.program_id(0) % chunks
    b = tl.program_id(0) // chunks % B
    split = tl.program_id(0) // chunks // B
    image = features + b.to(tl.int64) * divided(stride_b, ALIGN)
    scale = tl.load(share) * tl.load(upstream).to(tl.float32)
    usage = None
    if BALANCE:
        k = tl.arange(0, BLOCK_K)
        usage = tl.load(share + 1 + k, mask=k < K, other=0)
    own, own_live = partner_columns(b, 0, B, n, K, OWN_IMAGES, BLOCK_K)
    own_g = None
    if C <= BLOCK_C:
        own_g = global_tile(G, own, own_live, 0, C, BLOCK_C)
    dG_sum = tl.zeros((BLOCK_D, OWN_IMAGES * BLOCK_K), tl.float32)
    dg0_sum = tl.zeros((OWN_IMAGES * BLOCK_K,), tl.float32)
    # disable_licm: loop-invariant operands, split for tf32x3, would stay in registers and spill.
    for tile in tl.range(split, tl.cdiv(P, BLOCK_P), splits, disable_licm=True):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = p < P
        ok = inside
        if valid is not None:
            ok = tl.load(valid + b.to(tl.int64) * P + p, mask=inside, other=0) != 0
        f = None
        if C <= BLOCK_C:
            f = feature_tile(image, 0, p, inside, stride_c, stride_y, stride_x, w, C, LAYOUT, ALIGN, BLOCK_C)
            f = f.to(G.dtype.element_ty)
        if kept is not None:
            own_q = position_tile(kept, kept_row(b, n, K, OWN_IMAGES, BLOCK_K), own_live, p, inside, P)
        else:
            own_q = scores(
                f, own_g, image, p, inside, stride_c, stride_y, stride_x, w, G, g0, own, own_live, channels, C,
                LAYOUT, ALIGN, PRECISION, BLOCK_C,
            )  # fmt: skip
        top = None
        if LOSS == "infonce":
            if MORE:
                top = tl.load(lse + b.to(tl.int64) * P + p, mask=inside, other=0)
            else:
                largest, total = log_sum_exp(own_q, own_live)
                top = largest + tl.log(total)
        z = scores_of_partner(own_q, 0, OWN_IMAGES, BLOCK_K)
        V_own = softmax(z, tau, K)
        own_a = own_coefficients(z, V_own, usage, tau, LOSS == "infonce", BALANCE)
        if LOSS == "infonce" and OWN_IMAGES == 1:
            own_a += tl.exp(z - top[:, None])
        own_a = tl.where(ok[:, None], own_a, 0)
        if LOSS == "same_position":
            # An invalid position may be the partner of a valid one.
            if OWN_IMAGES == 1:
                own_a += position_tile(by_partners, own, own_live, p, inside, P)
            else:
                next_image, previous = (b + 1) % B, (b + B - 1) % B
                row_z, live_z = partner_columns(next_image, 0, B, 0, K, 1, BLOCK_K)
                row_w, live_w = partner_columns(b, 0, B, 0, K, 1, BLOCK_K)
                if kept is not None:
                    k = tl.arange(0, BLOCK_K)
                    next_z = position_tile(kept, next_image * 2 * K + k, live_z, p, inside, P)
                    previous_w = position_tile(kept, (previous * 2 + 1) * K + k, live_w, p, inside, P)
                else:
                    next_z = scores(
                        None, None, features + next_image.to(tl.int64) * divided(stride_b, ALIGN), p, inside,
                        stride_c, stride_y, stride_x, w, G, g0, row_z, live_z, channels, C, LAYOUT, ALIGN, PRECISION,
                        BLOCK_C,
                    )  # fmt: skip
                    previous_w = scores(
                        None, None, features + previous.to(tl.int64) * divided(stride_b, ALIGN), p, inside, stride_c,
                        stride_y, stride_x, w, G, g0, row_w, live_w, channels, C, LAYOUT, ALIGN, PRECISION, BLOCK_C,
                    )  # fmt: skip
                previous_ok = inside
                if valid is not None:
                    previous_ok = tl.load(valid + previous.to(tl.int64) * P + p, mask=inside, other=0) != 0
                _, _, by_previous = at_same_position(previous_w, V_own, tau, n)
                own_a += tl.where(previous_ok[:, None], by_previous, 0)
                next_w = scores_of_partner(own_q, 1, OWN_IMAGES, BLOCK_K)
                _, by_next_w, _ = at_same_position(next_w, softmax(next_z, tau, K), tau, n)
                by_next_w = tl.where(ok[:, None], by_next_w, 0)
                i = tl.arange(0, OWN_IMAGES)[None, :, None]
                own_a = tl.where(i == 0, own_a[:, None, :], tl.where(i == 1, by_next_w[:, None, :], 0))
                own_a = tl.reshape(own_a, (BLOCK_P, OWN_IMAGES * BLOCK_K))
        elif OWN_IMAGES > 1:
            j = tl.arange(0, OWN_IMAGES * BLOCK_K) // BLOCK_K
            own_a = tl.where((tl.arange(0, OWN_IMAGES) == 0)[None, :, None], own_a[:, None, :], 0)
            own_a = tl.reshape(own_a, (BLOCK_P, OWN_IMAGES * BLOCK_K))
            by_partner, _ = partner_coefficients(own_q, None, top, tau, n, K, LOSS, OWN_IMAGES, BLOCK_K)
            counts = own_live[None, :] & ok[:, None]
            own_a += tl.where(counts if LOSS == "infonce" else counts & (j >= 1)[None, :], by_partner, 0)
        own_a = tl.where(own_live[None, :], own_a, 0)
        dg0_sum += tl.sum(own_a, 0)
        own_a = own_a.to(G.dtype.element_ty)
        if NEED_G:
            f_d = f
            if C > BLOCK_C:
                f_d = feature_tile(
                    image, chunk * BLOCK_D, p, inside, stride_c, stride_y, stride_x, w, C, LAYOUT, ALIGN, BLOCK_D
                ).to(G.dtype.element_ty)
            dG_sum = product(f_d, own_a, dG_sum, PRECISION)
        if NEED_F:
            df_tile = times_global(
                own_a, own_g, G, b, own, own_live, chunk * BLOCK_D, tl.zeros((BLOCK_P, BLOCK_D), tl.float32), C, K,
                PRECISION, BLOCK_C, BLOCK_D,
            )  # fmt: skip
            if MORE:
                for first in range(OWN_IMAGES, n + 1, IMAGES):
                    row, live = partner_columns(b, first, B, n, K, IMAGES, BLOCK_K)
                    g = None
                    if C <= BLOCK_C:
                        g = global_tile(G, row, live, 0, C, BLOCK_C)
                    q = scores(
                        f, g, image, p, inside, stride_c, stride_y, stride_x, w, G, g0, row, live, channels, C,
                        LAYOUT, ALIGN, PRECISION, BLOCK_C,
                    )  # fmt: skip
                    R = position_tile(V, row, live, p, inside, P) if LOSS == "same_position" else None
                    a, _ = partner_coefficients(q, R, top, tau, n, K, LOSS, IMAGES, BLOCK_K)
                    a = tl.where(ok[:, None] & live[None, :], a, 0).to(G.dtype.element_ty)
                    df_tile = times_global(
                        a, g, G, (b + first) % B, row, live, chunk * BLOCK_D, df_tile, C, K, PRECISION, BLOCK_C, BLOCK_D
                    )
            c = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
            to = df + b.to(tl.int64) * divided(df_stride_b, DF_ALIGN)
            to += feature_offsets(c, p, df_stride_c, df_stride_y, df_stride_x, w, DF_LAYOUT, DF_ALIGN)
            df_tile = tl.trans(df_tile * scale).to(df.dtype.element_ty)
            tl.store(to, df_tile, mask=(c < C)[:, None] & inside[None, :])

    i = tl.arange(0, OWN_IMAGES * BLOCK_K) // BLOCK_K
    row = (i * splits + split).to(tl.int64) * B * K + own
    if NEED_G:
        c = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        tl.store(dG + row[None, :] * C + c[:, None], dG_sum * scale, mask=own_live[None, :] & (c < C)[:, None])
    if dg0 is not None and chunk == 0:
        tl.store(dg0 + row, dg0_sum * scale, mask=own_live)


@kernel(products=True, wide_loads=True, cost=partner_cost)
def loss_partner_gradient(
    features,  # [B, C, h, w], any strides
    G,  # [B, K, C]
    g0,  # [B, K] or None
    valid,  # [B, P] or None
    V,  # [B, K, P] probabilities; None unless same_position
    by_partners,  # [B, K, P] written; None unless same_position
    lse,  # [B, P]; None unless infonce
    share,  # [1 + K]: 1 / M first
    upstream,  # []
    dG,  # [splits, B, K, C] or None
    dg0,  # [splits, B, K] or None
    splits: tl.int32,
    first_partner: tl.int32,  # `loss_image_gradient` handles the partners before it
    B: tl.int32, n: tl.int32, P: tl.int32, w: tl.int32,
    channels: tl.int32,  # C
    stride_b: tl.int64, stride_c: tl.int64, stride_y: tl.int64, stride_x: tl.int64, tau: tl.float64,
    C: tl.constexpr, K: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, ALIGN_P: tl.constexpr,
    PRECISION: tl.constexpr, LOSS: tl.constexpr, NEED_G: tl.constexpr, BLOCK_K: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    P = divided(P, ALIGN_P)
    tau = tl.cast(tau, tl.float32)
    scale = tl.load(share) * tl.load(upstream).to(tl.float32)
    chunks: tl.constexpr = (C + BLOCK_D - 1) // BLOCK_D if NEED_G else 1
    chunk = tl.program_id(0) % chunks
    split = tl.program_id(0) // chunks % splits
    first_image = tl.program_id(0) // chunks // splits * IMAGES
    # Columns of images first_image .. first_image + IMAGES - 1; images from B on are dead.
    row, live = partner_columns(first_image, 0, 2 * B, B - 1 - first_image, K, IMAGES, BLOCK_K)
    column_image = first_image + tl.arange(0, IMAGES * BLOCK_K) // BLOCK_K
    g = None
    if C <= BLOCK_C:
        g = global_tile(G, row, live, 0, C, BLOCK_C)
    dG_sum = tl.zeros((BLOCK_D, IMAGES * BLOCK_K), tl.float32)
    dg0_sum = tl.zeros((IMAGES * BLOCK_K,), tl.float32)
    # disable_licm: loop-invariant operands, split for tf32x3, would stay in registers and spill.
    for tile in tl.range(split, tl.cdiv(P, BLOCK_P), splits, disable_licm=True):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = p < P
        R = None
        if LOSS == "same_position":
            R = position_tile(V, row, live, p, inside, P)
        by_partners_sum = tl.zeros((BLOCK_P, IMAGES * BLOCK_K), tl.float32)
        for step in tl.range(tl.minimum(n + IMAGES - 1, B), disable_licm=True):
            b = (first_image - n + step + B) % B
            j = (column_image - b + B) % B
            image = features + b.to(tl.int64) * divided(stride_b, ALIGN)
            ok = inside
            if valid is not None:
                ok = tl.load(valid + b.to(tl.int64) * P + p, mask=inside, other=0) != 0
            f = None
            if C <= BLOCK_C:
                f = feature_tile(image, 0, p, inside, stride_c, stride_y, stride_x, w, C, LAYOUT, ALIGN, BLOCK_C)
                f = f.to(G.dtype.element_ty)
            top = None
            if LOSS == "infonce":
                top = tl.load(lse + b.to(tl.int64) * P + p, mask=inside, other=0)
            q = scores(
                f, g, image, p, inside, stride_c, stride_y, stride_x, w, G, g0, row, live, channels, C, LAYOUT, ALIGN,
                PRECISION, BLOCK_C,
            )  # fmt: skip
            a, by_softmax = partner_coefficients(q, R, top, tau, n, K, LOSS, IMAGES, BLOCK_K)
            counts = ok[:, None] & (live & (j >= first_partner) & (j <= n))[None, :]
            a = tl.where(counts, a, 0)
            if LOSS == "same_position":
                by_partners_sum += tl.where(counts, by_softmax, 0)
            dg0_sum += tl.sum(a, 0)
            if NEED_G:
                f_d = f
                if C > BLOCK_C:
                    f_d = feature_tile(
                        image, chunk * BLOCK_D, p, inside, stride_c, stride_y, stride_x, w, C, LAYOUT, ALIGN, BLOCK_D
                    ).to(G.dtype.element_ty)
                dG_sum = product(f_d, a.to(G.dtype.element_ty), dG_sum, PRECISION)
        if LOSS == "same_position" and chunk == 0:
            to = by_partners + row.to(tl.int64)[None, :] * P + p[:, None]
            tl.store(to, by_partners_sum, mask=live[None, :] & inside[:, None])
    part = split.to(tl.int64) * B * K + row
    if NEED_G:
        c = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        tl.store(dG + part[None, :] * C + c[:, None], dG_sum * scale, mask=live[None, :] & (c < C)[:, None])
    if dg0 is not None and chunk == 0:
        tl.store(dg0 + part, dg0_sum * scale, mask=live)
