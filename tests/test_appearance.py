"""The appearance term: the formula's value, the derivative as gradient, sound with masks and empty classes."""

import math

import numpy as np
import pytest
import torch

import infoseg_fast as isf
from infoseg_fast.appearance import DARK, FLAT, local_appearance


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


def test_appearance_is_colour_and_roughness_of_the_cells():
    images = torch.full((1, 3, 32, 32), 0.2)
    images[..., 16:] = 0.7
    y = local_appearance(images, (8, 8))
    assert y.shape == (1, 4, 8, 8)
    assert torch.allclose(y[:, :3, :, :4], torch.tensor(0.2 + DARK).log())
    assert torch.allclose(y[:, :3, :, 4:], torch.tensor(0.7 + DARK).log())
    rough = torch.full((8,), math.log(FLAT))
    # The edge belongs to the cell on its left, where one of four columns has the whole step: one of three cells.
    rough[2:5] = math.log(FLAT + math.log((0.7 + DARK) / (0.2 + DARK)) ** 2 / 12)
    assert torch.allclose(y[0, 3], rough.expand(8, 8))
