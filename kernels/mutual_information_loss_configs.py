"""Tile shapes of the kernels of the mutual-information loss, with their reasons; see `configs`.

The variant of a key is "PRECISION MODE LOSS". The kernels hold operands whole in registers, so the
tile depends on how products are formed ("float16" is widened and multiplied as tf32) and on what
else is live. MODE is "complete" if the own block holds all partners, "kept" if its scores were kept
as well, "more" if partners follow. K of a key is padded to a power of two, at least 16.
"""

from .configs import ANY, TABLE, Config, Key, Row

REGISTERS = 255  # without a limit ptxas spills a few bytes to stay below 80, 128 or 168 registers


def _rows(kernel: str, *rows: tuple, warps: int = 8) -> list[Row]:
    """Rows of (precisions, modes, losses, maximum K, maximum C, blocks, stages, reason); "" fits
    any.

    The blocks are BLOCK_P, BLOCK_C, IMAGES and, of gradients, BLOCK_D.
    """

    def fits(precisions: str, modes: str, losses: str, max_K: int, max_C: int):
        def fit(key: Key) -> bool:
            words = zip(key.variant.split(), (precisions, modes, losses), strict=True)
            known = all(not accepted or word in accepted.split() for word, accepted in words)
            return known and max_K >= key.K and max_C >= key.C

        return fit

    names = ("BLOCK_P", "BLOCK_C", "IMAGES", "BLOCK_D")
    return [
        Row(kernel, fits(*key), Config(dict(zip(names, blocks, strict=False)), warps, stages, REGISTERS), reason)
        for *key, blocks, stages, reason in rows
    ]


OTHERS = "infonce reassigned"
# One negative at the same position and few classes: memory is the limit. What counts is how much of
# the features a multiprocessor loads ahead (`python -m infoseg_fast.bench.latency`).
ONE = "same_position", 16, ANY
TABLE += [
    *_rows(
        "loss_forward",
        ("tf32x3", "complete kept", *ONE, (64, 32, 2), 4, "two programs with 24 KB ahead; of 8 warps one fits"),
        ("ieee", "complete kept", *ONE, (64, 64, 4), 4, "as tf32x3; of 8 warps one fits at C = 512"),
        warps=4,
    ),
    *_rows(
        "loss_image_gradient",
        ("tf32x3", "kept", *ONE, (32, 32, 1, 64), 3, "two programs with 16 KB ahead; 64 positions spill on sm_80"),
        ("tf32x3", "complete", *ONE, (32, 32, 1, 64), 5, "two programs with 16 KB ahead, in tiles of 4 KB"),
        ("ieee", "complete kept", *ONE, (64, 64, 1, 64), 3, "two programs with 16 KB ahead; with 32 positions 12"),
        warps=4,
    ),
    *_rows(
        "loss_forward",
        ("tf32x3", "", "", 16, ANY, (64, 32, 2), 2, "32 channels: tf32x3 holds both halves of an operand"),
        ("tf32x3", "", "", 32, ANY, (64, 16, 1), 2, "half the channels: an own block of 64 columns"),
        ("tf32x3", "", "", 64, ANY, (32, 16, 1), 2, "[64, 32] scores a program"),
        ("tf32x3", "", "", 256, ANY, (16, 16, 1), 2, "[256, 16] scores a program, the least for a product"),
        ("tf32 float16", "more", OTHERS, 16, 128, (64, 128, 2), 2, "all channels of a tile stay for every partner"),
        ("tf32 float16", "", "", 16, ANY, (64, 32, 4), 2, "64 columns of partners, the least for wgmma"),
        ("tf32 float16", "", "", 32, ANY, (32, 32, 2), 2, "64 columns; 64 positions spill beside an own block of 64"),
        ("tf32 float16", "", "", 64, ANY, (32, 32, 1), 2, "64 columns of one partner"),
        ("tf32 float16", "", "", 256, ANY, (16, 32, 1), 2, "[256, 16] scores a program, the least for a product"),
        ("ieee", "more", OTHERS, 16, 128, (64, 128, 4), 2, "all channels of a tile stay for every partner"),
        ("ieee", "more", "", 16, ANY, (128, 64, 4), 2, "128 positions share each block of global features"),
        ("ieee", "", "", 16, ANY, (64, 64, 4), 2, "two programs a multiprocessor"),
        ("ieee", "", "", 32, ANY, (64, 64, 2), 2, "64 columns of partners, the least for wgmma"),
        ("ieee", "", "", 64, ANY, (64, 64, 1), 2, "64 columns of one partner"),
        ("ieee", "", "", 256, ANY, (16, 64, 1), 2, "[256, 16] scores a program, the least for a product"),
    ),
    *_rows(
        "loss_image_gradient",
        ("tf32x3", "kept", "", 32, ANY, (32, 32, 1, 64), 2, "64 channels of dG for wgmma; 64 positions spill"),
        ("tf32x3", "complete", "", 16, ANY, (32, 32, 1, 64), 2, "as with kept scores"),
        ("tf32x3", "complete", "", 32, ANY, (16, 16, 1, 64), 2, "32 positions spill at K > 16 on sm_80"),
        ("tf32x3", "more", "", 16, ANY, (32, 32, 2, 64), 2, "64 columns or 128 channels of df spill on sm_80"),
        ("tf32x3", "more", "", 32, ANY, (32, 16, 1, 64), 2, "32 columns, and half the channels a stage"),
        ("tf32x3", "more", "", 64, ANY, (16, 16, 1, 64), 2, "64 columns of the own block and of each partner"),
        ("tf32x3", "more", "", 256, ANY, (16, 16, 1, 32), 2, "[256, 16] coefficients and as large a part of dG"),
        ("tf32 float16", "kept", "", 32, ANY, (64, 32, 1, 64), 2, "64 positions and channels, the least for wgmma"),
        ("tf32 float16", "complete", "", 16, ANY, (32, 32, 1, 64), 2, "128 channels spill on sm_80"),
        ("tf32 float16", "complete", "", 32, ANY, (16, 16, 1, 64), 2, "32 positions spill at K > 16 on sm_80"),
        ("tf32 float16", "more", OTHERS, 16, 128, (64, 128, 2, 128), 2, "f is read once and kept for every partner"),
        ("tf32 float16", "more", OTHERS, 16, ANY, (32, 32, 4, 256), 2, "scores are formed anew for every 256 channels"),
        ("tf32 float16", "more", "", 16, ANY, (32, 32, 2, 128), 2, "half the columns and channels beside V"),
        ("tf32 float16", "more", "", 32, ANY, (32, 32, 1, 64), 2, "64 positions spill on sm_90"),
        ("tf32 float16", "more", "", 64, ANY, (16, 32, 1, 64), 2, "64 columns of the own block and of each partner"),
        ("tf32 float16", "more", "", 256, ANY, (16, 16, 1, 32), 2, "[256, 16] coefficients and as large a part of dG"),
        ("ieee", "kept", "", 16, ANY, (64, 64, 1, 64), 2, "128 channels spill on sm_80 where 8 does not divide P"),
        ("ieee", "kept", "", 32, ANY, (64, 64, 1, 64), 2, "128 channels by 64 columns of dG would spill"),
        ("ieee", "complete", "same_position", 16, ANY, (32, 64, 1, 64), 2, "64 positions spill on sm_80"),
        ("ieee", "complete", "", 16, ANY, (64, 64, 1, 64), 2, "64 positions and channels, the least for wgmma"),
        ("ieee", "complete", "", 32, ANY, (16, 64, 1, 64), 1, "32 positions or two stages spill at K > 16"),
        ("ieee", "more", "", 16, 128, (32, 128, 4, 128), 2, "f is read once and kept for every partner"),
        ("ieee", "more", OTHERS, 16, ANY, (32, 64, 4, 256), 2, "scores are formed anew for every 256 channels"),
        ("ieee", "more", "", 16, ANY, (64, 64, 4, 128), 2, "256 channels spill beside the partners' V"),
        ("ieee", "more", "", 32, ANY, (64, 64, 1, 128), 2, "64 columns spill beside the own block's 32"),
        ("ieee", "more", "", 64, ANY, (32, 64, 1, 64), 2, "64 columns of the own block and of each partner"),
        ("ieee", "more", "", 256, ANY, (16, 32, 1, 32), 2, "[256, 16] coefficients and as large a part of dG"),
    ),
    *_rows(
        "loss_partner_gradient",
        ("tf32x3", "", OTHERS, 16, ANY, (64, 32, 1, 256), 2, "scores are formed anew for every 256 channels"),
        ("tf32x3", "", "", 16, ANY, (64, 32, 1, 128), 2, "256 channels spill beside V on sm_80"),
        ("tf32x3", "", "", 32, ANY, (32, 32, 1, 64), 2, "32 columns: both halves of them are held"),
        ("tf32x3", "", "", 64, ANY, (32, 16, 1, 64), 2, "[64, 32] scores a program"),
        ("tf32x3", "", "", 256, ANY, (16, 16, 1, 32), 2, "[256, 16] scores a program"),
        ("float16", "", OTHERS, 16, 128, (32, 128, 2, 128), 2, "64 positions, widened to float32, spill on sm_80"),
        ("tf32", "", OTHERS, 16, 128, (64, 128, 2, 128), 2, "one read of f gives scores and dG"),
        ("tf32 float16", "", OTHERS, 16, ANY, (64, 32, 4, 256), 2, "scores are formed anew for every 256 channels"),
        ("tf32 float16", "", "", 16, 128, (64, 32, 2, 128), 2, "all channels at once spill beside V on sm_80"),
        ("tf32 float16", "", "", 16, ANY, (64, 32, 2, 256), 2, "as above, with half the columns beside V"),
        ("tf32 float16", "", "", 32, ANY, (64, 32, 1, 128), 2, "32 columns, as with two images of 16"),
        ("tf32 float16", "", "", 64, ANY, (32, 32, 1, 64), 2, "64 columns of one partner"),
        ("tf32 float16", "", "", 256, ANY, (16, 16, 1, 32), 2, "[256, 16] scores a program"),
        ("ieee", "", OTHERS, 16, 128, (64, 128, 4, 128), 2, "one read of f gives scores and dG"),
        ("ieee", "", OTHERS, 16, ANY, (64, 64, 4, 256), 2, "scores are formed anew for every 256 channels"),
        ("ieee", "", "", 16, 128, (64, 64, 4, 128), 2, "all channels at once spill beside V"),
        ("ieee", "", "", 16, ANY, (64, 64, 2, 256), 2, "as above, with half the columns beside V"),
        ("ieee", "", "", 32, ANY, (64, 64, 2, 64), 2, "64 columns, the least for wgmma"),
        ("ieee", "", "", 64, ANY, (32, 64, 1, 64), 2, "64 columns of one partner"),
        ("ieee", "", "", 256, ANY, (16, 32, 1, 32), 2, "[256, 16] scores a program"),
    ),
]
