"""`mutual_information_loss`: the loss, with both estimators."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import checks, dispatch, inputs
from .factory import Wiring
from .protocol import LossSettings
from .record import Case, Op

ESTIMATORS = ("jsd", "infonce")
NEGATIVES = ("same_position", "reassigned")


def mutual_information_loss(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    estimator: str = "jsd",
    negatives: str = "same_position",
    num_negatives: int | str = 1,
    balance: float = 0.0,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The negative mutual information, up to a constant, of local features and the global feature of
    their class.

    With V = softmax_k(temperature * z) and T = sum_k V_k z_k = <L, S> (identity 1 of METHOD: the
    assigned global feature S is never formed):

    - "jsd": mean softplus(-T) + mean softplus(T_neg), 2 ln 2 before training. T_neg is the score of
      a position with another image of the batch.
    - "infonce": mean [log sum exp over the (1 + n) K global features of the image and its partners
      - T].

    The partners of image b are the images (b + 1 .. b + n) mod B.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        temperature: tau > 0, a factor of z.
        estimator: "jsd" or "infonce".
        negatives: for "jsd". "same_position": the global feature that the partner assigned to the
            same position. "reassigned": the position is assigned among the partner's global
            features.
        num_negatives: n, from 1 to B - 1, or "all" for B - 1.
        balance: weight >= 0 of the term log K - entropy(mean V), which keeps all classes in use.
        mask: bool [B, h, w], the positions that count in all means. None: all.

    Returns:
        The loss in nats, a scalar: float64 for float64 input, else float32. NaN if no position
        counts. Differentiable in all four tensors.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as in `assign`; ValueError also if B < 2, or
            a setting or the mask is not as above.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    settings = _checked(temperature, estimator, negatives, num_negatives, balance, features.shape[0])
    valid = checks.validity_mask(mask, features)
    backend = dispatch.select("mutual_information_loss", backend, features)
    if backend == "reference":
        with checks.without_autocast(features):
            G, g0 = reference.fold_projection(global_features, weight, bias)
            return reference.folded_loss(features, G, g0, valid, **settings._asdict())
    return WIRING(backend, features, global_features, weight, bias, valid, settings)


@checks.remembered
def _checked(
    temperature: float, estimator: str, negatives: str, num_negatives: int | str, balance: float, B: int
) -> LossSettings:
    checks.one_of("estimator", estimator, ESTIMATORS)
    checks.one_of("negatives", negatives, NEGATIVES)
    return LossSettings(
        temperature=checks.real("temperature", temperature, positive=True),
        estimator=estimator,
        negatives=negatives,
        num_negatives=checks.num_negatives(num_negatives, B),
        balance=checks.real("balance", balance, positive=False),
    )


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    keywords = dict(case.settings)
    if case.masked:
        generator = torch.Generator().manual_seed(2)
        keywords["mask"] = (torch.rand(case.B, case.h, case.w, generator=generator) < 0.8).to(device)
    return inputs.feature_arguments(case, device, dtype), keywords


def _settings(case: Case) -> LossSettings:
    default = LossSettings(1.0, "jsd", "same_position", case.negatives, 0.0)
    return LossSettings(**default._asdict() | case.settings | {"num_negatives": case.negatives})


def _kernel_arguments(case: Case, device: torch.device) -> tuple[Any, ...]:
    features, G, g0 = inputs.folded_arguments(case, device)
    valid = torch.empty(case.B, case.h * case.w, dtype=torch.bool, device=device) if case.masked else None
    return features, G, g0, valid, _settings(case)


def _operations(case: Case, phase: str) -> int:
    """Floating-point operations of the products that read features: one product in the forward
    pass, two in the backward pass.
    """
    how, scores = _settings(case), (1 + case.negatives) * case.K
    if (how.estimator, how.negatives) == ("jsd", "same_position"):
        scores = min(scores, 2 * case.K + case.negatives)  # through the assigned features (METHOD, S')
    product = 2 * case.B * case.h * case.w * case.C * scores
    return product if phase == "forward" else 2 * product


ALL: dict[str, Any] = {"num_negatives": "all"}
INFONCE = ALL | {"estimator": "infonce"}
VARIANTS = ("same_position", "reassigned", "infonce")


def _compiled(variant: str, number: int, name: str, **more: Any) -> Case:
    """A case with balance and mask, for infonce or for jsd with these negatives."""
    how = {"estimator": "infonce"} if variant == "infonce" else {"negatives": variant}
    return Case(name, masked=True, settings={"balance": 1.0, "num_negatives": number} | how, **more)


_ALL_AOT: dict[str, Any] = {"uses": ("aot_all",)}
WIRING = Wiring(
    "mutual_information_loss",
    f"{inputs.FOLDED}, Tensor? valid, float temperature, str estimator, str negatives, SymInt num_negatives, "
    "float balance",
    lambda features, G, *_: G.new_empty(()),
    differentiable=3,
    folds=True,
    settings=LossSettings,
)
OP = Op(
    name="mutual_information_loss",
    function=mutual_information_loss,
    reference=reference.mutual_information_loss,
    arguments=_arguments,
    floor=lambda case, phase: case.feature_bytes * (1 if phase == "forward" else 2),
    operations=_operations,
    wiring=WIRING,
    kernel_arguments=_kernel_arguments,
    cases=(
        Case("jsd", **inputs.CPU | {"speedup": 2.0}),
        Case("jsd K=3", K=3, **inputs.CPU),
        Case("jsd K=27", K=27, **inputs.CPU),
        Case("jsd C=64", **inputs.CPU | {"C": 64}),
        Case("jsd C=256", **inputs.CPU | {"C": 256}),
        Case("jsd n=3", settings={"num_negatives": 3}, **inputs.CPU),
        Case("jsd reassigned", settings={"negatives": "reassigned"}, **inputs.CPU),
        Case("jsd mask", masked=True, **inputs.CPU),
        Case("jsd confident", spread=1.0, **inputs.CPU),
        Case("jsd bfloat16", dtype=inputs.BFLOAT, **inputs.CPU),
        Case("infonce all", h=16, w=16, settings=INFONCE, **inputs.CPU | {"B": 32, "speedup": 1.4}),
        Case("jsd all", h=16, w=16, settings=ALL, **inputs.CPU | {"B": 32, "speedup": 1.5}),
        Case("jsd", **inputs.CUDA),
        Case("jsd bfloat16", dtype=inputs.BFLOAT, **inputs.CUDA),
        Case("infonce all, balance", dtype=inputs.BFLOAT, settings=INFONCE | {"balance": 2.0}, **inputs.CUDA),
        Case("jsd Potsdam", **inputs.CUDA, **inputs.POTSDAM),
        Case("jsd Potsdam bfloat16", dtype=inputs.BFLOAT, **inputs.CUDA, **inputs.POTSDAM),
        Case("jsd reassigned", settings={"negatives": "reassigned"}, **inputs.CUDA),
        Case("jsd n=3", settings={"num_negatives": 3}, **inputs.CUDA),
        Case("jsd all", dtype=inputs.BFLOAT, settings=ALL, **inputs.CUDA),
        Case("infonce all", settings=INFONCE, **inputs.CUDA),
        _compiled("same_position", 1, "one partner, scores kept", **inputs.AOT),
        _compiled("same_position", 1, "one partner, scores formed anew", C=128, dtype=inputs.BFLOAT, **inputs.AOT),
        *(
            _compiled("infonce", 63, "all partners", C=128, dtype=dtype, **inputs.AOT)
            for dtype in (inputs.FLOAT, inputs.BFLOAT, inputs.HALF)
        ),
        _compiled("same_position", 63, "all partners", **inputs.AOT),
        *(
            _compiled("same_position", 1, "Potsdam", dtype=dtype, **inputs.AOT_MORE, **inputs.POTSDAM)
            for dtype in inputs.USUAL_DTYPES
        ),
        *(_compiled("reassigned", 1, "reassigned", dtype=dtype, **inputs.AOT_MORE) for dtype in inputs.USUAL_DTYPES),
        _compiled("infonce", 63, "channels last", C=128, dtype=inputs.BFLOAT, channels_last=True, **inputs.AOT_MORE),
        *(
            _compiled(variant, number, name, C=C, dtype=dtype, **_ALL_AOT, **sizes)
            for variant in VARIANTS
            for number in (1, 63)
            for dtype in (inputs.FLOAT, inputs.BFLOAT, inputs.HALF)
            for name, C, sizes in (
                ("15 classes, 128 channels", 128, inputs.COCO),
                ("15 classes, 256 channels", 256, inputs.COCO),
                ("27 classes", 256, inputs.COCO | {"K": 27}),
                ("Potsdam", 256, inputs.POTSDAM),
            )
        ),
        *(
            _compiled("infonce", 63, "channels last", C=128, dtype=dtype, channels_last=True, **_ALL_AOT)
            for dtype in inputs.USUAL_DTYPES
        ),
        *(
            _compiled("infonce", 63, name, C=C, dtype=dtype, **_ALL_AOT)
            for name, C in (("ragged channels", 100), ("512 channels", 512))
            for dtype in inputs.USUAL_DTYPES
        ),
        *(
            _compiled(variant, 63, f"{K} classes", K=K, dtype=dtype, **_ALL_AOT)
            for variant in VARIANTS
            for K in (64, 256)
            for dtype in inputs.USUAL_DTYPES
        ),
        *(
            _compiled(variant, 1, f"{name}, {variant}", C=C, dtype=dtype, uses=("roofline",), **sizes)
            for variant in VARIANTS
            for name, sizes in inputs.DATA_SETS.items()
            for C in (128, 256, 512)
            for dtype in inputs.USUAL_DTYPES
        ),
    ),
)
