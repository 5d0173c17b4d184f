"""`local_global_similarity`: the similarity of every position with every global feature."""

from torch import Tensor

from .. import reference
from . import checks, dispatch, inputs
from .factory import Wiring
from .record import Case, Op


def local_global_similarity(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Similarity of every position with every global feature of its image: z[b,k,p] = <W f[b,p] +
    b, H[b,k]>.

    The projection is folded into the global features (identity 2 of METHOD), so that no
    D-dimensional map is formed.

    Args:
        features: f, [B, C, h, w], any strides; float32, float64, bfloat16 or float16. Without
            `weight` they are the local features, and C = D.
        global_features: H, [B, K, D] with 2 <= K <= 256.
        weight: W of the local projection, [D, C], or that of a 1x1 convolution, [D, C, 1, 1].
        bias: b of the local projection, [D].
        backend: "auto" (the fastest that can run), "reference", "cpp" or "triton".

    Returns:
        z, [B, K, h, w], in the dtype of `features`. Sums are formed in float32 (float64 for
        float64). Differentiable in all four tensors.

    Raises:
        TypeError, ValueError: an argument is not as above, or dtypes or devices differ. (Autocast
            casts all arguments to its dtype first.)
        BackendUnavailableError: the backend that is named cannot run here.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    backend = dispatch.select("local_global_similarity", backend, features)
    if backend == "reference":
        with checks.without_autocast(features):
            return reference.local_global_similarity(features, global_features, weight, bias)
    return WIRING(backend, features, global_features, weight, bias)


def scores_like(features: Tensor, G: Tensor, *_: object) -> Tensor:
    """An uninitialised map of the scores of all classes."""
    return features.new_empty(features.shape[0], G.shape[1], *features.shape[2:])


WIRING = Wiring("local_global_similarity", inputs.FOLDED, scores_like, differentiable=3, folds=True)
OP = Op(
    name="local_global_similarity",
    function=local_global_similarity,
    reference=reference.local_global_similarity,
    arguments=lambda case, device, dtype: (inputs.feature_arguments(case, device, dtype), {}),
    floor=lambda case, phase: case.feature_bytes * (1 if phase == "forward" else 2) + case.score_bytes,
    operations=inputs.similarity_operations,
    wiring=WIRING,
    kernel_arguments=inputs.folded_arguments,
    cases=(
        Case("similarity", **inputs.CPU),
        Case("similarity", **inputs.CUDA),
        Case("similarity", K=27, **inputs.AOT),
        *inputs.roofline_cases(),
    ),
)
