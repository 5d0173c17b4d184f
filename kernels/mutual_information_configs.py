"""Tile shapes of the kernels of the mutual-information loss, each with its reason; see `configs`.

The variant of a key is "PRECISION MODE LOSS": the kernels hold operands whole in registers, so what fits depends on how
products are formed and on what else is live. MODE is "complete" where the own block holds all partners, "kept" where
its scores were kept besides, "more" where partners follow.
"""

from .configs import TABLE, Config, Key, Row


# Told nothing, ptxas spills a few bytes to stay below 80, 128 or 168 registers, where one block more would fit.
REGISTERS = 255


def _rows(kernel: str, *rows: tuple) -> list[Row]:
    """Rows of (precision, modes, losses, most classes, blocks, warps, stages, reason); an empty string is any."""

    def fits(precision: str, modes: str, losses: str, most_classes: int):
        def fit(key: Key) -> bool:
            of_precision, mode, loss = key.variant.split()
            return (
                of_precision == precision
                and (not modes or mode in modes.split())
                and (not losses or loss in losses.split())
                and most_classes >= key.K
            )

        return fit

    return [
        Row(kernel, fits(precision, modes, losses, K), Config(blocks, warps, stages, REGISTERS), reason)
        for precision, modes, losses, K, blocks, warps, stages, reason in rows
    ]


def _blocks(P: int, C: int, images: int, D: int | None = None) -> dict[str, int]:
    blocks = {"BLOCK_P": P, "BLOCK_C": C, "IMAGES": images}
    return blocks if D is None else blocks | {"BLOCK_D": D}


TABLE += [
    *_rows(
        "loss_forward",
        ("tf32x3", "", "", 16, _blocks(64, 32, 2), 8, 2, ""),
        ("tf32x3", "", "", 32, _blocks(64, 16, 1), 8, 2, ""),
        ("tf32x3", "", "", 64, _blocks(64, 32, 1), 8, 2, ""),
        ("tf32x3", "", "", 256, _blocks(32, 16, 1), 8, 2, ""),
        ("tf32", "", "", 16, _blocks(64, 32, 4), 8, 2, ""),
        ("tf32", "", "", 32, _blocks(32, 32, 2), 8, 2, ""),
        ("tf32", "", "", 64, _blocks(64, 32, 1), 8, 2, ""),
        ("tf32", "", "", 256, _blocks(32, 32, 1), 8, 2, ""),
        ("ieee", "", "", 16, _blocks(64, 64, 4), 8, 2, ""),
        ("ieee", "", "", 32, _blocks(64, 64, 2), 8, 2, ""),
        ("ieee", "", "", 64, _blocks(64, 64, 1), 8, 2, ""),
        ("ieee", "", "", 256, _blocks(32, 64, 1), 8, 2, ""),
    ),
    *_rows(
        "loss_image_gradient",
        ("tf32x3", "kept", "", 32, _blocks(32, 32, 1, 64), 8, 2, ""),
        ("tf32x3", "complete", "", 16, _blocks(32, 32, 1, 64), 8, 2, ""),
        ("tf32x3", "complete", "", 32, _blocks(16, 16, 1, 64), 8, 2, ""),
        ("tf32x3", "more", "", 16, _blocks(32, 32, 2, 64), 8, 2, ""),
        ("tf32x3", "more", "", 32, _blocks(32, 32, 1, 64), 8, 2, ""),
        ("tf32x3", "more", "", 64, _blocks(32, 16, 1, 64), 8, 2, ""),
        ("tf32x3", "more", "", 256, _blocks(16, 16, 1, 32), 8, 2, ""),
        ("tf32", "kept", "", 32, _blocks(64, 32, 1, 64), 8, 2, ""),
        ("tf32", "complete", "", 16, _blocks(32, 32, 1, 64), 8, 2, ""),
        ("tf32", "complete", "", 32, _blocks(16, 16, 1, 64), 8, 2, ""),
        ("tf32", "more", "", 16, _blocks(64, 32, 2, 64), 8, 2, ""),
        ("tf32", "more", "", 32, _blocks(32, 32, 1, 64), 8, 2, ""),
        ("tf32", "more", "", 64, _blocks(32, 32, 1, 64), 8, 2, ""),
        ("tf32", "more", "", 256, _blocks(16, 16, 1, 64), 8, 2, ""),
        ("ieee", "kept", "", 32, _blocks(64, 64, 1, 128), 8, 2, ""),
        ("ieee", "complete", "", 16, _blocks(64, 64, 1, 64), 8, 2, ""),
        ("ieee", "complete", "", 32, _blocks(16, 64, 1, 64), 8, 1, ""),
        ("ieee", "more", "", 16, _blocks(64, 64, 4, 128), 8, 2, ""),
        ("ieee", "more", "", 32, _blocks(64, 64, 1, 128), 8, 2, ""),
        ("ieee", "more", "", 64, _blocks(64, 64, 1, 64), 8, 2, ""),
        ("ieee", "more", "", 256, _blocks(16, 32, 1, 64), 8, 2, ""),
    ),
    *_rows(
        "loss_partner_gradient",
        ("tf32x3", "", "", 16, _blocks(32, 32, 2, 64), 8, 2, ""),
        ("tf32x3", "", "", 32, _blocks(32, 32, 1, 64), 8, 2, ""),
        ("tf32x3", "", "", 64, _blocks(32, 32, 1, 64), 8, 2, ""),
        ("tf32x3", "", "", 256, _blocks(16, 16, 1, 32), 8, 2, ""),
        ("tf32", "", "", 16, _blocks(64, 32, 2, 128), 8, 2, ""),
        ("tf32", "", "", 32, _blocks(64, 32, 1, 128), 8, 2, ""),
        ("tf32", "", "", 64, _blocks(64, 32, 1, 64), 8, 2, ""),
        ("tf32", "", "", 256, _blocks(16, 16, 1, 64), 8, 2, ""),
        ("ieee", "", "", 16, _blocks(64, 64, 4, 64), 8, 2, ""),
        ("ieee", "", "", 32, _blocks(64, 64, 2, 64), 8, 2, ""),
        ("ieee", "", "", 64, _blocks(64, 64, 1, 64), 8, 2, ""),
        ("ieee", "", "", 256, _blocks(16, 32, 1, 64), 8, 2, ""),
    ),
]
