"""`refined_labels`: the kernel against the reference."""

import pytest
import torch
from conftest import needs_extension, torch_threads

from infoseg_fast import reference
from infoseg_fast.ops.dispatch import kernel
from infoseg_fast.ops.refined_labels import refined_labels

pytestmark = needs_extension


def problem(B=2, K=3, c=3, h=4, w=5, size=(16, 20), dtype=torch.float32):
    """prior, colour, around, residual, log_scale of random numbers."""
    prior = torch.softmax(2 * torch.randn(B, K, h, w, dtype=dtype), dim=1)
    shapes = (B, c, *size), (B, c, h, w), (K, c, 2 * c + 1), (K,)
    return prior, *(torch.randn(shape, dtype=dtype) for shape in shapes)


SHAPES = [
    {},
    {"c": 1, "K": 2, "B": 1, "h": 1, "w": 1, "size": (3, 5)},
    {"c": 2, "K": 27, "h": 7, "w": 9, "size": (28, 36)},
    {"c": 4, "K": 5, "h": 33, "w": 40, "size": (132, 160)},
    {"K": 256, "h": 3, "w": 3, "size": (12, 12)},
    {"K": 4, "h": 10, "w": 10, "size": (33, 39)},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_gives_the_labels_of_the_reference(shape, threads):
    given = problem(**shape)
    with torch_threads(threads):
        found = refined_labels(*given, backend="cpp")
    exact = reference.refined_labels(*(x.double() for x in given))
    # Two classes whose scores are equal to rounding may change places.
    assert (found != exact).float().mean() < 1e-3


def test_strided_and_empty_input():
    given = problem()
    strided = [x.mT.contiguous().mT if x.dim() > 1 else x for x in given]
    assert torch.equal(refined_labels(*strided, backend="cpp"), refined_labels(*given, backend="cpp"))
    assert kernel("refined_labels", "cpp").forward(*problem(B=0)).shape == (0, 16, 20)
    assert refined_labels(*problem(B=0), backend="reference").shape == (0, 16, 20)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_nan_gives_some_label(backend):
    prior, *others = problem(h=8, w=8, size=(32, 32))
    prior[0, :, 1, 1] = float("nan")
    assert refined_labels(prior, *others, backend=backend).max() < 3
