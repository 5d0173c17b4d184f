"""The Triton kernels of `refined_labels` and `refined_probs` in the interpreter, against the reference in float64."""

import pytest
import torch

import infoseg_fast as isf
from infoseg_fast import reference
from infoseg_fast.bench.cuda_checks import none_short, pixel_labels_inputs
from infoseg_fast.kernels import KERNELS
from infoseg_fast.recipe.refinement import pixel_labels, refined_probs
from infoseg_fast.reference.refinement import FLOOR

CPU = torch.device("cpu")
# Name, positions, pixels, classes, colours: one to three programs an image, the last ragged.
SHAPES = [
    ("four times, in each of two tiles", (6, 8), (24, 32), 5, 3),
    ("ragged, down one axis and up the other", (9, 4), (7, 90), 4, 3),
    ("one position", (1, 1), (3, 5), 2, 1),
    ("four colours at the positions' size", (5, 7), (5, 7), 3, 4),
    ("five colours in three tiles", (5, 6), (17, 20), 3, 5),
    ("a row of pixels", (3, 4), (1, 40), 3, 2),
]


def problem(positions=(4, 5), pixels=(16, 20), K=3, colours=3, B=2, dtype=torch.float32):
    shape = {"B": B, "K": K, "h": positions[0], "w": positions[1]}
    return pixel_labels_inputs(shape, pixels, dtype, CPU, colours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[0])
def test_is_the_argmax_of_the_references_scores(shape, dtype):
    x = problem(*shape[1:], dtype=dtype)
    labels = pixel_labels(*x, backend="triton")
    prior, colour, around, *classes = (t.double() for t in x)
    scores = [reference.refined_scores(*of, *classes) for of in zip(prior, colour, around, strict=True)]
    assert labels.dtype == torch.uint8 and labels.shape == (2, *shape[2]) and len(labels.unique()) > 1
    none_short(torch.stack(scores), labels, dtype)


def test_256_classes_of_which_equal_ones_give_the_lowest():
    prior, colour, around, residual, log_scale = problem((2, 2), (3, 4), K=256, B=1)
    residual[:], log_scale[:] = residual[:1], 0
    for best, expected in (([255], 255), ([200, 255], 200)):
        prior[:] = 0
        prior[:, best] = 0.5
        assert (pixel_labels(prior, colour, around, residual, log_scale, backend="triton") == expected).all()


def test_a_prior_of_nothing_counts_as_the_least_one():
    prior, colour, around, residual, log_scale = problem(B=1)
    prior[:, 0], prior[:, 1], residual[:] = 0, 0.9 * FLOOR, 0
    log_scale[:] = torch.tensor([0.0, 0.0, -50.0])
    assert (pixel_labels(prior, colour, around, residual, log_scale, backend="triton") == 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_gives_some_label_below_K(bad):
    for place in range(5):
        x = problem(B=1, pixels=(5, 7))
        x[place].view(-1)[::3] = bad
        assert (pixel_labels(*x, backend="triton") < 3).all()


def test_strided_and_unaligned_input_and_a_rerun_give_the_same_labels():
    x = problem()
    expected = pixel_labels(*x, backend="triton")
    assert torch.equal(pixel_labels(*x, backend="triton"), expected)
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t for t in x]
    assert torch.equal(pixel_labels(*strided, backend="triton"), expected)
    unaligned = [torch.cat([t.new_empty(1), t.flatten()])[1:].view_as(t) for t in x]
    assert torch.equal(pixel_labels(*unaligned, backend="triton"), expected)


def test_empty_input_and_other_dtypes():
    assert pixel_labels(*problem(B=0), backend="triton").shape == (0, 16, 20)
    assert KERNELS["refined_labels"].forward(*problem(B=0)).shape == (0, 16, 20)
    with pytest.raises(isf.BackendUnavailableError, match="it has no kernel for torch.float16"):
        pixel_labels(*(t.half() for t in problem()), backend="triton")


# Name, positions, pixels, classes, colours: 16 pixels of a position and others, several tiles, the last ragged.
WHOLE = [
    ("three tiles of 32 positions", (9, 8), (36, 32), 5, 3),
    ("3 x 5 pixels of a position", (4, 5), (12, 25), 4, 3),
    ("one position of one pixel", (1, 1), (1, 1), 2, 1),
    ("at the positions' size", (5, 7), (5, 7), 3, 4),
    ("five colours, 64 pixels", (3, 4), (24, 32), 3, 5),
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


def test_a_class_that_no_pixel_speaks_for_has_no_share_and_scores_far_apart_overflow_nothing():
    prior, colour, around, residual, log_scale = problem(B=1)
    log_scale[:] = torch.tensor([0.0, -1e4, 1e4])
    found = refined_probs(prior, colour, around, residual, log_scale, backend="triton")
    assert torch.equal(found, torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand_as(found))
