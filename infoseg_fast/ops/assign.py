"""`assign`: class probabilities of every position."""

from torch import Tensor

from .. import reference
from . import checks, dispatch, inputs
from .factory import Wiring
from .local_global_similarity import scores_like
from .record import Case, Op


def assign(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Class probabilities of every position: V = softmax_k(temperature * z), with z as in
    `local_global_similarity`.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        temperature: tau > 0, a factor of z.

    Returns:
        V, [B, K, h, w], in the dtype of `features`. Differentiable in all four tensors.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as in `local_global_similarity`, or the
            temperature is not above 0 (ValueError).
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    backend = dispatch.select("assign", backend, features)
    if backend == "reference":
        with checks.without_autocast(features):
            return reference.assign(features, global_features, weight, bias, temperature=temperature)
    return WIRING(backend, features, global_features, weight, bias, temperature)


def _floor(case: Case, phase: str) -> int:
    if phase == "forward":
        return case.feature_bytes + case.score_bytes
    return 2 * case.feature_bytes + 2 * case.score_bytes


WIRING = Wiring(
    "assign", f"{inputs.FOLDED}, float temperature", scores_like, differentiable=3, folds=True, saves_output=True
)
OP = Op(
    name="assign",
    function=assign,
    reference=reference.assign,
    arguments=lambda case, device, dtype: (inputs.feature_arguments(case, device, dtype), dict(case.settings)),
    floor=_floor,
    operations=inputs.similarity_operations,
    wiring=WIRING,
    kernel_arguments=lambda case, device: (
        *inputs.folded_arguments(case, device),
        case.settings.get("temperature", 1.0),
    ),
    cases=(
        Case("assign", **inputs.CPU | {"speedup": 1.6}),
        Case("assign", **inputs.CUDA),
        Case("assign bfloat16", dtype=inputs.BFLOAT, **inputs.CUDA),
        *(Case("assign", K=27, dtype=dtype, **inputs.AOT) for dtype in inputs.DTYPES),
        *(
            Case(name, dtype=dtype, **inputs.AOT_MORE, **more)
            for name, more in (
                ("channels last", {"channels_last": True}),
                ("Potsdam", inputs.POTSDAM),
                ("15 classes", {}),
                ("64 classes", {"K": 64}),
                ("256 classes", {"K": 256}),
            )
            for dtype in inputs.USUAL_DTYPES
        ),
        Case("ragged channels", C=100, K=27, **inputs.AOT_MORE),
        *inputs.roofline_cases(),
    ),
)
