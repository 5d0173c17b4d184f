"""`local_appearance`, `appearance_statistics` and `information_of_moments`, and the appearance term
made of them.
"""

import math

import numpy as np
import pytest
import torch
from conftest import needs_extension, torch_threads

import infoseg_fast as isf
from infoseg_fast.ops.local_appearance import local_appearance
from infoseg_fast.recipe.appearance import (
    AppearanceTerm,
    appearance_statistics,
    appearance_term,
    information_of_moments,
)
from infoseg_fast.recipe.colours import colour_channels
from infoseg_fast.recipe.overclustering import OverClusters
from infoseg_fast.recipe.refinement import colours_of
from infoseg_fast.recipe.sample import Sample
from infoseg_fast.reference import neighbourhood_mean
from infoseg_fast.reference.local_appearance import DARK, FLAT


def stated(V: np.ndarray, y: np.ndarray, r: float) -> float:
    """The formula over positions one by one: V [N, K], y [N, d]."""
    y = (y - y.mean(0)) / y.std(0)
    floor = r**2 * np.eye(y.shape[1])
    found = 0.5 * np.linalg.slogdet(np.cov(y.T, bias=True).reshape(floor.shape) + floor)[1]
    for weights in V.T:
        covariance = np.cov(y.T, aweights=weights, bias=True).reshape(floor.shape)
        found -= weights.mean() * 0.5 * np.linalg.slogdet(covariance + floor)[1]
    return found


def problem(B=3, K=4, d=3, size=(5, 6), dtype=torch.float64):
    V = torch.softmax(2 * torch.randn(B, K, *size, dtype=torch.float64), dim=1)
    y = torch.randn(B, d, *size, dtype=torch.float64) * torch.tensor([1.0, 20.0, 0.1])[:d, None, None] + 3
    return V.to(dtype), y.to(dtype)


def rows(x: torch.Tensor) -> np.ndarray:
    return x.double().movedim(1, -1).flatten(0, 2).numpy()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-3)]
)
@pytest.mark.parametrize("d", [1, 3])
def test_the_value_is_the_formula_s(dtype, tolerance, d):
    V, y = problem(d=d)
    V = V.to(dtype)
    found = isf.appearance_information(V, y.float() if dtype != torch.float64 else y, resolution=0.3)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Rounded probabilities no longer add up to 1, which the formula feels in the shares.
    assert found.item() == pytest.approx(stated(rows(V), rows(y), 0.3), abs=tolerance)


def test_it_is_never_negative_and_0_when_the_classes_look_alike():
    for scale in (0.1, 1, 10):
        V = torch.softmax(scale * torch.randn(2, 5, 7, 7), dim=1)
        assert isf.appearance_information(V, torch.randn(2, 2, 7, 7)) >= -1e-5
    alike = torch.full((2, 5, 7, 7), 0.2)
    assert isf.appearance_information(alike, torch.randn(2, 2, 7, 7)).abs() < 1e-5


def test_classes_that_tell_the_appearance_exactly_reach_the_resolution():
    V = torch.zeros(1, 2, 2, 2).scatter_(1, torch.tensor([[[[0, 1], [1, 0]]]]), 1)
    y = torch.tensor([[[[-1.0, 1.0], [1.0, -1.0]]]])
    found = isf.appearance_information(V, y, resolution=0.1)
    assert found.item() == pytest.approx(0.5 * math.log((1 + 0.01) / 0.01), rel=1e-5)


def test_the_gradient_is_the_derivative():
    V, y = problem(B=2, size=(2, 3))
    mask = torch.rand(2, 2, 3) > 0.3
    assert torch.autograd.gradcheck(
        lambda v: isf.appearance_information(v, y, mask, resolution=0.2), V.requires_grad_(True)
    )


def test_masked_positions_do_not_count():
    V, y = problem(B=2, size=(1, 12))
    mask = torch.zeros(2, 1, 12, dtype=torch.bool)
    mask[:, :, 3:9] = True
    whole = isf.appearance_information(V[..., 3:9], y[..., 3:9])
    assert torch.allclose(isf.appearance_information(V, y, mask), whole, rtol=1e-12)
    assert isf.appearance_information(V, y, torch.zeros_like(mask)).isnan()


def test_a_class_that_is_not_used_and_a_channel_without_contrast_keep_everything_finite():
    logits = torch.randn(2, 3, 4, 4)
    logits[:, 2] = -1e4
    logits.requires_grad_(True)
    y = torch.randn(2, 2, 4, 4)
    y[:, 1] = 5
    value = isf.appearance_information(torch.softmax(logits, dim=1), y)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("smooth", [0, 1])
@pytest.mark.parametrize("other", [-50.0, float("nan"), float("inf")])
def test_what_masked_positions_hold_changes_nothing(other, smooth, backend):
    mask = torch.rand(2, 5, 6) < 0.5
    for y in (torch.randn(2, 3, 5, 6), torch.full((2, 3, 5, 6), 0.5)):
        expected = appearance_statistics(torch.where(mask[:, None], y, y.mean()), mask, smooth, backend=backend)
        found = appearance_statistics(torch.where(mask[:, None], y, other), mask, smooth, backend=backend)
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smooth", [0, 1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_moments_of_averaged_statistics_are_those_of_averaged_probabilities(smooth, masked):
    """Value and gradients of the way that training goes, against the formula on the smoothed
    assignment.
    """
    x = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((4, 5, 7, 9), (4, 6, 8), (8, 5), (8,))]
    y = problem(B=4, size=(7, 9))[1]
    mask = torch.rand(4, 7, 9) < 0.7 if masked else None
    V = neighbourhood_mean(isf.assign(*x, temperature=1.3), smooth)
    expected = isf.appearance_information(V, y, mask, resolution=0.2)
    statistics = appearance_statistics(y, mask, smooth)
    moments = isf.class_moments(*x, statistics=statistics, temperature=1.3)
    found = information_of_moments(moments, statistics.sum(dim=(0, 2, 3)), 0.2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    for a, b in zip(torch.autograd.grad(found, x), torch.autograd.grad(expected, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    if not masked:
        assert found.item() == pytest.approx(stated(rows(V.detach()), rows(y), 0.2), rel=1e-10)


@needs_extension
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided", "transposed"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 3, 64, 64), (16, 16)), ((2, 1, 32, 40), (8, 10)), ((2, 4, 33, 20), (11, 4)), ((1, 3, 5, 3), (5, 1))],
)
def test_the_kernels_give_the_references_appearance_and_statistics(instruction_set, shape, size, layout):
    images = torch.rand(*shape[:3], 2 * shape[3])[..., ::2]
    if layout == "transposed":
        images = images.mT.contiguous().mT
    elif layout != "strided":
        form = torch.channels_last if layout == "channels last" else torch.contiguous_format
        images = images.contiguous(memory_format=form)
    y = local_appearance(images, size, backend="cpp")
    torch.testing.assert_close(y, local_appearance(images, size, backend="reference"), rtol=1e-6, atol=2e-6)
    y = torch.randn(y.shape) * 3 - 2
    for smooth in (0, 1, 3):
        for mask in (None, torch.rand(shape[0], *size) < 0.6):
            found = appearance_statistics(y, mask, smooth, backend="cpp")
            truth = appearance_statistics(y.double(), mask, smooth, backend="reference")
            assert (found - truth).norm() <= 2e-6 * truth.norm()
            assert torch.equal(found, appearance_statistics(y, mask, smooth, backend="cpp"))


@needs_extension
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_give_the_bits_of_one(threads):
    images, y = torch.rand(5, 3, 32, 32), torch.randn(5, 4, 8, 8)
    one = local_appearance(images, (8, 8), backend="cpp"), appearance_statistics(y, None, 1, backend="cpp")
    with torch_threads(threads):
        many = local_appearance(images, (8, 8), backend="cpp"), appearance_statistics(y, None, 1, backend="cpp")
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


@needs_extension
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_the_kernel_of_the_information_gives_the_references_value_and_gradient(dtype, tolerance):
    V, y = problem(dtype=dtype)
    V = torch.cat([V, torch.zeros_like(V[:, :1])], dim=1)  # and a class without positions
    statistics = appearance_statistics(y)
    moments = torch.einsum("bkyx,bsyx->ks", V, statistics).requires_grad_()
    total = statistics.sum(dim=(0, 2, 3))
    found, expected = (information_of_moments(moments, total, 0.2, backend=name) for name in ("cpp", "reference"))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    a, b = (torch.autograd.grad(x, moments)[0] for x in (found, expected))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert information_of_moments(moments * torch.nan, total * torch.nan, 0.2, backend="cpp").isnan()


@needs_extension
def test_cells_of_broken_pixels_are_the_references():
    images = torch.rand(1, 3, 10, 10)
    assert torch.equal(local_appearance(images, (3, 3)), local_appearance(images, (3, 3), backend="reference"))
    with pytest.raises(ValueError, match="takes cells of whole pixels"):
        local_appearance(images, (3, 3), backend="cpp")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"appearance": torch.zeros(2, 1, 4, 5)}, "must share B, h and w"),
        ({"mask": torch.ones(2, 4, 4)}, "mask must be bool"),
        ({"resolution": 0.0}, "resolution must be above 0"),
    ],
)
def test_wrong_arguments_are_named(change, told):
    given = {"probs": torch.full((2, 3, 4, 4), 1 / 3), "appearance": torch.zeros(2, 1, 4, 4)} | change
    with pytest.raises(ValueError, match=told):
        isf.appearance_information(given.pop("probs"), given.pop("appearance"), **given)


@pytest.mark.parametrize(
    ("act", "error", "told"),
    [
        (
            lambda: local_appearance(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (2, 2)),
            TypeError,
            r"images must be a floating-point tensor \[B, c, H, W\], not a uint8 tensor",
        ),
        (lambda: local_appearance(torch.zeros(3, 8, 8), (2, 2)), ValueError, "images must be"),
        (
            lambda: local_appearance(torch.zeros(1, 3, 8, 8), (2, 0)),
            ValueError,
            "size must be two numbers of positions",
        ),
        (
            lambda: appearance_statistics(torch.rand(2, 3, 4, 4), torch.ones(2, 4, 3, dtype=torch.bool)),
            ValueError,
            r"mask must be a bool tensor of shape \[2, 4, 4\] on cpu",
        ),
        (
            lambda: appearance_statistics(torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4)),
            ValueError,
            r"mask must be .* not a float32 tensor",
        ),
        (lambda: appearance_statistics(torch.rand(2, 3, 4, 4), smooth=-1), ValueError, "smooth must be .* not -1"),
        (lambda: information_of_moments(torch.rand(3, 9), torch.rand(9)), ValueError, r"S = \(d \+ 1\) \(d \+ 2\) / 2"),
        (lambda: information_of_moments(torch.rand(3, 10), torch.rand(9)), ValueError, r"total must be \[S\] = \[10\]"),
        (
            lambda: information_of_moments(torch.rand(3, 10), torch.rand(10), math.nan),
            ValueError,
            "resolution must be a finite number above 0, not nan",
        ),
    ],
)
def test_ops_name_arguments_that_do_not_fit(act, error, told):
    """A kernel would read outside of them, or take values of 0 to 255 for 0 to 1."""
    with pytest.raises(error, match=told):
        act()


def test_appearance_is_colour_roughness_and_coherence_of_the_cells():
    images = torch.full((1, 3, 32, 32), 0.2)
    images[..., 16:] = 0.7
    y = local_appearance(images, (8, 8))
    assert y.shape == (1, 5, 8, 8)
    assert torch.allclose(y[:, :3, :, :4], torch.tensor(0.2 + DARK).log())
    assert torch.allclose(y[:, :3, :, 4:], torch.tensor(0.7 + DARK).log())
    # The edge belongs to the cell on its left, one of three, where one of four columns steps along
    # both diagonals.
    step = math.log((0.7 + DARK) / (0.2 + DARK))
    energy = torch.zeros(8, 8)
    energy[:, 2:5] = 2 * step**2 / 12
    # The last row of pixels has none below it, and beyond the border the last row of cells is
    # repeated.
    energy[-2] *= 11 / 12
    energy[-1] *= 10 / 12
    assert torch.allclose(y[0, 3], (energy + FLAT).log())
    # An edge has one direction only.
    assert torch.allclose(y[0, 4], energy / (energy + FLAT), atol=1e-6)


def test_coherence_is_that_of_stripes_and_of_grain_however_they_are_turned():
    x = torch.arange(32.0)
    stripes = 0.5 + 0.3 * torch.sin(2.5 * x)[None].expand(32, 32)
    diagonal = 0.5 + 0.3 * torch.sin(1.8 * (x[:, None] + x))
    grain = torch.rand(32, 32)
    images = torch.stack([stripes, stripes.mT, diagonal, grain])[:, None]
    coherence = local_appearance(images, (8, 8))[:, 2, 1:-1, 1:-1]
    assert (coherence[:3] > 0.9).all() and coherence[3].mean() < 0.4
    turned = local_appearance(images.mT, (8, 8))
    torch.testing.assert_close(turned.mT, local_appearance(images, (8, 8)))


BANDS = [1, 2, 3, 4, 8, 13, 64]


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_extension)])
@pytest.mark.parametrize("c", BANDS)
def test_local_appearance_of_any_number_of_bands_is_finite_and_as_accurate(c, backend):
    """Dark bands: the product of 64 of them is below every number of float32."""
    images = torch.rand(2, c, 24, 20) * torch.tensor([0.02, 1.0])[:, None, None, None]
    y = local_appearance(images, (6, 5), backend=backend).double()
    brightness = (images.double() + DARK).log().mean(dim=1, keepdim=True)
    u, v = (brightness[..., 1:, 1:] - brightness[..., :-1, :-1], brightness[..., :-1, 1:] - brightness[..., 1:, :-1])
    energy = torch.nn.functional.pad(u.square() + v.square(), (0, 1, 0, 1))
    trace = neighbourhood_mean(torch.nn.functional.adaptive_avg_pool2d(energy, (6, 5)), 1)
    torch.testing.assert_close(y[:, c : c + 1], (trace + FLAT).log(), rtol=0, atol=2e-5)
    assert y.shape == (2, c + 2, 6, 5) and y.isfinite().all()


@pytest.mark.parametrize("c", BANDS)
def test_the_term_and_the_refinement_hold_for_any_number_of_bands(c):
    images, K = (torch.rand(4, c, 32, 32) * 0.05), 3
    images[:, :, :, 16:] += 0.3 * torch.rand(c, 1, 1)  # two things to tell apart
    logits = torch.zeros(4, K, 8, 8)
    logits[:, 0, :, :4], logits[:, 1, :, 4:], logits[:, 2] = 3, 3, -1
    x = [logits.requires_grad_(), torch.eye(K).expand(4, K, K)]
    term = AppearanceTerm(2.0)(*x, None, None, images=images, mask=None)
    (gradient,) = torch.autograd.grad(term, logits)
    assert term > 0.1 and gradient.isfinite().all() and gradient.abs().max() > 1e-5
    seen = colour_channels(images)
    assert seen.shape[1] == min(c, 8) and (seen is images) == (c <= 8)
    expected = appearance_term(*x, images=seen)
    assert term.item() == 2 * expected.item()
    probs = torch.softmax(logits.detach(), dim=1)
    sample = Sample(lambda: iter([(images, None)]))
    refinement = OverClusters.of([probs], sample, 0, refine=True).refinement(None, 0)
    labels = refinement.labels(probs, colours_of(images, (8, 8), 0))
    assert refinement.residual.shape == (K, min(c, 8), 2 * min(c, 8) + 1)
    assert (labels[:, :, :16] == 0).all() and (labels[:, :, 16:] == 1).all(), "the edge of the pixels"
    assert sample.statistics(0)[0].isfinite().all()


def test_colours_are_the_bands_up_to_8_and_means_of_neighbours_above():
    images = torch.rand(2, 13, 4, 5)
    seen = colour_channels(images)
    assert torch.equal(seen[:, 0], images[:, 0]) and torch.equal(seen[:, 1], images[:, 1:3].mean(1))
    alike = images[:, :1].expand(-1, 64, -1, -1)
    torch.testing.assert_close(colour_channels(alike), images[:, :1].expand(-1, 8, -1, -1))
