"""`mutual_information_loss`: the loss of both estimators."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import checks, dispatch
from .factory import Wiring
from .inputs import (
    AOT,
    AOT_MORE,
    BFLOAT,
    COCO,
    CPU,
    CUDA,
    DATA_SETS,
    FLOAT,
    FOLDED,
    HALF,
    POTSDAM,
    feature_arguments,
    folded_arguments,
)
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
    """Minus the mutual information, up to a constant, between local features and the global feature
    of their class.

    With V = softmax_k(temperature * z) and T = sum_k V_k z_k = <L, S> (identity 1 of METHOD: the
    assigned global feature S is never formed):

    - "jsd": mean softplus(-T) + mean softplus(T_neg), 2 ln 2 when nothing is learnt; T_neg scores a
      position against another image of the batch;
    - "infonce": mean [log sum exp over the (1 + n) K global features of the own and the partner
      images - T].

    Image b's partners are the images (b + 1 .. b + n) mod B.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        temperature: tau > 0, a factor of z.
        estimator: "jsd" or "infonce".
        negatives: for "jsd", "same_position" (the global feature that the partner assigned to the
            same position) or "reassigned" (the position is assigned anew among the partner's global
            features); "infonce" does not use it.
        num_negatives: n, from 1 to B - 1, or "all" for B - 1.
        balance: weight >= 0 of the term log K - entropy(mean V), which keeps all classes in use.
        mask: bool [B, h, w], True where a position counts; the others are left out of every mean.
            None counts all.

    Returns:
        The loss in nats, a scalar: float64 for float64 input, else float32. NaN when no position
        counts. Differentiable in all four tensors.

    Raises:
        As `assign`; ValueError also for B < 2 and num_negatives >= B.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    checks.one_of("estimator", estimator, ESTIMATORS)
    checks.one_of("negatives", negatives, NEGATIVES)
    settings = LossSettings(
        temperature=temperature,
        estimator=estimator,
        negatives=negatives,
        num_negatives=checks.num_negatives(num_negatives, features.shape[0]),
        balance=checks.real("balance", balance, positive=False),
    )
    valid = checks.validity_mask(mask, features)
    backend = dispatch.select("mutual_information_loss", backend, features)
    with checks.without_autocast(features):
        if backend == "reference":
            G, g0 = reference.fold_projection(global_features, weight, bias)
            return reference.folded_loss(features, G, g0, valid, **settings._asdict())
        return WIRING(backend, features, global_features, weight, bias, valid, settings)


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    keywords = dict(case.settings)
    if case.masked:
        generator = torch.Generator().manual_seed(2)
        keywords["mask"] = (torch.rand(case.B, case.h, case.w, generator=generator) < 0.8).to(device)
    return feature_arguments(case, device, dtype), keywords


def _settings(case: Case) -> LossSettings:
    default = LossSettings(1.0, "jsd", "same_position", case.negatives, 0.0)
    return LossSettings(**default._asdict() | case.settings | {"num_negatives": case.negatives})


def _kernel_arguments(case: Case, device: torch.device) -> tuple[Any, ...]:
    features, G, g0 = folded_arguments(case, device)
    valid = torch.empty(case.B, case.h * case.w, dtype=torch.bool, device=device) if case.masked else None
    return features, G, g0, valid, _settings(case)


def _operations(case: Case, phase: str) -> int:
    """Of the products that read the features; three times one product for both phases."""
    how, scores = _settings(case), (1 + case.negatives) * case.K
    if (how.estimator, how.negatives) == ("jsd", "same_position"):
        scores = min(scores, 2 * case.K + case.negatives)  # through the assigned features (METHOD, S')
    product = 2 * case.B * case.h * case.w * case.C * scores
    return product if phase == "forward" else 2 * product


ALL: dict[str, Any] = {"num_negatives": "all"}
INFONCE = ALL | {"estimator": "infonce"}
VARIANTS = ("same_position", "reassigned", "infonce")


def _compiled(variant: str, number: int, name: str, **more: Any) -> Case:
    """A case of the kernels: infonce, or jsd with these negatives; with balance and mask."""
    how = {"estimator": "infonce"} if variant == "infonce" else {"negatives": variant}
    return Case(name, masked=True, settings={"balance": 1.0, "num_negatives": number} | how, **more)


_ALL_AOT: dict[str, Any] = {"uses": ("aot_all",)}
WIRING = Wiring(
    "mutual_information_loss",
    f"{FOLDED}, Tensor? valid, float temperature, str estimator, str negatives, SymInt num_negatives, float balance",
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
        Case("jsd", **CPU | {"speedup": 2.0}),
        Case("jsd K=3", K=3, **CPU),
        Case("jsd K=27", K=27, **CPU),
        Case("jsd C=64", **CPU | {"C": 64}),
        Case("jsd C=256", **CPU | {"C": 256}),
        Case("jsd n=3", settings={"num_negatives": 3}, **CPU),
        Case("jsd reassigned", settings={"negatives": "reassigned"}, **CPU),
        Case("jsd mask", masked=True, **CPU),
        Case("jsd confident", spread=1.0, **CPU),
        Case("jsd bfloat16", dtype=BFLOAT, **CPU),
        Case("infonce all", h=16, w=16, settings=INFONCE, **CPU | {"B": 32, "speedup": 1.4}),
        Case("jsd all", h=16, w=16, settings=ALL, **CPU | {"B": 32, "speedup": 1.5}),
        Case("jsd", **CUDA),
        Case("jsd bfloat16", dtype=BFLOAT, **CUDA),
        Case("infonce all, balance", dtype=BFLOAT, settings=INFONCE | {"balance": 2.0}, **CUDA),
        Case("jsd Potsdam", **CUDA, **POTSDAM),
        Case("jsd Potsdam bfloat16", dtype=BFLOAT, **CUDA, **POTSDAM),
        Case("jsd reassigned", settings={"negatives": "reassigned"}, **CUDA),
        Case("jsd n=3", settings={"num_negatives": 3}, **CUDA),
        Case("jsd all", dtype=BFLOAT, settings=ALL, **CUDA),
        Case("infonce all", settings=INFONCE, **CUDA),
        _compiled("same_position", 1, "one partner, scores kept", **AOT),
        _compiled("same_position", 1, "one partner, scores formed anew", C=128, dtype=BFLOAT, **AOT),
        *(_compiled("infonce", 63, "all partners", C=128, dtype=dtype, **AOT) for dtype in (FLOAT, BFLOAT, HALF)),
        _compiled("same_position", 63, "all partners", **AOT),
        *(_compiled("same_position", 1, "Potsdam", dtype=dtype, **AOT_MORE, **POTSDAM) for dtype in (FLOAT, BFLOAT)),
        *(_compiled("reassigned", 1, "reassigned", dtype=dtype, **AOT_MORE) for dtype in (FLOAT, BFLOAT)),
        _compiled("infonce", 63, "channels last", C=128, dtype=BFLOAT, channels_last=True, **AOT_MORE),
        *(
            _compiled(variant, number, name, C=C, dtype=dtype, **_ALL_AOT, **sizes)
            for variant in VARIANTS
            for number in (1, 63)
            for dtype in (FLOAT, BFLOAT, HALF)
            for name, C, sizes in (
                ("15 classes, 128 channels", 128, COCO),
                ("15 classes, 256 channels", 256, COCO),
                ("27 classes", 256, COCO | {"K": 27}),
                ("Potsdam", 256, POTSDAM),
            )
        ),
        *(
            _compiled("infonce", 63, "channels last", C=128, dtype=dtype, channels_last=True, **_ALL_AOT)
            for dtype in (FLOAT, BFLOAT)
        ),
        *(
            _compiled("infonce", 63, name, C=C, dtype=dtype, **_ALL_AOT)
            for name, C in (("ragged channels", 100), ("512 channels", 512))
            for dtype in (FLOAT, BFLOAT)
        ),
        *(
            _compiled(variant, 63, f"{K} classes", K=K, dtype=dtype, **_ALL_AOT)
            for variant in VARIANTS
            for K in (64, 256)
            for dtype in (FLOAT, BFLOAT)
        ),
        *(
            _compiled(variant, 1, f"{name}, {variant}", C=C, dtype=dtype, uses=("roofline",), **sizes)
            for variant in VARIANTS
            for name, sizes in DATA_SETS.items()
            for C in (128, 256, 512)
            for dtype in (FLOAT, BFLOAT)
        ),
    ),
)
