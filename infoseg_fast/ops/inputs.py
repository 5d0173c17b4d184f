"""Parts of the records of ops of features: schema, random arguments and usual sizes."""

from typing import Any

import torch
from torch import Tensor

from .record import Case

FOLDED = "Tensor features, Tensor G, Tensor? g0"  # first arguments of the kernels of these ops

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (FLOAT, BFLOAT, HALF, DOUBLE)
USUAL_DTYPES = (FLOAT, BFLOAT)

CPU: dict[str, Any] = {"uses": ("cpu",), "B": 16, "C": 128, "speedup": 1.8}
CUDA: dict[str, Any] = {"uses": ("cuda",)}
AOT: dict[str, Any] = {"uses": ("aot",)}
AOT_MORE: dict[str, Any] = {"uses": ("aot_more",)}
# The data sets of the paper, at a stride of 4.
COCO: dict[str, Any] = {"K": 15, "h": 32, "w": 32, "size": (128, 128)}
POTSDAM: dict[str, Any] = {"K": 6, "h": 50, "w": 50, "size": (200, 200)}
DATA_SETS = {"COCO-Stuff": COCO, "Potsdam": POTSDAM}


def normal(case: Case, seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers of these shapes, rounded to the dtype of the case, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(case.dtype) for shape in shapes]


def feature_arguments(case: Case, device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
    """features, global_features, weight and bias, whose similarities are of order 1."""
    scales = 1.0, case.spread, case.C**-0.5, 0.1
    shapes = (case.B, case.C, case.h, case.w), (case.B, case.K, case.D), (case.D, case.C), (case.D,)
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(shape, generator=generator).mul_(scale) for shape, scale in zip(shapes, scales, strict=True)]
    features, *others = (x.to(case.dtype).to(device, dtype) for x in numbers)
    if case.channels_last:
        features = features.to(memory_format=torch.channels_last)
    return [features, *others]


def folded_arguments(case: Case, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor | None]:
    """features, G and g0 of a kernel, uninitialised."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    shape = case.B, case.C, case.h, case.w
    features = torch.empty(shape, dtype=case.dtype, device=device, memory_format=layout)
    G = torch.empty(case.B, case.K, case.C, dtype=case.accumulation_dtype, device=device)
    return features, G, G.new_empty(case.B, case.K) if case.bias else None


def similarity_operations(case: Case, phase: str) -> int:
    """Floating-point operations of the product of features and global features, or of the two
    products of its gradient.
    """
    product = 2 * case.B * case.h * case.w * case.C * case.K
    return product if phase == "forward" else 2 * product


def roofline_cases(**more: Any) -> list[Case]:
    """Cases of the data sets of the paper, each with three numbers of channels and two dtypes."""
    return [
        Case(name, uses=("roofline",), C=C, dtype=dtype, **sizes, **more)
        for name, sizes in DATA_SETS.items()
        for C in (128, 256, 512)
        for dtype in USUAL_DTYPES
    ]
