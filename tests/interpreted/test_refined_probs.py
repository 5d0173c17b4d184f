"""The Triton kernel of `refined_probs` in the interpreter, against the reference in float64."""

import pytest
import torch

from infoseg_fast import reference
from infoseg_fast.kernels import KERNELS
from infoseg_fast.ops.refined_probs import refined_probs

from .test_refined_labels import problem

# Name, positions, pixels, classes, channels: 16 pixels of a position and others, several tiles, the last ragged.
WHOLE = [
    ("three tiles of 32 positions", (9, 8), (36, 32), 5, 3),
    ("3 x 5 pixels of a position", (4, 5), (12, 25), 4, 3),
    ("one position of one pixel", (1, 1), (1, 1), 2, 1),
    ("at the positions' size", (5, 7), (5, 7), 3, 4),
    ("five channels, 64 pixels", (3, 4), (24, 32), 3, 5),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", WHOLE, ids=lambda shape: shape[0])
def test_probabilities_are_the_references_means_over_the_pixels_of_a_position(shape, dtype):
    x = problem(*shape[1:], dtype=dtype)
    expected = reference.refined_probs(*(t.double() for t in x))
    found = refined_probs(*x, backend="triton")
    assert found.dtype == dtype and found.shape == x[0].shape
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_probabilities_of_strided_unaligned_and_empty_input_and_of_a_rerun():
    x = problem()
    expected = refined_probs(*x, backend="triton")
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t for t in x]
    unaligned = [torch.cat([t.new_empty(1), t.flatten()])[1:].view_as(t) for t in x]
    for given in (x, strided, unaligned):
        assert torch.equal(refined_probs(*given, backend="triton"), expected)
    assert refined_probs(*problem(B=0), backend="triton").shape == (0, 3, 4, 5)
    assert KERNELS["refined_probs"].forward(*problem(B=0)).shape == (0, 3, 4, 5)
    with pytest.raises(ValueError, match="positions of whole pixels, at most 64, not .4, 5. of .33, 39."):
        refined_probs(*problem(pixels=(33, 39)), backend="triton")


def test_scores_far_apart_overflow_nothing():
    prior, colour, around, residual, log_scale = problem(B=1)
    log_scale[:] = torch.tensor([0.0, -1e4, 1e4])
    found = refined_probs(prior, colour, around, residual, log_scale, backend="triton")
    assert torch.equal(found, torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand_as(found))
