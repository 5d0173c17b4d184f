"""The public ops, one module each, and `OPS`, their records.

A public op checks its arguments once for all backends. Every module here with an `OP` is an op.
"""

import importlib
import pkgutil

from .record import Op


def _records() -> dict[str, Op]:
    """The records in the modules of this folder, by name, in alphabetical order."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "cpp"]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    records = [module.OP for module in modules if hasattr(module, "OP")]
    return {op.name: op for op in records}


OPS = _records()

from .assign import assign  # noqa: E402 (the function replaces the module of its name)
from .class_moments import class_moments  # noqa: E402
from .local_global_similarity import local_global_similarity  # noqa: E402
from .mutual_information_loss import mutual_information_loss  # noqa: E402
from .segment import segment  # noqa: E402
from .segment_and_count import segment_and_count  # noqa: E402

__all__ = [
    "OPS",
    "assign",
    "class_moments",
    "local_global_similarity",
    "mutual_information_loss",
    "segment",
    "segment_and_count",
]
