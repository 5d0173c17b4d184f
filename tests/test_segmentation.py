"""`segment`, `segment_and_count` and `confusion_matrix`."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import inputs

import infoseg_fast as isf
from infoseg_fast import reference


def upsampled_argmax(x, size, interpolate, temperature):
    volume = isf.local_global_similarity(*x)
    if interpolate == "probs":
        volume = torch.softmax(temperature * volume, dim=1)
    return F.interpolate(volume, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("interpolate", ["probs", "logits"])
@pytest.mark.parametrize("size", [(3, 4), (12, 16), (7, 9), (2, 3), (1, 40)])
def test_is_the_argmax_of_what_is_upsampled(size, interpolate):
    x = inputs(K=9)
    volume = upsampled_argmax(x, size, interpolate, 1.7)
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


def slow_counts(pred, target, num_clusters, num_classes, ignore_index):
    counts = np.zeros((num_clusters, num_classes), dtype=np.int64)
    for p, t in zip(pred.ravel().tolist(), target.ravel().tolist(), strict=True):
        if t != ignore_index:
            counts[p, t] += 1
    return counts


@pytest.mark.parametrize("ignore_index", [255, 2, None, -1])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_counts_every_pair_once(dtype, ignore_index):
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 7, (3, 5, 7)).astype(dtype), rng.integers(0, 4, (3, 5, 7)).astype(dtype)
    if ignore_index not in (None, 2):
        target[0, 0] = np.array(ignore_index).astype(dtype) if dtype != np.uint8 or ignore_index == 255 else 0
        pred[0, 0] = 100  # what is predicted where nothing counts does not matter
        if dtype == np.uint8 and ignore_index == -1:
            pred[0, 0] = 0
    expected = slow_counts(pred, target, 7, 4, ignore_index)
    found = isf.confusion_matrix(pred, target, 7, 4, ignore_index)
    assert found.dtype == np.int64 and np.array_equal(found, expected)
    as_tensors = isf.confusion_matrix(torch.from_numpy(pred), torch.from_numpy(target), 7, 4, ignore_index)
    assert as_tensors.dtype == torch.int64 and np.array_equal(as_tensors.numpy(), expected)


def test_all_256_values_count_without_an_ignore_index():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(isf.confusion_matrix(values, values, 256, 256, None), torch.eye(256, dtype=torch.int64))


def test_nothing_gives_no_counts():
    empty = torch.empty(0, dtype=torch.uint8)
    assert isf.confusion_matrix(empty, empty, 3, 2).tolist() == [[0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(("name", "value"), [("pred", 5), ("target", 3)])
def test_a_value_out_of_range_is_named_with_its_place(name, value, dtype):
    maps = {"pred": torch.zeros(4, 6, dtype=dtype), "target": torch.zeros(4, 6, dtype=dtype)}
    maps[name][2, 1] = value
    with pytest.raises(ValueError, match=rf"{name}.*\b{value}\b.*\b13\b"):
        isf.confusion_matrix(maps["pred"], maps["target"], 5, 3)


def test_counts_arguments_are_checked():
    a = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\[3\] and \[2\]"):
        isf.confusion_matrix(a, a[:2], 2, 2)
    with pytest.raises(TypeError, match="pred.*float32"):
        isf.confusion_matrix(a.float(), a, 2, 2)
    with pytest.raises(ValueError, match="num_classes"):
        isf.confusion_matrix(a, a, 2, 0)


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
