"""`class_moments`: sums of statistics over positions, weighted by class probabilities."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import checks, dispatch, inputs
from .factory import Wiring
from .record import Case, Op


def class_moments(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    statistics: Tensor,
    temperature: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Sums over all positions of class probability times statistic: M[k,s] = sum_{b,p} V[b,k,p]
    Y[b,s,p], with V as in `assign`.

    With Y = (1, y, y_i y_j) the sums give the size, the mean and the covariance of y in each class.
    V is written only if a gradient is needed. dV[b,k,p] = sum_s dM[k,s] Y[b,s,p] is never formed as
    a whole.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        statistics: Y, [B, S, h, w] with S >= 1, any strides and floating-point dtype. They must not
            require a gradient.
        temperature: tau > 0, a factor of z.

    Returns:
        M, [K, S], float64 for float64 features, else float32. Differentiable in all tensors but the
        statistics.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as in `assign`, or statistics have another
            shape or device or require a gradient (ValueError).
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    statistics = checks.position_statistics(statistics, features)
    backend = dispatch.select("class_moments", backend, features)
    if backend == "reference":
        with checks.without_autocast(features):
            return reference.class_moments(
                features, global_features, weight, bias, statistics=statistics, temperature=temperature
            )
    return WIRING(backend, features, global_features, weight, bias, statistics, temperature)


def _fake(features: Tensor, G: Tensor, g0: Tensor | None, statistics: Tensor, temperature: float) -> Tensor:
    return G.new_empty(G.shape[1], statistics.shape[1])


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    shape = case.B, case.S, case.h, case.w
    statistics = torch.randn(shape, generator=generator, dtype=torch.float64).to(case.accumulation_dtype)
    keywords = {"statistics": statistics.to(device, reference.accumulation_dtype(dtype))}
    return inputs.feature_arguments(case, device, dtype), keywords | case.settings


def _kernel_arguments(case: Case, device: torch.device) -> tuple[Any, ...]:
    features, G, g0 = inputs.folded_arguments(case, device)
    return features, G, g0, G.new_empty(case.B, case.S, case.h, case.w), case.settings.get("temperature", 1.0)


def _floor(case: Case, phase: str) -> int:
    statistics = case.B * case.S * case.h * case.w * case.accumulation_dtype.itemsize
    return case.feature_bytes * (1 if phase == "forward" else 2) + statistics


def _operations(case: Case, phase: str) -> int:
    return inputs.similarity_operations(case, phase) + 2 * case.B * case.h * case.w * case.K * case.S


WIRING = Wiring(
    "class_moments", f"{inputs.FOLDED}, Tensor statistics, float temperature", _fake, differentiable=3, folds=True
)
OP = Op(
    name="class_moments",
    function=class_moments,
    reference=reference.class_moments,
    arguments=_arguments,
    floor=_floor,
    operations=_operations,
    wiring=WIRING,
    kernel_arguments=_kernel_arguments,
    cases=(
        Case("class moments", **inputs.CPU),
        Case("class moments", **inputs.CUDA),
        Case("class moments bfloat16", dtype=inputs.BFLOAT, **inputs.CUDA),
        *(Case("class moments", K=27, dtype=dtype, **inputs.AOT) for dtype in inputs.DTYPES),
        *(
            Case(f"{K} classes", K=K, dtype=dtype, **inputs.AOT_MORE)
            for K in (15, 64, 256)
            for dtype in inputs.USUAL_DTYPES
        ),
        *(
            Case("channels last", K=6, dtype=dtype, channels_last=True, **inputs.AOT_MORE)
            for dtype in inputs.USUAL_DTYPES
        ),
        Case("no gradient", gradient=False, **inputs.AOT_MORE),
        *inputs.roofline_cases(),
    ),
)
