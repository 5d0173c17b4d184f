"""`refined_probs`: the kernel against the reference."""

import pytest
import torch

from infoseg_fast import extension, reference
from infoseg_fast.ops.dispatch import kernel
from infoseg_fast.ops.refined_probs import refined_probs

pytestmark = pytest.mark.skipif(extension.compiled() is None, reason="the C++ extension is not built")


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
    {"h": 5, "w": 3, "size": (15, 15)},
    {"w": 50, "size": (4, 50)},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_gives_the_probabilities_of_the_reference(shape, threads):
    given = problem(**shape)
    torch.set_num_threads(threads)
    try:
        found = refined_probs(*given, backend="cpp")
    finally:
        torch.set_num_threads(1)
    exact = reference.refined_probs(*(x.double() for x in given))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6)
    assert torch.equal(refined_probs(*given, backend="cpp"), found)


def test_probabilities_are_means_over_the_pixels_of_a_position():
    given = [x.double() for x in problem(B=1)]
    scores = reference.refined_scores(given[0][0], given[1][0], given[2][0], *given[3:])
    expected = scores.softmax(dim=0).unflatten(2, (5, 4)).unflatten(1, (4, 4)).mean(dim=(2, 4))
    torch.testing.assert_close(refined_probs(*given)[0], expected)


def test_other_positions_than_of_up_to_64_whole_pixels_take_the_reference():
    for size in ((33, 39), (4 * 9, 5 * 9)):
        given = problem(size=size)
        assert torch.equal(refined_probs(*given), reference.refined_probs(*given))
        with pytest.raises(ValueError, match=r"'cpp' takes positions of whole pixels, at most 64, not \[4, 5\] of"):
            refined_probs(*given, backend="cpp")


def test_strided_and_empty_input():
    given = problem()
    strided = [x.mT.contiguous().mT if x.dim() > 1 else x for x in given]
    assert torch.equal(refined_probs(*strided, backend="cpp"), refined_probs(*given, backend="cpp"))
    assert kernel("refined_probs", "cpp").forward(*problem(B=0)).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_nan_stays_with_its_neighbours(backend):
    prior, *others = problem(h=8, w=8, size=(32, 32))
    prior[0, :, 1, 1] = float("nan")
    found = refined_probs(prior, *others, backend=backend)
    assert torch.isfinite(found[0, :, 3:]).all() and torch.isfinite(found[1]).all()
