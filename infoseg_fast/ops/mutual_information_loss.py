"""`mutual_information_loss`."""

import torch
from torch import Tensor

from .. import reference
from . import checks, custom, eager
from .dispatch import choose

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
    """Minus the mutual information, up to a constant, between local features and the global feature of their class.

    With V = softmax_k(temperature * z) and T = sum_k V_k z_k = <L, S> (identity 1 of the method: the assigned global
    feature S is never formed):

    - "jsd": mean softplus(-T) + mean softplus(T_neg), 2 ln 2 when nothing is learnt; T_neg scores a position against
      another image of the batch;
    - "infonce": mean [log sum exp over the (1 + n) K global features of the own and the partner images - T].

    Image b's partners are the images (b + 1 .. b + n) mod B.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        temperature: tau > 0; it multiplies.
        estimator: "jsd" or "infonce".
        negatives: for "jsd", "same_position" (the global feature that the partner assigned to the same position) or
            "reassigned" (the position is assigned anew among the partner's global features); "infonce" has no use for
            it.
        num_negatives: n, from 1 to B - 1, or "all" for B - 1.
        balance: weight >= 0 of the term log K - entropy(mean V), which keeps all classes in use.
        mask: bool [B, h, w], True where a position counts; the others leave every mean. None counts all.

    Returns:
        The loss in nats, a scalar: float64 for float64 input, else float32. NaN when no position counts.
        Differentiable in all four tensors.

    Raises:
        As `local_global_similarity`; ValueError also for B < 2 and num_negatives >= B.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    checks.one_of("estimator", estimator, ESTIMATORS)
    checks.one_of("negatives", negatives, NEGATIVES)
    settings = custom.LossSettings(
        temperature=temperature,
        estimator=estimator,
        negatives=negatives,
        num_negatives=checks.num_negatives(num_negatives, len(features)),
        balance=checks.real("balance", balance, positive=False),
    )
    valid = checks.validity_mask(mask, features)
    backend = choose("mutual_information_loss", backend, features.device.type, features.dtype)
    with checks.without_autocast(features.device.type):
        if backend != "reference" and eager.takes(features, global_features, weight, bias):
            return eager.mutual_information_loss(features, global_features, weight, bias, valid, settings, backend)
        G, g0 = reference.fold_projection(global_features, weight, bias)
        if backend == "reference":
            return reference.folded_loss(features, G, g0, valid, **vars(settings))
        grad = torch.is_grad_enabled()
        return custom.mutual_information_loss(
            features,
            G,
            g0,
            valid,
            *vars(settings).values(),
            grad and features.requires_grad,
            grad and G.requires_grad,
            grad and g0 is not None and g0.requires_grad,
            backend,
        )[0]
