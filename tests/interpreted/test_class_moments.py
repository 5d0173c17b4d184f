"""The Triton kernels of `class_moments` in the interpreter, against the reference in float64."""

from functools import partial

import pytest
import torch
from conftest import inputs

import infoseg_fast as isf
from infoseg_fast.bench.cuda_values import distance
from infoseg_fast.kernels import KERNELS
from infoseg_fast.ops.protocol import Needs

from .test_local_global_similarity import FLOORS, SHAPES, check_subsets, kernel_results, layouts, results, truth


def moments(*x, backend, Y, temperature=1.0):
    return isf.class_moments(*x, statistics=Y, temperature=temperature, backend=backend)


def moments_of(Y, temperature):
    """The moments as a function of the scores, in float64."""
    return lambda z: torch.einsum("bkyx,bsyx->ks", torch.softmax(temperature * z, dim=1), Y.double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
def test_values_and_gradients_are_the_references(dtype, shape):
    B, C, K, size = shape
    x = inputs(B=B, C=C, D=6, K=K, size=size, dtype=torch.float64)
    x = [(t * scale).to(dtype) for t, scale in zip(x, (1, 0.5, C**-0.5, 1), strict=True)]
    S = 20 if C == 70 else 3  # two products, of which the last is ragged, or one
    Y, upstream = torch.randn(B, S, *size, dtype=torch.float64), torch.randn(K, S, dtype=torch.float64)
    exact, found, eager = (
        results(lambda *x, backend: moments(*x, backend=backend, Y=Y), given, upstream, backend)
        for given, backend in (([t.double() for t in x], "reference"), (x, "triton"), (x, "reference"))
    )
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name, a, b, e in zip(("value", "f", "H", "W", "b"), found, exact, eager, strict=True):
        assert distance(a, b) <= 2 * distance(e, b) + FLOORS[dtype], name


@pytest.mark.parametrize(("name", "f"), list(layouts()), ids=lambda x: x if isinstance(x, str) else "")
def test_every_layout_of_the_features_and_the_statistics(name, f):
    C, K = f.shape[1], 5
    G, g0, upstream = torch.randn(2, K, C), torch.randn(2, K), torch.randn(K, 4)
    Y = torch.randn(2, 4, *f.shape[2:], 2)[..., 0]
    arguments = f, G, g0, Y, 1.3
    found = kernel_results("class_moments", arguments, upstream)
    for a, b in zip(found, truth(moments_of(Y, 1.3), f, G, g0, upstream), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)
    assert found[1].stride() == torch.empty_like(f).stride()
    without, saved = KERNELS["class_moments"].forward(*arguments, Needs(False, False, False))
    assert torch.equal(without, found[0]) and saved == []


def test_statistics_of_any_strides_beside_a_projection():
    x, S = inputs(B=2, K=3, size=(3, 4), dtype=torch.float32), 5
    upstream = torch.randn(3, S)
    for Y in (torch.randn(2, 3, 4, S).movedim(3, 1), torch.randn(2, S, 1, 4).expand(2, S, 3, 4)):
        (found, *_), (exact, *_) = both = [
            results(partial(moments, Y=Y), x, upstream, b) for b in ("triton", "reference")
        ]
        assert not Y.is_contiguous() and found.shape == exact.shape
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_temperatures_of_float64_are_not_rounded():
    x, Y = inputs(B=2, K=3, size=(3, 4), dtype=torch.float64), torch.randn(2, 2, 3, 4, dtype=torch.float64)
    found, exact = (
        results(
            partial(moments, Y=Y, temperature=1e-3),
            x,
            torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
            b,
        )
        for b in ("triton", "reference")
    )
    for a, b in zip(found, exact, strict=True):
        assert distance(a, b) < 1e-10


def test_every_subset_of_gradients():
    f, G, Y, grad = torch.randn(2, 70, 5, 8), torch.randn(2, 4, 70), torch.randn(2, 3, 5, 8), torch.randn(4, 3)
    full = truth(moments_of(Y, 1.5), f, G, torch.zeros(2, 4), grad)
    check_subsets("class_moments", (f, G, None, Y, 1.5), grad, full)


def test_gradcheck():
    x = inputs(B=2, C=3, D=4, K=3, size=(1, 2), requires_grad=True)
    Y = torch.randn(2, 3, 1, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: moments(*x, backend="triton", Y=Y), x, fast_mode=True)


@pytest.mark.parametrize("shape", [(0, 5, 3, (3, 4)), (2, 5, 3, (0, 4)), (2, 0, 3, (3, 4))], ids=str)
def test_empty_inputs(shape):
    B, C, K, size = shape
    x, Y, upstream = (
        inputs(B=B, C=C, D=6, K=K, size=size, dtype=torch.float32),
        torch.randn(B, 2, *size),
        torch.ones(K, 2),
    )
    found, expected = (
        results(lambda *x, backend: moments(*x, backend=backend, Y=Y), x, upstream, backend)
        for backend in ("triton", "reference")
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
