"""`segment` and `segment_and_count`."""

import pytest
import torch
import torch.nn.functional as F
from conftest import inputs

import infoseg_fast as isf
from infoseg_fast import reference


def upsampled(x, size, interpolate, temperature):
    volume = isf.local_global_similarity(*x)
    if interpolate == "probs":
        volume = torch.softmax(temperature * volume, dim=1)
    return F.interpolate(volume, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("interpolate", ["probs", "logits"])
@pytest.mark.parametrize("size", [(3, 4), (12, 16), (7, 9), (2, 3), (1, 40)])
def test_is_the_argmax_of_what_is_upsampled(size, interpolate):
    x = inputs(K=9)
    volume = upsampled(x, size, interpolate, 1.7)
    labels = isf.segment(*x, size=size, interpolate=interpolate, temperature=1.7)
    assert labels.dtype == torch.uint8 and labels.shape == (4, *size)
    chosen = volume.gather(1, labels.long()[:, None])[:, 0]
    torch.testing.assert_close(chosen, volume.amax(dim=1), rtol=1e-12, atol=1e-12)


def test_without_a_size_it_is_that_of_the_features():
    assert isf.segment(*inputs()).shape == (4, 3, 4)


def test_equal_classes_give_the_lowest():
    f, H, W, b = inputs()
    H[:] = H[:, :1]
    assert (isf.segment(f, H, W, b, size=(9, 9)) == 0).all()


def test_256_classes_fit_a_byte():
    f, H, W, b = inputs(K=256)
    H *= 0
    H[:, 255] = 1
    W[:], b[:] = 0, 1
    assert (isf.segment(f, H, W, b) == 255).all()


def test_nan_gives_some_label_below_K():
    x = inputs()
    x[0][0] = torch.nan
    assert (isf.segment(*x, size=(8, 8)) < 3).all()


def test_labels_carry_no_gradient():
    assert not isf.segment(*inputs(requires_grad=True)).requires_grad


@pytest.mark.parametrize("size", [(0, 4), (3,), 7, (2.5, 3)])
def test_a_bad_size_is_named(size):
    with pytest.raises(ValueError, match="size"):
        isf.segment(*inputs(), size=size)


def test_segment_and_count_is_segment_then_count():
    x = inputs(K=6)
    target = torch.randint(0, 4, (4, 11, 13), dtype=torch.uint8)
    target[0, :5] = 255
    labels = isf.segment(*x, size=(11, 13), temperature=2.0)
    expected = isf.confusion_matrix(labels, target, 6, 4)
    f, H, *projection = x
    counts, found = isf.segment_and_count(f, H, target, *projection, num_classes=4, temperature=2.0, return_labels=True)
    assert torch.equal(counts, expected) and torch.equal(found, labels)
    assert torch.equal(isf.segment_and_count(f, H, target, *projection, num_classes=4, temperature=2.0), expected)
    assert torch.equal(reference.segment_and_count(f, H, target, *projection, num_classes=4, temperature=2.0), expected)


def test_segment_and_count_refuses_a_value_beyond_the_classes():
    f, H, W, b = inputs()
    with pytest.raises(ValueError, match="target.*7"):
        isf.segment_and_count(f, H, torch.full((4, 5, 5), 7, dtype=torch.uint8), W, b, num_classes=3)
    with pytest.raises(ValueError, match="target"):
        isf.segment_and_count(f, H, torch.zeros(3, 5, 5, dtype=torch.uint8), W, b, num_classes=3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])  # counted while segmenting, or after it
def test_wrong_arguments_of_segment_and_count_are_named(dtype):
    f, H, W, b = inputs()
    target = torch.zeros(4, 5, 5, dtype=dtype)
    with pytest.raises(ValueError, match="target must be .* on cpu as features, not .* on meta"):
        isf.segment_and_count(f, H, target.to("meta"), W, b, num_classes=3)
    with pytest.raises(TypeError, match="features must be a tensor, not None"):
        isf.segment_and_count(None, H, target, W, b, num_classes=3)
    for wrong in ("255", 1.5, 2**70):
        with pytest.raises(TypeError, match="ignore_index must be None or a whole number"):
            isf.segment_and_count(f, H, target, W, b, num_classes=3, ignore_index=wrong)
