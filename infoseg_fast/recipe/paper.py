"""The recipe of the InfoSeg paper (Harb and Knöbelreiter, 2021, arXiv 2110.03477)."""

from typing import Any, ClassVar

from . import COMMON_DEFAULTS
from .default import DefaultRecipe


class PaperRecipe(DefaultRecipe):
    """The Jensen-Shannon loss of the paper, without any other part of the default recipe.

    The paper leaves the negatives, the temperature, the sizes and the settings of the optimiser
    open. They are settings here.
    """

    defaults: ClassVar[dict[str, Any]] = dict(COMMON_DEFAULTS)
