"""`information_of_moments`: the mutual information of class and appearance, from the moments of the
classes.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import checks, dispatch
from .appearance_statistics import products_of
from .factory import Wiring
from .inputs import DATA_SETS, DOUBLE, FLOAT
from .record import Case, Op

RESOLUTION = 0.1  # r, in standard deviations of an appearance


def information_of_moments(
    moments: Tensor, total: Tensor, resolution: float = RESOLUTION, *, backend: str = "auto"
) -> Tensor:
    """The mutual information of class and appearance in nats, with the appearance of each class as
    normal distribution. `reference.information_of_moments` has the formula.

    Args:
        moments: [K, S], sums over all positions of probability times `appearance_statistics`.
        total: [S], sums of the statistics, without a gradient.
        resolution: r > 0, in standard deviations. Smaller differences do not count.
        backend: "auto", "reference", "cpp" or "triton".

    Returns:
        A scalar in the dtype of the moments. Differentiable in the moments.

    Raises:
        TypeError: moments or total are no floating-point tensor.
        ValueError: moments or total have another shape, S is no (d + 1) (d + 2) / 2, or resolution is
            not above 0.
        BackendUnavailableError: the backend that is named cannot run here.
    """
    checks.floating("moments", moments, "K, S")
    S = moments.shape[1]
    # torch.compile knows no isqrt of a dynamic size.
    if not torch.compiler.is_compiling() and (S == 0 or products_of((math.isqrt(8 * S + 1) - 3) // 2) != S):
        raise ValueError(
            f"moments must be [K, S] with S = (d + 1) (d + 2) / 2 for some d, not {checks.described(moments)}"
        )
    checks.floating("total", total, "S", (S,))
    resolution = checks.real("resolution", resolution, positive=True)
    total = total.detach().to(moments)
    backend = dispatch.select("information_of_moments", backend, moments)
    if backend == "reference":
        return reference.information_of_moments(moments, total, resolution)
    return WIRING(backend, moments, total, resolution)


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(6)
    V = torch.randn(case.B, case.K, case.h, case.w, generator=generator).softmax(dim=1)
    y = torch.randn(case.B, case.C, case.h, case.w, generator=generator)
    statistics = reference.appearance_statistics(y)
    moments = reference.moments_of(V, statistics).to(device, dtype)
    return [moments], {"total": statistics.sum(dim=(0, 2, 3)).to(device, dtype)} | case.settings


def _kernel_arguments(case: Case, device: torch.device) -> tuple[Any, ...]:
    moments = torch.empty(case.K, products_of(case.C), dtype=case.accumulation_dtype, device=device)
    return moments, moments.new_empty(moments.shape[1]), case.settings.get("resolution", RESOLUTION)


def _floor(case: Case, phase: str) -> int:
    """Bytes moved: the moments of all classes; forward also those of all positions, backward the
    gradient.
    """
    of_one = products_of(case.C) * case.accumulation_dtype.itemsize
    return (case.K + 1 if phase == "forward" else 2 * case.K) * of_one


WIRING = Wiring(
    "information_of_moments",
    "Tensor moments, Tensor total, float resolution",
    lambda moments, *_: moments.new_empty(()),
    differentiable=1,
)
OP = Op(
    name="information_of_moments",
    function=information_of_moments,
    reference=lambda moments, total, resolution=RESOLUTION: reference.information_of_moments(
        moments, total, resolution
    ),
    arguments=_arguments,
    floor=_floor,
    operations=lambda case, phase: 2 * (case.K + (phase == "forward")) * (case.C + 1) ** 3,
    wiring=WIRING,
    kernel_arguments=_kernel_arguments,
    cases=(
        Case("information", uses=("cpu",), B=16, C=5),
        Case("information", uses=("cuda",), C=5),
        *(Case("information", uses=("aot",), C=5, dtype=dtype) for dtype in (FLOAT, DOUBLE)),
        Case("no gradient", uses=("aot_more",), C=5, gradient=False),
        *(Case(f"{d} channels", uses=("aot_more",), C=d) for d in (15, 31, 63)),
        *(Case(name, uses=("roofline",), C=5, **sizes) for name, sizes in DATA_SETS.items()),
    ),
)
