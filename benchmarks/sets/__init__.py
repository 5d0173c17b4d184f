"""Drawn sets with exact labels, for regression tests of the recipe. Real images decide about it."""

from .drawing import DrawnSet
from .landscapes import LANDSCAPES
from .single_difficulties import GRAINS, NOISY_COLOURS, RADAR, UNEQUAL_CLASSES, UNEVEN_LIGHT
from .texture_mosaics import TEXTURE_MOSAICS
from .tissue_sections import TISSUE_SECTIONS

DRAWN_SETS: dict[str, DrawnSet] = {
    drawn.name: drawn
    for drawn in (
        LANDSCAPES, TEXTURE_MOSAICS, TISSUE_SECTIONS, RADAR, NOISY_COLOURS, UNEQUAL_CLASSES, UNEVEN_LIGHT, GRAINS,
    )
}  # fmt: skip
