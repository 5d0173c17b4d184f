"""`appearance_statistics`: statistics whose class moments describe the appearance of classes."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import checks, dispatch
from .factory import Wiring
from .inputs import DATA_SETS, DOUBLE, FLOAT
from .record import Case, Op


def appearance_statistics(
    appearance: Tensor, mask: Tensor | None = None, smooth: int = 0, *, backend: str = "auto"
) -> Tensor:
    """The products of (1, y), with y scaled to mean 0 and variance 1. Their class moments describe
    the appearance of classes.

    Args:
        appearance: y, [B, d, h, w] float32 or float64, without a gradient.
        mask: bool [B, h, w], the positions that count. None: all.
        smooth: radius of the `neighbourhood_mean` of the probabilities, positions. Instead of the
            probabilities the statistics are averaged, by the adjoint of this mean, which gives the
            same moments.
        backend: "auto", "reference", "cpp" (only float32) or "triton".

    Returns:
        (1, y_1 .. y_d, y_1 y_1, y_1 y_2 .. y_d y_d), each times the position's share of the
        positions that count, [B, (d + 1) (d + 2) / 2, h, w], in the dtype of y. NaN if no position
        counts.

    Raises:
        TypeError: appearance is no floating-point tensor.
        ValueError: appearance or mask have another shape, mask another dtype or device, or smooth is
            no whole number of at least 0.
        BackendUnavailableError: the backend that is named cannot run here.
    """
    checks.floating("appearance", appearance, "B, d, h, w")
    checks.matching_mask(mask, appearance)
    if not isinstance(smooth, int) or smooth < 0:
        raise ValueError(f"smooth must be a whole number of at least 0, not {smooth!r}")
    y = appearance.detach()
    backend = dispatch.select("appearance_statistics", backend, y)
    if backend == "reference" or y.numel() == 0:
        return reference.appearance_statistics(y, mask, smooth)
    return WIRING(backend, y, mask, smooth)


def products_of(channels: int) -> int:
    """The number of products of (1, y) for y with this number of channels."""
    return (channels + 1) * (channels + 2) // 2


def _fake(appearance: Tensor, mask: Tensor | None, smooth: int) -> Tensor:
    B, d, h, w = appearance.shape
    return appearance.new_empty(B, products_of(d), h, w)


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    generator, keywords = torch.Generator().manual_seed(5), dict(case.settings)
    y = torch.randn(case.B, case.C, case.h, case.w, generator=generator).to(device, dtype)
    if case.masked:
        keywords["mask"] = (torch.rand(case.B, case.h, case.w, generator=generator) < 0.8).to(device)
    return [y], keywords


def _kernel_arguments(case: Case, device: torch.device) -> tuple[Any, ...]:
    y = torch.empty(case.B, case.C, case.h, case.w, dtype=case.dtype, device=device)
    mask = torch.empty(case.B, case.h, case.w, dtype=torch.bool, device=device) if case.masked else None
    return y, mask, case.settings.get("smooth", 0)


def _floor(case: Case, phase: str) -> int:
    positions = case.B * case.h * case.w
    return case.feature_bytes + positions * products_of(case.C) * case.accumulation_dtype.itemsize


WIRING = Wiring("appearance_statistics", "Tensor appearance, Tensor? mask, int smooth", _fake)
OP = Op(
    name="appearance_statistics",
    function=appearance_statistics,
    reference=reference.appearance_statistics,
    arguments=_arguments,
    floor=_floor,
    operations=lambda case, phase: case.B * case.h * case.w * products_of(case.C),
    wiring=WIRING,
    kernel_arguments=_kernel_arguments,
    cases=(
        Case("statistics, radius 1", uses=("cpu",), B=16, C=5, settings={"smooth": 1}),
        Case("statistics, radius 1", uses=("cuda",), C=5, settings={"smooth": 1}),
        *(Case("statistics", uses=("aot",), C=5, dtype=dtype, masked=dtype == FLOAT) for dtype in (FLOAT, DOUBLE)),
        Case("all count", uses=("aot_more",), C=5),
        *(Case(f"{d} channels", uses=("aot_more",), C=d, h=50, w=50) for d in (3, 6, 20)),
        *(
            Case(f"{name}, radius {radius}", uses=("roofline",), C=5, **sizes, settings={"smooth": radius})
            for name, sizes in DATA_SETS.items()
            for radius in (0, 1)
        ),
    ),
)
