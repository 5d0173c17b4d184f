"""Recorded graphs. They must not contain a loop over images, whose number would be that of the
example.
"""

import torch
from torch import Tensor


def recorded() -> bool:
    """Whether a graph is being recorded (`torch.jit.trace`, `torch.export`, `torch.compile`)."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def parts(batch: Tensor) -> list[slice]:
    """Slices of a batch: image by image, which bounds the memory, or the whole batch while a graph
    is recorded.
    """
    return [slice(None)] if recorded() or len(batch) == 0 else [slice(b, b + 1) for b in range(len(batch))]
