"""The Triton kernels of `segment` and `segment_and_count` in the interpreter."""

import pytest
import torch
import torch.nn.functional as F
from conftest import inputs

import infoseg_fast as isf
from infoseg_fast.kernels import segment


def upsampled(x, size, interpolate, temperature):
    volume = isf.local_global_similarity(*(t.double() for t in x), backend="reference")
    if interpolate == "probs":
        volume = torch.softmax(temperature * volume, dim=1)
    return F.interpolate(volume, size=size, mode="bilinear", align_corners=False)


# The features are 3 x 4; 40 x 44 takes two programs an image, the last one ragged.
SIZES = [(3, 4), (12, 16), (7, 9), (2, 3), (1, 40), (40, 44)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("interpolate", ["probs", "logits"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_the_argmax_of_what_is_upsampled(size, interpolate, dtype):
    x = [t.to(dtype) for t in inputs(B=2, K=9)]
    volume = upsampled(x, size, interpolate, 1.7)
    labels = isf.segment(*x, size=size, interpolate=interpolate, temperature=1.7, backend="triton")
    assert labels.dtype == torch.uint8 and labels.shape == (2, *size)
    chosen = volume.gather(1, labels.long()[:, None])[:, 0]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(chosen, volume.amax(dim=1), rtol=8 * eps, atol=8 * eps * volume.abs().max().item())


@pytest.mark.parametrize("K", [2, 27, 256])
def test_any_number_of_classes(K):
    x = inputs(B=2, C=20, K=K, size=(13, 11))
    for size in ((13, 11), (26, 31)):
        expected = isf.segment(*x, size=size, backend="reference")
        assert torch.equal(isf.segment(*x, size=size, backend="triton"), expected)


def test_channels_last_and_strided_features():
    x = inputs(B=2, C=20, K=5, size=(9, 8))
    expected = isf.segment(*x, size=(20, 20), backend="reference")
    for f in (x[0].to(memory_format=torch.channels_last), x[0].mT.contiguous().mT):
        assert torch.equal(isf.segment(f, *x[1:], size=(20, 20), backend="triton"), expected)


def test_equal_classes_give_the_lowest_and_256_fit_a_byte():
    f, H, W, b = inputs(B=1, K=256)
    H[:] = H[:, :1]
    for size in ((3, 4), (9, 9)):
        assert (isf.segment(f, H, W, b, size=size, backend="triton") == 0).all()
    H *= 0
    H[:, 255] = 1
    W[:], b[:] = 0, 1
    for size in ((3, 4), (9, 9)):
        assert (isf.segment(f, H, W, b, size=size, backend="triton") == 255).all()


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_gives_some_label_below_K(bad):
    x = inputs(dtype=torch.float32)
    x[0][0] = bad
    for size in ((3, 4), (8, 8)):
        assert (isf.segment(*x, size=size, backend="triton") < 3).all()


def test_empty_inputs():
    f, H, W, b = inputs(B=0)
    assert isf.segment(f, H, W, b, size=(5, 5), backend="triton").shape == (0, 5, 5)
    target = torch.empty(0, 5, 5, dtype=torch.uint8)
    assert isf.segment_and_count(f, H, target, W, b, num_classes=2, backend="triton").sum() == 0


@pytest.mark.parametrize(
    ("K", "num_classes", "ignore_index"),
    [(6, 4, 255), (6, 4, 2), (6, 4, None), (6, 4, -1), (27, 27, 300), (40, 200, 255), (256, 256, None)],
)
def test_counts_are_those_of_the_labels(K, num_classes, ignore_index):
    x = inputs(B=2, C=4, K=K, size=(5, 7), dtype=torch.float32)
    target = torch.randint(0, num_classes, (2, 30, 40), dtype=torch.uint8)
    if ignore_index == 255:
        target[0, :5] = 255
    f, H, *projection = x
    counts, labels, outside = isf.segment_and_count(
        f, H, target, *projection, num_classes=num_classes, temperature=2.0, ignore_index=ignore_index,
        return_labels=True, return_outside=True, backend="triton",
    )  # fmt: skip
    assert torch.equal(labels, isf.segment(*x, size=(30, 40), temperature=2.0, backend="triton"))
    assert torch.equal(counts, isf.confusion_matrix(labels, target, K, num_classes, ignore_index)) and outside == 0
    alone = isf.segment_and_count(
        f, H, target, *projection, num_classes=num_classes, temperature=2.0, ignore_index=ignore_index, backend="triton"
    )
    assert torch.equal(alone, counts)


@pytest.mark.parametrize(("K", "num_classes"), [(5, 3), (200, 200)])
def test_targets_out_of_range_are_counted_aside(K, num_classes):
    volume = torch.randn(2, K, 6, 6)
    target = torch.randint(0, num_classes, (2, 40, 40), dtype=torch.uint8)
    target[0, 3, 4:9], target[1, 39, 39], target[1, 0] = num_classes, 254, 255
    counts, outside = torch.zeros(K, num_classes, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    segment.upsample(volume, None, target, counts, outside, (40, 40), 255)
    assert outside == 6 and counts.sum() == 2 * 1600 - 6 - 40
    segment.upsample(volume, None, target, counts, outside, (40, 40), 255)  # they add
    assert outside == 12 and counts.sum() == 2 * (2 * 1600 - 6 - 40)


def test_on_the_cpu_a_target_out_of_range_raises():
    f, H, W, b = inputs()
    target = torch.zeros(4, 5, 5, dtype=torch.uint8)
    target[1, 2, 3] = 7
    with pytest.raises(ValueError, match="target holds 7 at flat index 38; 0 to 2 are accepted"):
        isf.segment_and_count(f, H, target, W, b, num_classes=3, backend="triton")
