"""Loops that a recorded graph must not contain: it would repeat the example's number of images."""

import torch
from torch import Tensor


def recorded() -> bool:
    """Whether a graph is being recorded (`torch.jit.trace`, `torch.export`, `torch.compile`)."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def parts(batch: Tensor) -> list[slice]:
    """The images of a batch one by one, which bounds the memory; all at once while a graph is
    recorded.
    """
    return [slice(None)] if recorded() or len(batch) == 0 else [slice(b, b + 1) for b in range(len(batch))]
