"""Device functions of the loss kernels: columns, scores, and the terms of the loss in registers.

A program owns a tile of positions of image b. Its scores q are [BLOCK_P, N]. The N = IMAGES *
BLOCK_K columns are the K global features, padded to BLOCK_K, of IMAGES neighbouring partners.
`by_image` views q as [BLOCK_P, IMAGES, BLOCK_K], so a softmax over the classes of each partner is a
reduction over the last axis. Padded classes have score 0, since their global feature is read as 0,
and are masked where it matters.
"""

import triton
import triton.language as tl

from .tiles import feature_offsets, product


@triton.jit
def partner_columns(b, first, B, last, K: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows of G [B * K, C] of the columns of partners first .. first + IMAGES - 1 of image b, and a
    mask of live ones.

    Partner j of image b is image (b + j) mod B, b itself for j = 0. Partners above `last` are dead.
    -> [N], [N]
    """
    column = tl.arange(0, IMAGES * BLOCK_K)
    j, k = first + column // BLOCK_K, column % BLOCK_K
    live = (j <= last) & (k < K)
    return (b + j) % B * K + k, live


@triton.jit
def kept_row(b, n, K: tl.constexpr, OWN_IMAGES: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows of the kept scores [B * own * K, P] for the columns of image b's own block. -> [N]"""
    column = tl.arange(0, OWN_IMAGES * BLOCK_K)
    own = tl.minimum(OWN_IMAGES, 1 + n)
    return (b * own + column // BLOCK_K) * K + column % BLOCK_K


@triton.jit
def by_image(x, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr):  # [BLOCK_P, N] -> [BLOCK_P, IMAGES, BLOCK_K]
    return tl.reshape(x, (x.shape[0], IMAGES, BLOCK_K))


@triton.jit
def feature_tile(
    features, first, p, inside, stride_c, stride_y, stride_x, w, C: tl.constexpr, LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Channels first .. first + BLOCK - 1 of one image at positions p [BLOCK_P] -> [BLOCK,
    BLOCK_P].
    """
    c = first + tl.arange(0, BLOCK)
    offsets = feature_offsets(c, p, stride_c, stride_y, stride_x, w, LAYOUT, ALIGN)
    return tl.load(features + offsets, mask=(c < C)[:, None] & inside[None, :], other=0)


@triton.jit
def global_tile(G, row, live, first, C: tl.constexpr, BLOCK: tl.constexpr):
    """Channels first .. first + BLOCK - 1 of rows [N] of G [B * K, C] -> [N, BLOCK]."""
    c = first + tl.arange(0, BLOCK)
    return tl.load(G + row.to(tl.int64)[:, None] * C + c[None, :], mask=live[:, None] & (c < C)[None, :], other=0)


@triton.jit
def scores(
    f, g, features, p, inside, stride_c, stride_y, stride_x, w, G, g0, row, live, channels, C: tl.constexpr,
    LAYOUT: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """q[p, r] = <f_p, G_r> + g0_r in float32 -> [BLOCK_P, N].

    f [BLOCK_C, BLOCK_P] and g [N, BLOCK_C] are tiles of all channels, which a caller may pass if C
    <= BLOCK_C. Without them the channels are read here, in chunks of BLOCK_C.
    """
    q = tl.zeros((row.shape[0], p.shape[0]), tl.float32)
    if C <= BLOCK_C:
        if f is None:
            f = feature_tile(features, 0, p, inside, stride_c, stride_y, stride_x, w, C, LAYOUT, ALIGN, BLOCK_C)
            f = f.to(G.dtype.element_ty)
        if g is None:
            g = global_tile(G, row, live, 0, C, BLOCK_C)
        q = product(g, f, q, PRECISION)
    else:
        # The compiler would unroll a loop of known length, and spill.
        for first in range(0, channels, BLOCK_C):
            f_c = feature_tile(features, first, p, inside, stride_c, stride_y, stride_x, w, C, LAYOUT, ALIGN, BLOCK_C)
            g_c = global_tile(G, row, live, first, C, BLOCK_C)
            q = product(g_c, f_c.to(g_c.dtype), q, PRECISION)
    # As G f: pipelined loads of f are wide only if f is not transposed before the product.
    q = tl.trans(q)
    if g0 is not None:
        q += tl.load(g0 + row, mask=live, other=0)[None, :]
    return q


@triton.jit
def times_global(
    a, g, G, image, row, live, first, accumulator, C: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """accumulator + a G over columns [N], for channels first .. first + BLOCK - 1. a [BLOCK_P, N]

    g is the tile of G if C <= BLOCK_C, as in `scores`. `image` is the image of the columns, used if
    it is only one.
    """
    N: tl.constexpr = a.shape[1]
    if C <= BLOCK_C:
        return product(a, g, accumulator, PRECISION)
    elif N > 64 and PRECISION != "ieee":  # columns of one image: float32 columns do not fit the registers all at once
        for part in range(N // 64):
            k = part * 64 + tl.arange(0, 64)
            g_k = global_tile(G, image * K + k, k < K, first, C, BLOCK)
            accumulator = product(scores_of_partner(a, part, N // 64, 64), g_k, accumulator, PRECISION)
        return accumulator
    else:
        return product(a, global_tile(G, row, live, first, C, BLOCK), accumulator, PRECISION)


@triton.jit
def position_tile(x, row, live, p, inside, P):
    """x [B * K, P] at rows [N] and positions p -> [BLOCK_P, N]."""
    return tl.load(x + row.to(tl.int64)[None, :] * P + p[:, None], mask=live[None, :] & inside[:, None], other=0)


@triton.jit
def softplus(x):
    """log(1 + e^x) to the last bits of float32 at every x: 2 artanh(e / (2 + e)), since log(1 + e)
    loses a small e.
    """
    e = tl.exp(-tl.abs(x))
    s = e / (2 + e)
    t = s * s  # at most 1 / 9: the first omitted term is below 1e-9 of the sum
    series = 1 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11 + t * (1 / 13 + t * (1 / 15)))))))
    return tl.maximum(x, 0) + 2 * s * series


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def softmax(q, tau, K: tl.constexpr):
    """Softmax of tau q over the last axis, 0 at padded classes. q [..., BLOCK_K]"""
    axis: tl.constexpr = len(q.shape) - 1
    x = q * tau
    if q.shape[axis] > K:
        k = tl.arange(0, q.shape[axis])
        x = tl.where(k[None, :] < K if axis == 1 else k[None, None, :] < K, x, float("-inf"))
    e = tl.exp(x - tl.expand_dims(tl.max(x, axis), axis))
    return e / tl.expand_dims(tl.sum(e, axis), axis)


@triton.jit
def scores_of_partner(q, j, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr):
    """The scores with the j-th image of q. [BLOCK_P, N] -> [BLOCK_P, BLOCK_K]"""
    if IMAGES == 1:
        return q
    else:
        i = tl.arange(0, IMAGES)
        return tl.sum(tl.where((i == j)[None, :, None], by_image(q, IMAGES, BLOCK_K), 0), 1)


@triton.jit
def own_coefficients(z, V, usage, tau, INFONCE: tl.constexpr, BALANCE: tl.constexpr):
    """The gradient by z of the positive and the balance term, times the number of valid positions.

    z, V [BLOCK_P, BLOCK_K]; usage [BLOCK_K] is the gradient of the balance term by V, times that
    number.
    """
    T = tl.sum(V * z, 1)[:, None]
    slope = -1.0 if INFONCE else -sigmoid(-T)
    a = slope * V * (1 + tau * (z - T))
    if BALANCE:
        a += tau * V * (usage[None, :] - tl.sum(V * usage[None, :], 1)[:, None])
    return a


@triton.jit
def log_sum_exp(q, live):
    """Maximum of the live scores of each position, and the sum of exp(score - maximum). q [BLOCK_P,
    N]
    """
    q = tl.where(live[None, :], q, float("-inf"))
    top = tl.max(q, 1)
    return top, tl.sum(tl.exp(q - top[:, None]), 1)


@triton.jit
def at_same_position(w, V, tau, n):
    """jsd of one partner: T- = sum_k V_k w_k, its gradients by w and the partner's z. w, V
    [BLOCK_P, BLOCK_K]
    """
    T = tl.sum(V * w, 1)
    by_w = (sigmoid(T) / n)[:, None] * V
    return T, by_w, by_w * (tau * (w - T[:, None]))


@triton.jit
def partner_negatives(q, V, tau, K: tl.constexpr, LOSS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr):
    """Scores by image, their weights R, and T- = sum_k R_k q_k of each partner. R is V [BLOCK_P, N]
    if given.
    """
    q = by_image(q, IMAGES, BLOCK_K)
    R = by_image(V, IMAGES, BLOCK_K) if LOSS == "same_position" else softmax(q, tau, K)
    return q, R, tl.sum(R * q, 2)


@triton.jit
def partner_coefficients(
    q, V, lse, tau, n, K: tl.constexpr, LOSS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Gradients by the scores with partners and by the partner's own scores, times the number of
    valid positions.

    q [BLOCK_P, N], lse [BLOCK_P] -> [BLOCK_P, N] twice. The second is used with same_position only.
    """
    if LOSS == "infonce":
        a = tl.exp(q - lse[:, None])
        return a, a
    else:
        q, R, T = partner_negatives(q, V, tau, K, LOSS, IMAGES, BLOCK_K)
        g = (sigmoid(T) / n)[:, :, None] * R
        by_softmax = g * (tau * (q - T[:, :, None]))
        a = g if LOSS == "same_position" else g + by_softmax
        shape: tl.constexpr = (q.shape[0], IMAGES * BLOCK_K)
        return tl.reshape(a, shape), tl.reshape(by_softmax, shape)
