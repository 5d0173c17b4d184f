"""The Triton kernels of the appearance term in the interpreter, against the reference in float64."""

import pytest
import torch
import triton.language as tl
from conftest import inputs

import infoseg_fast as isf
from infoseg_fast.bench.cuda_values import distance
from infoseg_fast.kernels import KERNELS
from infoseg_fast.kernels import appearance_statistics as statistics_kernels
from infoseg_fast.kernels.plans import forget_plans
from infoseg_fast.ops.appearance_statistics import appearance_statistics
from infoseg_fast.ops.information_of_moments import information_of_moments
from infoseg_fast.ops.joined_appearance import joined_appearance_term
from infoseg_fast.ops.local_appearance import local_appearance
from infoseg_fast.recipe import appearance


def images():
    """By name; two programs an image of both kernels where it matters, and both ragged."""
    wide, small = torch.rand(2, 3, 48, 44), torch.rand(1, 3, 8, 12)
    yield "contiguous", wide, (12, 11)
    yield "channels last", small.to(memory_format=torch.channels_last), (2, 3)
    yield "transposed", small.mT.contiguous().mT, (2, 3)
    yield "every other column", torch.rand(1, 3, 8, 24)[..., ::2], (2, 3)
    yield "one image for all", torch.rand(1, 4, 8, 8).expand(2, -1, -1, -1), (2, 2)
    yield "not aligned", torch.rand(1 + 3 * 64)[1:].view(1, 3, 8, 8), (2, 2)
    yield "cells of 3 x 5", torch.rand(2, 1, 33, 20), (11, 4)
    yield "cells of 1 x 3", torch.rand(1, 2, 5, 3), (5, 1)
    yield "one pixel a cell", torch.rand(1, 3, 4, 5), (4, 5)
    yield "one cell, wider than a block", torch.rand(1, 5, 3, 35), (1, 1)
    yield "more channels than factors of a product", 0.05 * torch.rand(1, 19, 8, 8), (2, 2)


@pytest.mark.parametrize(("name", "x", "size"), list(images()), ids=lambda x: x if isinstance(x, str) else "")
def test_the_appearance_is_the_references_in_every_layout(name, x, size, monkeypatch):
    expected = local_appearance(x, size, backend="reference")
    monkeypatch.setattr(torch.Tensor, "contiguous", None)  # images are read where they lie
    found = local_appearance(x, size, backend="triton")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_a_number_and_what_is_below_black_is_found_in_its_cells():
    x = torch.rand(1, 3, 12, 12)
    x[0, 1, 0, 0], x[0, 2, 11, 11] = torch.nan, -1
    found, expected = (local_appearance(x, (3, 3), backend=name) for name in ("triton", "reference"))
    assert torch.equal(found.isnan(), expected.isnan()) and found.isnan().any() and not found.isnan().all()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6, equal_nan=True)


# Two programs an image of both kernels, of which the last is ragged; two blocks of factors; borders
# on both sides.
STATISTICS = [((2, 3, 20, 14), 0), ((1, 5, 10, 13), 1), ((1, 8, 3, 4), 1), ((1, 2, 6, 5), 2), ((2, 1, 1, 4), 3)]


@pytest.mark.parametrize(("dtype", "masked"), [(torch.float32, True), (torch.float64, False)], ids=str)
@pytest.mark.parametrize(("shape", "radius"), STATISTICS, ids=str)
def test_statistics_are_the_references(shape, radius, dtype, masked):
    y = torch.randn(shape, dtype=torch.float64).to(dtype) * 3 - 2
    mask = torch.rand(shape[0], *shape[2:]) < 0.6 if masked else None
    found = appearance_statistics(y, mask, radius, backend="triton")
    truth = appearance_statistics(y.double(), mask, radius, backend="reference")
    eager = appearance_statistics(y, mask, radius, backend="reference")
    assert found.dtype == dtype and found.shape == truth.shape
    floor = 2e-7 if dtype == torch.float32 else 1e-15
    assert distance(found, truth) <= 2 * distance(eager, truth) + floor


def test_statistics_of_any_strides_of_many_runs_and_twice(monkeypatch):
    """More tiles than runs of positions, so each takes several."""
    y, mask = torch.randn(3, 4, 6, 2).mT[..., ::2], torch.rand(3, 3, 2).mT < 0.6
    mask[2] = False  # a run in which nothing counts
    expected = appearance_statistics(y, mask, backend="reference")
    for parts in (2, 128):
        monkeypatch.setattr(statistics_kernels, "MAX_PARTS", tl.constexpr(parts))
        forget_plans()
        found = appearance_statistics(y, mask, backend="triton")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(found, appearance_statistics(y, mask, backend="triton"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_does_not_count_leaves_no_trace_and_nothing_that_counts_gives_nan():
    y, mask = torch.randn(1, 2, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool)
    mask[0, 1, 1] = False
    expected = appearance_statistics(y, mask, 1, backend="triton")
    y[0, :, 1, 1] = torch.nan
    assert torch.equal(appearance_statistics(y, mask, 1, backend="triton"), expected)
    for radius in (0, 1):
        for name in ("triton", "reference"):
            assert appearance_statistics(y, torch.zeros_like(mask), radius, backend=name).isnan().all()


def test_a_channel_without_contrast_stays_finite():
    y = torch.randn(1, 2, 3, 4)
    y[:, 1] = 5
    assert appearance_statistics(y, backend="triton").isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [1, 5, 16])
def test_the_information_and_its_gradient_are_the_references(d, dtype):
    V = torch.softmax(2 * torch.randn(3, 4, 7, 8, dtype=torch.float64), dim=1).to(dtype)
    V = torch.cat([V, torch.zeros_like(V[:, :1])], dim=1)  # and a class without positions
    statistics = appearance_statistics(torch.randn(3, d, 7, 8, dtype=dtype), backend="reference")
    moments = torch.einsum("bkyx,bsyx->sk", V, statistics).mT.requires_grad_()
    total = statistics.sum(dim=(0, 2, 3))
    # The interpreter hands numbers to a kernel in float32, which holds this one.
    found, expected = (information_of_moments(moments, total, 0.25, backend=name) for name in ("triton", "reference"))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert found.dtype == dtype and found.shape == ()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    a, b = (torch.autograd.grad(x, moments, torch.tensor(1.7, dtype=dtype))[0] for x in (found, expected))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        assert torch.equal(information_of_moments(moments, total, 0.25, backend="triton"), found)


def test_the_information_of_what_is_not_a_number_is_none():
    moments, total = torch.rand(3, 3), torch.rand(3)
    moments[1, 0] = torch.nan
    assert information_of_moments(moments, total, backend="triton").isnan()
    assert information_of_moments(torch.rand(3, 3), total * torch.nan, backend="triton").isnan()


def test_the_whole_term_is_that_of_the_reference():
    """As training forms it, with gradients by features and global features: float64 against
    float64.
    """
    x = [t.requires_grad_() for t in inputs(B=2, C=5, K=3, size=(4, 5))]
    images = torch.rand(2, 3, 16, 20)
    y = local_appearance(images, (4, 5), backend="triton").double()
    assert torch.equal(y.float(), local_appearance(images, (4, 5), backend="triton"))  # to the bit
    mask = torch.rand(2, 4, 5) < 0.8

    def term(backend):
        statistics = appearance_statistics(y, mask, 1, backend=backend)
        moments = isf.class_moments(*x, statistics=statistics, temperature=1.5, backend=backend)
        return information_of_moments(moments, statistics.sum(dim=(0, 2, 3)), 0.125, backend=backend)

    found, expected = term("triton"), term("reference")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, x), torch.autograd.grad(expected, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "masked", "bias"), [(torch.float32, True, True), (torch.bfloat16, False, False)])
def test_the_term_in_one_plan_is_that_of_its_ops(dtype, masked, bias, monkeypatch):
    x = [t.to(dtype).requires_grad_() for t in inputs(B=2, C=6, K=3, size=(4, 5))]
    x = x if bias else x[:3]
    how = {"images": torch.rand(2, 3, 16, 20), "smooth": 1, "temperature": 1.5}
    how["mask"] = torch.rand(2, 4, 5) < 0.8 if masked else None
    upstream = torch.tensor(0.7)
    found = appearance.appearance_term(*x, **how, backend="triton")
    gradients = [torch.autograd.grad(found, x, upstream, retain_graph=True) for _ in range(1 + masked)]
    assert all(torch.equal(*pair) for pair in zip(gradients[0], gradients[-1], strict=True))
    with torch.no_grad():
        assert torch.equal(appearance.appearance_term(*x, **how, backend="triton"), found)

    monkeypatch.setattr(appearance, "joined_appearance_term", lambda *_: None)
    expected = appearance.appearance_term(*x, **how, backend="triton")
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert found.grad_fn.call[0] == "appearance_term" != expected.grad_fn.call[0]
    for a, b in zip(gradients[0], torch.autograd.grad(expected, x, upstream), strict=True):
        assert a.dtype == dtype and distance(a, b.double()) < 1e-5 + rounding


@pytest.mark.parametrize("how", ["float64", "broken cells", "no weight"])
def test_what_the_plan_cannot_take_goes_to_the_ops(how):
    x = inputs(B=2, C=6, D=6, K=3, size=(4, 5), dtype=torch.float64 if how == "float64" else torch.float32)
    x = x[:2] if how == "no weight" else x
    images = torch.rand(2, 3, 16, 21 if how == "broken cells" else 20)
    assert joined_appearance_term(*x, *[None] * (4 - len(x)), images, None, 1, 1.0, "triton") is None
    if how != "broken cells":
        found = appearance.appearance_term(*x, images=images, smooth=1, backend="triton")
        assert found.dtype == (x[0].dtype if how == "float64" else torch.float32) and found.isfinite()


def test_empty_inputs():
    assert local_appearance(torch.rand(0, 3, 8, 8), (2, 2), backend="triton").shape == (0, 5, 2, 2)
    assert appearance_statistics(torch.rand(0, 2, 3, 4), backend="triton").shape == (0, 6, 3, 4)
    assert KERNELS["local_appearance"].forward(torch.rand(0, 3, 8, 8), (2, 2)).shape == (0, 5, 2, 2)
    assert KERNELS["appearance_statistics"].forward(torch.rand(0, 2, 3, 4), None, 1).shape == (0, 6, 3, 4)


def test_cells_of_broken_pixels_and_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="'triton' takes cells of whole pixels"):
        local_appearance(torch.rand(1, 3, 10, 10), (3, 3), backend="triton")
    for act in (
        lambda: appearance_statistics(torch.rand(1, 2, 3, 4).half(), backend="triton"),
        lambda: information_of_moments(torch.rand(3, 3).half(), torch.rand(3).half(), backend="triton"),
    ):
        with pytest.raises(isf.BackendUnavailableError, match="it has no kernel for torch.float16"):
            act()
