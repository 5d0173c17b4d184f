"""`confusion_matrix`: exact counts for every dtype and instruction set, and values out of range."""

import itertools

import numpy as np
import pytest
import torch
from conftest import needs_extension, torch_threads
from fibers import needs_compiler, runner
from hypothesis import given, settings
from hypothesis import strategies as st

import infoseg_fast as isf
from infoseg_fast import extension
from infoseg_fast.ops import confusion_matrix as confusion

DTYPES = [np.uint8, np.int8, np.int16, np.int32, np.int64]


def by_definition(pred, target, num_clusters, num_classes, ignore_index):
    """Masked np.bincount, which the function replaces."""
    pred, target = pred.ravel().astype(np.int64), target.ravel().astype(np.int64)
    counted = np.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    cells = pred[counted] * num_classes + target[counted]
    return np.bincount(cells, minlength=num_clusters * num_classes).reshape(num_clusters, num_classes)


def runs(rng, size, values, mean_length):
    """Labels in runs, as in a label map."""
    starts = rng.random(size) < 1 / mean_length
    return rng.integers(0, values, size)[np.maximum.accumulate(np.where(starts, np.arange(size), 0))]


def test_every_pair_of_dtypes_is_counted(instruction_set):
    rng = np.random.default_rng(0)
    for (pred_type, target_type), (K, C) in itertools.product(
        itertools.product(DTYPES, DTYPES), [(1, 1), (3, 5), (27, 15), (100, 120)]
    ):
        pred, target = rng.integers(0, K, 5000).astype(pred_type), rng.integers(0, C, 5000).astype(target_type)
        for ignore_index in (None, 0, C - 1, 127, -1, 255, 2**40):
            pred_here = pred.copy()
            if ignore_index is not None and ignore_index < C:
                pred_here[target == ignore_index] = 127  # any prediction may stand where the target is ignored
            counts = isf.confusion_matrix(pred_here, target, K, C, ignore_index)
            assert counts.dtype == np.int64
            assert (counts == by_definition(pred_here, target, K, C, ignore_index)).all()


@pytest.mark.parametrize("mean_length", [1, 3, 10, 100])
def test_runs_of_all_lengths_are_counted(instruction_set, mean_length):
    rng = np.random.default_rng(mean_length)
    for size in (1, 31, 32, 33, 2047, 2048, 2049, 70_000):
        pred, target = (runs(rng, size, 27, mean_length).astype(np.uint8) for _ in range(2))
        target[runs(rng, size, 9, mean_length) == 0] = 255
        assert (isf.confusion_matrix(pred, target, 27, 27) == by_definition(pred, target, 27, 27, 255)).all()


@pytest.mark.parametrize("shape", [(256, 256), (256, 300), (90, 90), (91, 90), (2000, 3)])
def test_many_classes_are_counted(instruction_set, shape):
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, shape[0], 9999), rng.integers(0, shape[1], 9999)
    if max(shape) <= 256:
        pred, target = pred.astype(np.uint8), target.astype(np.uint8)
    assert (isf.confusion_matrix(pred, target, *shape, None) == by_definition(pred, target, *shape, None)).all()


def test_threads_count_the_same():
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 7, 1_000_003).astype(np.uint8), rng.integers(0, 5, 1_000_003).astype(np.uint8)
    counts = []
    for threads in (1, 2, 3):
        with torch_threads(threads):
            counts.append(isf.confusion_matrix(pred, target, 7, 5))
    assert (counts[0] == by_definition(pred, target, 7, 5, 255)).all()
    assert (counts[0] == counts[1]).all() and (counts[0] == counts[2]).all()


def without_the_extension(pred, target, *arguments):
    """The counts of the path without the extension, which a GPU takes too."""
    return confusion.counts_and_outside(torch.as_tensor(pred), torch.as_tensor(target), *arguments)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_labels_are_counted_or_refused_alike(data):
    size, K, C = data.draw(st.integers(0, 200)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    types = st.sampled_from(DTYPES)
    pred = np.array(data.draw(st.lists(st.integers(-1, K), min_size=size, max_size=size)), np.int64)
    target = np.array(data.draw(st.lists(st.integers(-1, C), min_size=size, max_size=size)), np.int64)
    if data.draw(st.booleans()):
        pred, target = pred.clip(0, K - 1), target.clip(0, C - 1)
    pred, target = pred.astype(data.draw(types)), target.astype(data.draw(types))
    ignore_index = data.draw(st.none() | st.integers(-1, C))
    counted = np.ones(size, bool) if ignore_index is None else target != ignore_index
    wide = pred.astype(np.int64), target.astype(np.int64)
    bad = counted & ((wide[0] < 0) | (wide[0] >= K) | (wide[1] < 0) | (wide[1] >= C))
    counts, outside = without_the_extension(pred, target, K, C, ignore_index)
    assert outside == bad.sum()
    if bad.any():
        with pytest.raises(ValueError, match=rf"at flat index {bad.argmax()};"):
            isf.confusion_matrix(pred, target, K, C, ignore_index)
    else:
        expected = by_definition(pred, target, K, C, ignore_index)
        assert (isf.confusion_matrix(pred, target, K, C, ignore_index) == expected).all()
        assert (counts.numpy() == expected).all()


@pytest.mark.parametrize("extended", [pytest.param(True, marks=needs_extension), False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_out_of_range_is_named_with_its_place(dtype, extended, monkeypatch):
    if not extended:
        monkeypatch.setattr(extension, "compiled", lambda: None)
    pred, target = np.zeros((50, 60), dtype), np.zeros((50, 60), dtype)
    pred[30, 7] = pred[40, 0] = 9
    target[31, 8] = 8
    with pytest.raises(ValueError, match=r"pred holds 9 at flat index 1807; 0 to 8 are accepted"):
        isf.confusion_matrix(pred, target, 9, 8)
    with pytest.raises(ValueError, match=r"target holds 8 at flat index 1868; 0 to 7 are accepted"):
        isf.confusion_matrix(pred, target, 10, 8)
    pred[30, 7] = target[30, 7] = 20
    with pytest.raises(ValueError, match=r"target holds 20 at flat index 1807"):
        isf.confusion_matrix(pred, target, 9, 8)
    if dtype != np.uint8:
        target[0, 1] = -7
        with pytest.raises(ValueError, match=r"target holds -7 at flat index 1;"):
            isf.confusion_matrix(pred, target, 9, 8)


@needs_extension
def test_an_error_leaves_the_counts_as_they_were():
    counts = torch.full((3, 3), 5)
    labels = torch.zeros(1000, dtype=torch.uint8)
    labels[999] = 3
    with pytest.raises(ValueError, match="flat index 999"):
        confusion.add_confusion(counts, labels, labels, None)
    assert (counts == 5).all()


def test_strided_labels_and_unequal_kinds():
    pred, target = torch.randint(0, 4, (9, 10, 11)), torch.randint(0, 3, (9, 10, 11), dtype=torch.uint8)
    expected = torch.from_numpy(by_definition(pred.numpy(), target.numpy(), 4, 3, 255))
    assert torch.equal(isf.confusion_matrix(pred, target, 4, 3), expected)
    strided = isf.confusion_matrix(pred.permute(2, 0, 1), target.permute(2, 0, 1), 4, 3)
    assert torch.equal(strided, expected) and isinstance(isf.confusion_matrix(pred.numpy(), target, 4, 3), torch.Tensor)
    with pytest.raises(ValueError, match="one shape"):
        isf.confusion_matrix(pred, target[:8], 4, 3)
    with pytest.raises(ValueError, match="num_classes must be"):
        isf.confusion_matrix(pred, target, 4, 0)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS = {
    "unsigned-16": lambda x: x.astype(np.uint16),
    "unsigned-32": lambda x: x.astype(np.uint32),
    "unsigned-64": lambda x: x.astype(np.uint64),
    "signed-8": lambda x: x.astype(np.int8),
    "big-endian": lambda x: x.astype(">i4"),
    "big-endian-unsigned": lambda x: x.astype(">u2"),
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "fortran": np.asfortranarray,
    "read-only": read_only,
    "read-only-big-endian": lambda x: read_only(x.astype(">i8")),
    "list": lambda x: x.tolist(),
    "tensor-unsigned-16": lambda x: torch.from_numpy(x.astype(np.uint16)),
    "tensor-unsigned-64": lambda x: torch.from_numpy(x.astype(np.uint64)),
    "tensor-strided": lambda x: torch.from_numpy(np.asfortranarray(x)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
def test_labels_of_every_form_are_counted(form):
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 5, (30, 40)), rng.integers(0, 4, (30, 40))
    expected = by_definition(pred, target, 5, 4, 2)
    make = FORMS[form]
    for labels in ((make(pred), make(target)), (make(pred), target), (pred, make(target))):
        counts = isf.confusion_matrix(*labels, 5, 4, 2)
        assert isinstance(counts, torch.Tensor) == any(isinstance(x, torch.Tensor) for x in labels)
        assert (np.asarray(counts) == expected).all()
    metrics = isf.ClusterMetrics(5, 4, ignore_index=2)
    metrics.update(make(pred), make(target))
    assert (metrics.counts.numpy() == expected).all()


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_bool_labels_are_counted(make):
    pred, target = np.random.default_rng(0).random((2, 99)) < 0.3
    assert (
        np.asarray(isf.confusion_matrix(make(pred), make(target), 2, 2)) == by_definition(pred, target, 2, 2, 255)
    ).all()


def test_empty_labels_count_nothing():
    for empty in ([], np.zeros((0, 3), np.uint8), torch.zeros(0, dtype=torch.int16)):
        assert (np.asarray(isf.confusion_matrix(empty, empty, 2, 3)) == np.zeros((2, 3))).all()


@pytest.mark.parametrize("labels", [torch.zeros(3), np.zeros(3), [0.5], np.array(["0"]), np.array([2**70])])
def test_labels_of_other_dtypes_are_refused(labels):
    right = np.zeros(len(labels), np.uint8)
    for name, pair in (("pred", (labels, right)), ("target", (right, labels))):
        with pytest.raises(TypeError, match=f"{name} must have an integer or bool dtype, not"):
            isf.confusion_matrix(*pair, 4, 3)


@pytest.mark.parametrize("ignored", [1.0, "255", 2**70])
def test_an_ignored_value_is_a_whole_number(ignored):
    for make in (lambda: isf.confusion_matrix([0], [0], 2, 2, ignored), lambda: isf.ClusterMetrics(2, 2, ignored)):
        with pytest.raises(TypeError, match="ignore_index must be None or a whole number"):
            make()


def test_a_masked_position_is_refused_since_its_value_would_count():
    labels = np.ma.masked_equal([0, 1, 2], 2)
    with pytest.raises(ValueError, match="target must have no masked positions"):
        isf.confusion_matrix([0, 0, 0], labels, 2, 3)
    assert isf.confusion_matrix([0, 0, 0], labels.filled(255), 2, 3).sum() == 2
    assert isf.confusion_matrix([0, 0], labels[:2], 2, 3).sum() == 2


def test_a_value_beyond_int64_is_out_of_range():
    with pytest.raises(ValueError, match="at flat index 1;"):
        isf.confusion_matrix(np.array([0, 2**64 - 1], np.uint64), np.zeros(2, int), 4, 3)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1), (27, 15), (110, 110), (111, 111)])
def test_the_cuda_kernel_counts_on_fibers(fibers, shape):
    rng = np.random.default_rng(0)
    for size, mean_length, types in ((0, 1, (0, 1)), (31, 1, (1, 2)), (5000, 2, (0, 4)), (40_000, 90, (3, 0))):
        pred, target = (runs(rng, size, k, mean_length).astype(DTYPES[t]) for k, t in zip(shape, types, strict=True))
        for ignore_index in (None, 0):
            pred_here, target_here = pred.copy(), target.copy()
            if size:
                target_here[size // 2], pred_here[size // 2 + 1], target_here[size // 2 + 1] = 120, 120, shape[1] - 1
            labels = confusion.as_labels(pred_here, "pred", 1, "n"), confusion.as_labels(target_here, "target", 1, "n")
            fibers.cuda_harness_set_schedule(size)
            counts, outside = confusion.launch(runner(fibers), *labels, *shape, ignore_index)
            expected, expected_outside = confusion.counts_and_outside(*labels, *shape, ignore_index)
            assert torch.equal(counts, expected) and outside == expected_outside


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_nothing_waits_unless_asked_to():
    pred, target = torch.randint(0, 4, (3, 99)).cuda(), torch.randint(0, 3, (3, 99)).byte().cuda()
    pred[1, 1] = 4
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counts = isf.confusion_matrix(pred, target, 4, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counts.is_cuda and counts.sum() == 3 * 99 - 1
    with pytest.raises(ValueError, match="pred holds 4 at flat index 100"):
        isf.confusion_matrix(pred, target, 4, 3, check=True)
