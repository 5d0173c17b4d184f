"""`local_global_similarity`, `assign` and `class_moments`."""

import torch
from torch import Tensor

from .. import reference
from . import checks, custom, eager
from .dispatch import choose


def local_global_similarity(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Similarity of every position with every global feature of its image: z[b,k,p] = <W f[b,p] + b, H[b,k]>.

    The projection is folded into the global features (identity 2 of the method), so no D-dimensional map is formed.

    Args:
        features: f, [B, C, h, w], any strides; float32, float64, bfloat16 or float16. Without `weight` they are the
            local features themselves and C = D.
        global_features: H, [B, K, D] with 2 <= K <= 256.
        weight: W of the local projection, [D, C] or a 1x1 convolution's [D, C, 1, 1].
        bias: b of the local projection, [D].
        backend: "auto" (the fastest that can run), "reference", "cpp" or "triton".

    Returns:
        z, [B, K, h, w], in the dtype of `features`; sums are formed in float32 (float64 for float64).
        Differentiable in all four tensors.

    Raises:
        TypeError, ValueError: an argument is not as above, dtypes are mixed, or devices are (under autocast the
            inputs are cast to its dtype first).
        BackendUnavailableError: the backend asked for by name cannot run here.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    backend = choose("local_global_similarity", backend, features.device.type, features.dtype)
    with checks.without_autocast(features.device.type):
        if backend == "reference":
            return reference.local_global_similarity(features, global_features, weight, bias)
        if eager.takes(features, global_features, weight, bias):
            return eager.local_global_similarity(features, global_features, weight, bias, backend)
        G, g0 = reference.fold_projection(global_features, weight, bias)
        return custom.local_global_similarity(features, G, g0, backend)


def assign(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Class probabilities of every position: V = softmax_k(temperature * z), z as in `local_global_similarity`.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        temperature: tau > 0; it multiplies.

    Returns:
        V, [B, K, h, w], in the dtype of `features`. Differentiable in all four tensors.

    Raises:
        As `local_global_similarity`.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    backend = choose("assign", backend, features.device.type, features.dtype)
    with checks.without_autocast(features.device.type):
        if backend == "reference":
            return reference.assign(features, global_features, weight, bias, temperature=temperature)
        if eager.takes(features, global_features, weight, bias):
            return eager.assign(features, global_features, weight, bias, temperature, backend)
        G, g0 = reference.fold_projection(global_features, weight, bias)
        return custom.assign(features, G, g0, temperature, backend)


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
    """Sums over all positions of each class's probability times each statistic: M[k,s] = sum_{b,p} V[b,k,p] Y[b,s,p].

    V is that of `assign`. With Y = (1, y, y_i y_j) they are the size, the mean and the covariance of y in every class.
    V is written only where a gradient is wanted, and dV[b,k,p] = sum_s dM[k,s] Y[b,s,p] is never formed whole.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        statistics: Y, [B, S, h, w] with S >= 1, any strides and floating-point dtype; a constant, which must not
            require a gradient.
        temperature: tau > 0; it multiplies.

    Returns:
        M, [K, S], float64 for float64 features, else float32. Differentiable in all but the statistics.

    Raises:
        As `local_global_similarity`; ValueError also for statistics of another shape or device, or that require a
        gradient.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    statistics = checks.position_statistics(statistics, features)
    backend = choose("class_moments", backend, features.device.type, features.dtype)
    with checks.without_autocast(features.device.type):
        if backend == "reference":
            return reference.class_moments(
                features, global_features, weight, bias, statistics=statistics, temperature=temperature
            )
        if eager.takes(features, global_features, weight, bias, statistics):
            return eager.class_moments(features, global_features, weight, bias, statistics, temperature, backend)
        G, g0 = reference.fold_projection(global_features, weight, bias)
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (features, G, g0))
        return custom.class_moments(features, G, g0, statistics, temperature, keep, backend)[0]
