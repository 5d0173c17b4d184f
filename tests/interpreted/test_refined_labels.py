"""The Triton kernel of `refined_labels` in the interpreter, against the reference in float64."""

import pytest
import torch

import infoseg_fast as isf
from infoseg_fast.bench.cuda_values import none_short
from infoseg_fast.kernels import KERNELS
from infoseg_fast.ops import OPS
from infoseg_fast.ops.record import Case
from infoseg_fast.ops.refined_labels import refined_labels
from infoseg_fast.reference.refined_labels import FLOOR, batch_scores

CPU = torch.device("cpu")
# Name, positions, pixels, classes, channels: one to three programs an image, the last ragged.
SHAPES = [
    ("four times, in each of two tiles", (6, 8), (24, 32), 5, 3),
    ("ragged, down one axis and up the other", (9, 4), (7, 90), 4, 3),
    ("one position", (1, 1), (3, 5), 2, 1),
    ("four channels at the positions' size", (5, 7), (5, 7), 3, 4),
    ("five channels in three tiles", (5, 6), (17, 20), 3, 5),
    ("a row of pixels", (3, 4), (1, 40), 3, 2),
]


def problem(positions=(4, 5), pixels=(16, 20), K=3, channels=3, B=2, dtype=torch.float32):
    h, w = positions
    case = Case("", op="refined_labels", B=B, C=channels, K=K, h=h, w=w, size=pixels, dtype=dtype)
    return OPS["refined_labels"].arguments(case, CPU, dtype)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[0])
def test_is_the_argmax_of_the_references_scores(shape, dtype):
    x = problem(*shape[1:], dtype=dtype)
    labels = refined_labels(*x, backend="triton")
    assert labels.dtype == torch.uint8 and labels.shape == (2, *shape[2]) and len(labels.unique()) > 1
    none_short(batch_scores(*(t.double() for t in x)), labels, dtype)


def test_256_classes_of_which_equal_ones_give_the_lowest():
    prior, colour, around, residual, log_scale = problem((2, 2), (3, 4), K=256, B=1)
    residual[:], log_scale[:] = residual[:1], 0
    for best, expected in (([255], 255), ([200, 255], 200)):
        prior[:] = 0
        prior[:, best] = 0.5
        assert (refined_labels(prior, colour, around, residual, log_scale, backend="triton") == expected).all()


def test_a_prior_of_0_counts_as_the_minimum():
    prior, colour, around, residual, log_scale = problem(B=1)
    prior[:, 0], prior[:, 1], residual[:] = 0, 0.9 * FLOOR, 0
    log_scale[:] = torch.tensor([0.0, 0.0, -50.0])
    assert (refined_labels(prior, colour, around, residual, log_scale, backend="triton") == 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_gives_some_label_below_K(bad):
    for place in range(5):
        x = problem(B=1, pixels=(5, 7))
        x[place].view(-1)[::3] = bad
        assert (refined_labels(*x, backend="triton") < 3).all()


def test_strided_and_unaligned_input_and_a_rerun_give_the_same_labels():
    x = problem()
    expected = refined_labels(*x, backend="triton")
    assert torch.equal(refined_labels(*x, backend="triton"), expected)
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t for t in x]
    assert torch.equal(refined_labels(*strided, backend="triton"), expected)
    unaligned = [torch.cat([t.new_empty(1), t.flatten()])[1:].view_as(t) for t in x]
    assert torch.equal(refined_labels(*unaligned, backend="triton"), expected)


def test_empty_input_and_other_dtypes():
    assert refined_labels(*problem(B=0), backend="triton").shape == (0, 16, 20)
    assert KERNELS["refined_labels"].forward(*problem(B=0)).shape == (0, 16, 20)
    with pytest.raises(isf.BackendUnavailableError, match="it has no kernel for torch.float16"):
        refined_labels(*(t.half() for t in problem()), backend="triton")
