"""Loads, stores and operations of the launches of the mutual-information loss, for the cost model."""

import triton

from .launch import Cost, Launch, num_bytes, product_operations


class _Sizes:
    """Sizes and bytes that the launches have in common."""

    def __init__(self, started: Launch):
        a, c = started.arguments, started.constexprs
        self.a, self.c = a, c
        self.B, self.n, self.P, self.C, self.K = a["B"], a["n"], a["P"], c["C"], c["K"]
        self.tiles = triton.cdiv(self.P, c["BLOCK_P"])
        self.whole = c["BLOCK_C"] >= self.C
        self.f, self.G, self.g0 = num_bytes(a["features"]), num_bytes(a["G"]), num_bytes(a["g0"])
        self.row = self.C * a["G"].element_size()  # of G
        self.bias = 0 if a["g0"] is None else 4
        self.valid = num_bytes(a["valid"])
        self.lse = num_bytes(a.get("lse"))
        self.scores = self.B * self.K * self.P * 4  # K floats a position
        self.same_position = c["LOSS"] == "same_position"

    def product(self, m: int, n: int, k: int) -> int:
        return product_operations(m, n, k, self.c["PRECISION"])

    def forming(self, images: int) -> int:
        """Operations of the scores of a tile with `images` images."""
        c = self.c
        return self.product(images * c["BLOCK_K"], c["BLOCK_P"], triton.cdiv(self.C, c["BLOCK_C"]) * c["BLOCK_C"])

    def own(self) -> tuple[int, int, int]:
        """Images in the own block, rows of G of the partners beyond it, and blocks of these
        partners.
        """
        own = min(self.c["OWN_IMAGES"], 1 + self.n)
        left = self.n + 1 - max(self.c["OWN_IMAGES"], 1) if self.c["MORE"] else 0
        return own, left * self.K, triton.cdiv(left, self.c["IMAGES"])


def forward_cost(started: Launch) -> Cost:
    s = _Sizes(started)
    a, c = s.a, s.c
    own, more_rows, blocks = s.own()
    beside = s.same_position and c["OWN_IMAGES"] == 2  # the partner's own scores
    f_reads = (1 if s.whole else (own > 0) + blocks) + beside
    rows = (own + beside) * s.K + more_rows
    V = a["V"] is not None
    return Cost(
        loads=f_reads * s.f
        + s.B * s.tiles * rows * (s.row + s.bias)
        + s.valid
        + (more_rows * s.B * s.P * 4 if V else 0),
        stores=(s.scores if V and own else 0)
        + (0 if a["kept"] is None else own * s.scores)
        + s.lse
        + started.programs * (3 + s.K) * 4,
        distinct_loads=s.f + s.G + s.g0 + s.valid + (s.scores if V and blocks else 0),
        operations=s.B
        * s.tiles
        * ((own > 0) * s.forming(c["OWN_IMAGES"]) + beside * s.forming(1) + blocks * s.forming(c["IMAGES"])),
    )


def value_cost(started: Launch) -> Cost:
    c = started.constexprs
    sums = c["K"] if c["BALANCE"] else 0
    read = started.arguments["parts"] * (3 + sums) * 4
    return Cost(loads=read, stores=(2 + sums) * 4, distinct_loads=read)


def image_cost(started: Launch) -> Cost:
    s = _Sizes(started)
    a, c = s.a, s.c
    own, more_rows, blocks = s.own()
    chunks = triton.cdiv(s.C, c["BLOCK_D"])
    kept, pair = a["kept"] is not None, s.same_position and c["OWN_IMAGES"] == 2
    once = 4 + a["upstream"].element_size() + (s.K * 4 if c["BALANCE"] else 0)
    a_tile = s.B * s.tiles
    by_partners = num_bytes(a["by_partners"])

    loads = started.programs * once + chunks * (s.valid * (1 + pair) + s.lse + by_partners)
    if s.whole:
        loads += started.programs * own * s.K * s.row + s.f
    elif c["NEED_G"]:
        loads += s.f
    if kept:
        loads += chunks * (own + 2 * pair) * s.scores
    else:
        loads += chunks * a_tile * ((own + 2 * pair) * s.K * s.bias + (2 * pair) * s.K * s.row)
        loads += chunks * 2 * pair * s.f
        if not s.whole:
            loads += chunks * (s.f + a_tile * own * s.K * s.row)
    operations = (not kept) * (s.forming(c["OWN_IMAGES"]) + 2 * pair * s.forming(1))
    operations += c["NEED_G"] * s.product(c["BLOCK_D"], c["OWN_IMAGES"] * c["BLOCK_K"], c["BLOCK_P"])
    if c["NEED_F"]:
        operations += s.product(c["BLOCK_P"], c["BLOCK_D"], c["OWN_IMAGES"] * c["BLOCK_K"])
        operations += blocks * s.forming(c["IMAGES"])
        operations += blocks * s.product(c["BLOCK_P"], c["BLOCK_D"], c["IMAGES"] * c["BLOCK_K"])
        loads += a_tile * (0 if s.whole else own * s.K * s.row) + a_tile * more_rows * s.row
        loads += chunks * a_tile * more_rows * s.bias + (chunks * s.B * more_rows * s.P * 4 if s.same_position else 0)
        if not s.whole:
            loads += chunks * (blocks * s.f + a_tile * more_rows * s.row)
    parts = a["splits"] * s.B * own * s.K * 4
    return Cost(
        loads=loads,
        stores=(s.f if c["NEED_F"] else 0) + (parts * s.C if c["NEED_G"] else 0) + (0 if a["dg0"] is None else parts),
        distinct_loads=once
        + (s.f if s.whole or not kept or c["NEED_G"] else 0)
        + (s.G if s.whole or not kept or c["NEED_F"] else 0)
        + (0 if kept else s.g0)
        + s.valid
        + s.lse
        + by_partners
        + (own * s.scores if kept else 0)
        + (s.scores if blocks and c["NEED_F"] and s.same_position else 0),
        operations=a_tile * chunks * operations,
    )


def partner_cost(started: Launch) -> Cost:
    s = _Sizes(started)
    a, c = s.a, s.c
    chunks = triton.cdiv(s.C, c["BLOCK_D"]) if c["NEED_G"] else 1
    image_blocks = triton.cdiv(s.B, c["IMAGES"])
    steps = min(s.n + c["IMAGES"] - 1, s.B)
    passes = image_blocks * steps / s.B  # over all positions
    once = 4 + a["upstream"].element_size()
    per_image = (s.valid + s.lse) // s.B
    loads = started.programs * once + chunks * steps * (image_blocks * per_image + s.tiles * s.g0)
    if s.whole:
        loads += round(passes * s.f) + a["splits"] * s.G
    else:
        loads += round(passes * s.f) * (chunks + c["NEED_G"]) + chunks * steps * s.tiles * s.G
    V = s.scores if s.same_position else 0
    parts = a["splits"] * s.B * s.K * 4
    return Cost(
        loads=loads + chunks * V,
        stores=V + (parts * s.C if c["NEED_G"] else 0) + (0 if a["dg0"] is None else parts),
        distinct_loads=once + s.f + s.G + s.g0 + s.valid + s.lse + V,
        operations=s.tiles
        * image_blocks
        * steps
        * chunks
        * (s.forming(c["IMAGES"]) + c["NEED_G"] * s.product(c["BLOCK_D"], c["IMAGES"] * c["BLOCK_K"], c["BLOCK_P"])),
    )
